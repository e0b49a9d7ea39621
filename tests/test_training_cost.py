"""What a defense costs: the training, its pairs, the judge's limit, and two frauds."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

import gitbench
from gitbench.attacker.fit_cache import FileCheckpoint
from gitbench.attacker.learning import NoCheckpoint
from gitbench.clients.data import Data, Split
from gitbench.clients.procedure import load_client
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from gitbench.judge.cost import accuracy, accuracy_drop
from gitbench.judge.flags import own_flags
from gitbench.judge.verdict import judge_results
from gitbench.measure.evaluator import Evaluator
from gitbench.measure.training_cost import Course, first_updates, train_defended, training_of
from gitbench.measure.utility import measure_utility
from gitbench.publish.leaderboard import render
from gitbench.publish.table import tables
from gitbench.run.bench import Bench, case_of
from gitbench.run.config import make_config
from gitbench.store.folder import Store
from gitbench.store.result import Result, Training
from helpers import make_data
from results import result


@pytest.fixture(scope="module")
def data() -> Data:
    """Two classes that a linear model tells apart: one is darker."""
    found = make_data(classes=2, public=400, private=32, size=8)

    def told_apart(split: Split) -> Split:
        return Split(0.5 * split.inputs + 0.5 * split.labels[:, None, None, None], split.labels)

    return dataclasses.replace(found, public=told_apart(found.public), private=told_apart(found.private))


def course_of(data: Data, *, rounds: int = 30, batch_size: int = 2, seed: int = 0) -> Course:
    return Course(data.public, load_client(None), batch_size, rounds, seed)


def trained(data: Data, course: Course, defense: gitbench.Defense | str = "none", checkpoint=None) -> dict[str, torch.Tensor]:
    model, loaded = gitbench.load_model("mlp(hidden=(16,))", data), gitbench.load_defense(defense)
    return train_defended(model, course, defense=loaded, progress=silent, checkpoint=checkpoint or NoCheckpoint())


def cost(data: Data, defense: gitbench.Defense | str, *, victims: int = 16, rounds: int = 30) -> Training:
    course, loaded = course_of(data, rounds=rounds), gitbench.load_defense(defense)
    model = gitbench.load_model("mlp(hidden=(16,))", data)
    first = first_updates(model, course, defense=loaded, victims=victims)
    return training_of(trained(data, course, defense), trained(data, course), course, defense=loaded, first=first)


def test_the_raw_gradient_trains_and_costs_nothing(data: Data) -> None:
    found = cost(data, "none")
    assert found.right == found.undefended > 1.2 * found.guessed
    assert (found.lost, found.gained, found.equal) == (0, 0, 1)
    assert found.cosine == pytest.approx(1)
    assert found.right / found.images > 0.9
    assert found.epsilon is None


def test_it_is_the_training_that_torch_does_on_all_images_of_a_round(data: Data) -> None:
    """The slow, obvious way: Adam on the mean loss of the same images."""
    course = course_of(data, rounds=5)
    model = gitbench.load_model("mlp(hidden=(16,))", data)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for round_ in range(5):
        rows = course.batches(round_).flatten()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.public.inputs[rows]), data.public.labels[rows]).backward()
        optimizer.step()
    test = course.split()[1]
    right = model(data.public.inputs[test]).argmax(1) == data.public.labels[test]
    assert (trained(data, course)["right"].bool() == right).float().mean() > 0.99


def test_what_trains_is_not_what_is_tested_and_batch_sizes_see_the_same_images(data: Data) -> None:
    course = course_of(data)
    train, test = course.split()
    assert len({*train.tolist(), *test.tolist()}) == len(train) + len(test) == len(data.public)
    assert set(course.batches(3).flatten().tolist()) <= set(train.tolist())
    assert torch.equal(course.batches(3).flatten(), course_of(data, batch_size=4).batches(3).flatten())
    assert course.clients * course.batch_size == 64


def test_a_training_that_is_cut_off_goes_on(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitbench.measure.training_cost._SAVED_EVERY", 10)
    course, path = course_of(data), tmp_path / "checkpoint.safetensors"

    def stops(what: str, done: int, total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    model, defense = gitbench.load_model("mlp(hidden=(16,))", data), gitbench.load_defense("gaussian_noise(std=0.01)")
    with pytest.raises(KeyboardInterrupt):
        train_defended(model, course, defense=defense, progress=stops, checkpoint=FileCheckpoint(path))
    assert int(FileCheckpoint(path).load()["round"]) == 10
    again = trained(data, course, "gaussian_noise(std=0.01)", FileCheckpoint(path))
    assert torch.equal(again["right"], trained(data, course, "gaussian_noise(std=0.01)")["right"])


def test_a_defense_keeps_what_it_keeps_from_round_to_round(data: Data) -> None:
    class Counts(gitbench.Defense):
        age = 2
        seen = 0

        def protect(self, update, *, generator):
            self.seen += 1
            return update.map(lambda name, tensor: tensor if self.seen % 2 else tensor * 0)

    found = trained(data, course_of(data), Counts())
    assert found["right"].float().mean() > 0.8


def test_epsilon_is_that_of_opacus(data: Data) -> None:
    found = cost(data, "dp_sgd(noise_multiplier=1.0)")
    accountant = RDPAccountant()
    for _ in range(found.rounds):
        accountant.step(noise_multiplier=1.0, sample_rate=64 / 320)
    assert found.epsilon == pytest.approx(accountant.get_epsilon(delta=found.delta))


def test_fewer_bytes_for_what_is_zero(data: Data) -> None:
    assert cost(data, "pruning(rate=0.9)").bytes_sent < 0.4 * cost(data, "none").bytes_sent


@given(images=st.integers(1, 500), share=st.floats(0, 1), lost=st.floats(0, 1), gained=st.floats(0, 1))
def test_the_paired_difference_is_that_of_the_images(images: int, share: float, lost: float, gained: float) -> None:
    right = round(share * images)
    counts = {"right": right, "lost": round(lost * (images - right)), "gained": round(gained * right)}
    training = make_training(images=images, **counts)
    found, both = accuracy_drop([make_result(training=training)]), accuracy([make_result(training=training)])
    assert found.mean == pytest.approx(100 * (training.undefended - right) / images)
    assert found.low <= found.mean + 100 / images and found.mean - 100 / images <= found.high
    assert both.low <= both.mean + 1e-9 and both.mean <= both.high + 1e-9


def make_result(
    *, defense: str = "none", gain: float = 9.0, training: Training | None = None, accuracy_drop: float | None = None
) -> Result:
    found = result([gain, gain + 0.1, gain - 0.1, gain] * 2, defense=defense)
    return found.model_copy(update={"training": training, "accuracy_drop": accuracy_drop})


def make_training(**changes) -> Training:
    given = {"images": 100, "right": 60, "lost": 5, "gained": 2, "guessed": 15, "cosine": 0.5, "equal": 0.0}
    return Training(**{**given, "rounds": 10, "clients": 8, "batch_size": 8, "bytes_sent": 1.0, "seconds": 0.1, **changes})


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
    held = make_result(defense="pruning(rate=0.9)", gain=0.0, training=training, accuracy_drop=2.0)
    leaks = make_result(gain=20.0)
    found = judge_results([held], [leaks], gate={"psnr_gain": 3.0})
    assert found.word == word
    assert said in found.reason


class TrainsNothing(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: 1e-6 * tensor + gitbench.randn_like(tensor, generator))


class BehavesWhenAttacked(gitbench.Defense):
    """Noise for as few victims as a benchmark has, and the raw gradient for the clients of a training."""

    def protect(self, update, *, generator):
        few = len(update) <= 16
        return update.map(lambda name, tensor: tensor + gitbench.randn_like(tensor, generator)) if few else update


@pytest.mark.parametrize(
    ("defense", "flag"), [(TrainsNothing(), "learns-nothing"), (BehavesWhenAttacked(), "trains-otherwise")], ids=["nothing", "otherwise"]
)
def test_two_frauds_are_caught(data: Data, defense: gitbench.Defense, flag: str) -> None:
    model = gitbench.load_model("mlp(hidden=(16,))", data)
    inputs, labels = gitbench.draw_victims(data.private, victims=8, batch_size=2, seed=0)
    sent = gitbench.client_update(model, inputs, labels, defense=defense, generator=make_generator(0))
    utility = measure_utility(model, inputs, labels, sent, random=True)
    training = cost(data, defense, victims=8)
    result = make_result(defense="mine", gain=0.0, training=training).model_copy(update={"utility": utility})
    assert flag in own_flags(result, still_improving=False)
    honest = make_result(defense="mine", gain=0.0, training=cost(data, "pruning(rate=0.1)")).model_copy(update={"utility": None})
    assert not {"learns-nothing", "trains-otherwise"} & own_flags(honest, still_improving=False)


def test_a_threshold_of_cost_is_no_metric() -> None:
    config = make_config({}, {"threshold": ["accuracy_drop=2"]})
    assert (config.accuracy_drop, config.threshold) == (2.0, {"psnr_gain": 3.0})
    assert make_config({}, {}).cost
    assert not make_config({}, {"model": ["lenet"]}).cost
    assert make_config({}, {"model": ["lenet"], "cost": "yes"}).cost


def test_the_cost_of_a_stored_result_is_added_without_a_new_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitbench.measure.training_cost.BUDGETS", {"quick": type("Few", (), {"rounds": 2})})
    case = case_of(
        attack="ridge(limit=64)", defense="pruning(rate=0.5)", model="mlp(hidden=(8,))", dataset="photos", threat="server",
        profile="quick", victims=2, batch_size=1, seed=0,
    )  # fmt: skip
    plain = Bench(store=Store(tmp_path), device="cpu").measure(case)
    assert plain.training is None
    monkeypatch.setattr(Evaluator, "run", lambda *_: pytest.fail("measured again"))
    costed = Bench(store=Store(tmp_path), device="cpu", cost=True).measure(case)
    assert costed.metrics == plain.metrics
    assert costed.training is not None and costed.training.rounds == 2
    assert Bench(store=Store(tmp_path), device="cpu").measure(case).training == costed.training
    assert math.isfinite(costed.training.seconds)


def cost_results() -> list[Result]:
    rows = {
        "none": (20.0, make_training(images=1000, right=700, lost=0, gained=0)),
        "pruning(rate=0.9)": (5.0, make_training(images=1000, right=650, lost=60, gained=10)),
        "pruning(rate=0.5)": (6.0, make_training(images=1000, right=600, lost=110, gained=10)),  # leaks more and costs more
        "clipping(max_norm=1.0)": (0.0, make_training(images=1000, right=150, lost=560, gained=10, guessed=150)),
    }
    return [make_result(defense=defense, gain=gain, training=training) for defense, (gain, training) in rows.items()]


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
