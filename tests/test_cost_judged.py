"""What a defense costs, judged and shown: the paired difference, the gate's limit, flags, the leaderboard's section, the plane."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.judge.cost import accuracy, accuracy_drop
from gitbench.judge.flags import own_flags
from gitbench.judge.verdict import judge_results
from gitbench.publish.cost_table import measured_drops
from gitbench.publish.leaderboard import render
from gitbench.publish.table import tables
from gitbench.run.config import make_config
from gitbench.store.folder import Store
from gitbench.store.result import Measure, Training, Utility
from results import cost_results, make_training, result, trained_result


@given(images=st.integers(1, 500), share=st.floats(0, 1), lost=st.floats(0, 1), gained=st.floats(0, 1))
def test_the_paired_difference_is_that_of_the_images(images: int, share: float, lost: float, gained: float) -> None:
    right = round(share * images)
    counts = {"right": right, "lost": round(lost * (images - right)), "gained": round(gained * right)}
    training = make_training(images=images, **counts)
    found, both = accuracy_drop([trained_result(training=training)]), accuracy([trained_result(training=training)])
    assert found.mean == pytest.approx(100 * (training.undefended - right) / images)
    assert found.low <= found.mean + 100 / images and found.mean - 100 / images <= found.high
    assert both.low <= both.mean + 1e-9 and both.mean <= both.high + 1e-9


def test_counts_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="no counts"):
        make_training(right=60, lost=50)


@pytest.mark.parametrize(
    ("training", "word", "said"),
    [
        (make_training(images=2000, right=1200, lost=2, gained=2), "holds", "at most 2 %"),
        (make_training(images=2000, right=1200, lost=200, gained=2), "no success", "more than 2 %"),
        (make_training(images=2000, right=1200, lost=45, gained=2), "undecided", "straddles 2 %"),
        (None, "undecided", "not measured"),
    ],
)
def test_the_gate_asks_for_cost(training: Training | None, word: str, said: str) -> None:
    held = trained_result(defense="pruning(rate=0.9)", gain=0.0, training=training, limit=2.0)
    leaks = trained_result(gain=20.0)
    found = judge_results([held], [leaks], gate={"psnr_gain": 3.0})
    assert found.word == word
    assert said in found.reason


def test_a_threshold_of_cost_is_no_metric() -> None:
    config = make_config({}, {"threshold": ["accuracy_drop=2"]})
    assert (config.accuracy_drop_limit, config.threshold) == (2.0, {"psnr_gain": 3.0})
    assert not make_config({}, {}).cost
    assert make_config({}, {}, costs=True).cost
    assert not make_config({}, {"model": ["lenet"]}, costs=True).cost
    assert make_config({}, {"model": ["lenet"], "cost": "yes"}).cost
    assert not make_config({"cost": False}, {}, costs=True).cost


def test_the_leaderboard_shows_what_is_lost_and_names_the_front() -> None:
    found = [one.model_copy(update={"flags": ("learns-nothing",)}) if "clipping" in one.case.defense else one for one in cost_results()]
    (table,) = tables(found)
    text = render(table)
    cost = text.split("## Cost")[1].split("## ")[0]
    lines = [line.split("|") for line in cost.splitlines() if line.startswith("| `")]
    shown = {line[1].strip(" `"): (line[3].strip(), line[5].strip()) for line in lines}
    assert shown["pruning(rate=0.9)"] == ("+5.0 % [3.4, 6.6]", "yes")
    assert shown["pruning(rate=0.5)"][1] == ""
    assert shown["clipping(max_norm=1.0)"][1] == ""
    assert list(shown) == ["pruning(rate=0.9)", "pruning(rate=0.5)", "clipping(max_norm=1.0)", "none"]


def test_the_plane_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    store, folder = Store(tmp_path / "results"), Path(__file__).parents[1] / "benchmarks"
    for one in cost_results():
        store.save(one)
    monkeypatch.syspath_prepend(folder)
    plane = importlib.import_module("plane")
    plane.main([str(tmp_path / "results"), "--out", str(tmp_path / "plane")])
    picture = (tmp_path / "plane.svg").read_text()
    assert "accuracy lost" in picture and "pruning(rate=0.9)" in picture
    assert (tmp_path / "plane.png").stat().st_size > 5000
    with pytest.raises(SystemExit, match="gitbench-cost yes"):
        (tmp_path / "empty" / "cases").mkdir(parents=True)
        plane.main([str(tmp_path / "empty"), "--out", str(tmp_path / "plane")])


def test_what_others_sent_in_says_nothing_of_the_cost() -> None:
    (table,) = tables(cost_results())
    assert measured_drops(table)["pruning(rate=0.9)"].mean == pytest.approx(5.0)
    others = dataclasses.replace(table, others={one.case_id: () for one in cost_results()})
    assert measured_drops(others) == {}


def test_few_victims_and_a_clip_that_binds_for_some_accuse_nobody() -> None:
    utility = Utility(
        alignment=Measure(mean=1.0, low=1.0, high=1.0, values=(1.0,)), cosine=0.9, descent=1.0, norm_ratio=1.0, equal=0.8, random=False
    )
    honest = make_training(cosine=1.0, equal=1.0)
    clipped = trained_result(defense="clipping(max_norm=1.0)", gain=0.0, training=honest).model_copy(update={"utility": utility})
    assert "trains-otherwise" not in own_flags(clipped, still_improving=False)
    few = result([0.0, 0.1], defense="pruning(rate=0.9)").model_copy(
        update={"training": make_training(cosine=0.2), "utility": utility.model_copy(update={"equal": 0.0})}
    )
    assert "trains-otherwise" not in own_flags(few, still_improving=False)


def test_what_was_not_trained_is_said() -> None:
    found = [one.model_copy(update={"training": None}) if "clipping" in one.case.defense else one for one in cost_results()]
    (table,) = tables(found)
    assert "Not measured: `clipping(max_norm=1.0)`" in render(table)
