"""The worst case over all attacks, `auto` beside it, and what the maximum must not hide."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.judge.statistics import interval
from gitbench.judge.worst_case import Worst, is_auto, is_submission, worst_case
from gitbench.publish import leaderboard
from gitbench.publish.table import tables
from gitbench.store.result import TIMED_OUT, Result
from results import LEAKING, SAFE, every_attack, result, table

STORED = {
    name: np.array(values) for name, values in json.loads((Path(__file__).parent / "reseeded.json").read_text())["cells"].items()
}  # (victims, draws)


def of(values: Mapping[str, Sequence[float | None]], *, metric: str = "psnr_gain", **options) -> Worst:
    results = {attack: [result(found, attack=attack, metric=metric)] for attack, found in values.items()}
    return worst_case(results, metric=metric, attacks=list(results), **options)


gains = st.floats(-20, 90, allow_nan=False)


@given(values=st.lists(st.lists(gains, min_size=3, max_size=3), min_size=1, max_size=5))
def test_the_bound_is_the_mean_of_each_victims_largest_leakage(values: list[list[float]]) -> None:
    found = of({f"attack_{index}": one for index, one in enumerate(values)})
    slow = [max(one[victim] for one in values) for victim in range(3)]
    assert found.bound == interval([slow])
    assert found.own == found.bound
    assert found.victims == 3
    assert not found.incomplete
    for one in values:  # no single attack is above it
        assert found.bound.mean >= np.mean(one) - 1e-9


def test_where_less_is_more_leakage_the_smallest_value_counts() -> None:
    found = of({"a": (0.1, 0.3), "auto": (0.2, 0.1)}, metric="mse", auto="auto")
    assert found.bound.mean == pytest.approx(0.1)
    assert found.auto.mean == pytest.approx(0.15)
    assert found.gap == pytest.approx(0.05)


def test_seeds_stay_clusters() -> None:
    results = {
        attack: [result(values, attack=attack, seed=seed) for seed, values in enumerate(by_seed)]
        for attack, by_seed in {"a": [(1.0, 5.0), (2.0, 2.0)], "b": [(3.0, 1.0), (9.0, 0.0)]}.items()
    }
    found = worst_case(results, metric="psnr_gain", attacks=["a", "b"])
    assert found.bound == interval([[3.0, 5.0], [9.0, 2.0]])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("auto", True),
        ("auto(budget=60.0)", True),
        ("ridge+auto", False),
        ("mine.py:auto", False),
        ("git(variant='auto')", False),
        ("x|`", False),
    ],
)
def test_auto_is_told_by_its_name(spec: str, expected: bool) -> None:
    assert is_auto(spec) == expected


def test_a_submission_is_told_by_its_name() -> None:
    assert is_submission("submission(name='x', author='y')")
    assert not is_submission("ig")


# What the attacks must share


def test_only_victims_that_all_attacks_share_are_compared() -> None:
    results = {
        "a": [result((1.0, 1.0), attack="a", seed=seed) for seed in (0, 1)],
        "b": [result((2.0, 2.0), attack="b", seed=0)],
    }
    found = worst_case(results, metric="psnr_gain", attacks=["a", "b"])
    assert (found.bound.mean, found.victims, found.complete) == (2.0, 2, ("a", "b"))


def test_another_case_is_not_compared_and_said() -> None:
    values = {"a": result((1.0, 1.0), attack="a"), "b": result((2.0, 2.0), attack="b")}
    values["other"] = result((50.0, 50.0), attack="other", code={"core": "older"}, at="2024-01-01T00:00:00+00:00")
    found = worst_case({name: [one] for name, one in values.items()}, metric="psnr_gain", attacks=list(values))
    assert found.bound.mean == 2.0
    assert found.incomplete == {"other": "other victims, or other code"}
    # Of as many attacks on either side the newer ones count.
    newer = worst_case({name: [values[name]] for name in ("a", "other")}, metric="psnr_gain", attacks=["other", "a"])
    assert newer.bound.mean == 1.0


def test_of_unlike_numbers_of_victims_the_first_ones_are_compared() -> None:
    found = of({"a": (1.0, 2.0, 90.0, 90.0), "b": (3.0, 1.0)})
    assert found.bound == interval([[3.0, 2.0]])
    assert not found.incomplete


# Nothing vanishes


def test_attacks_that_ended_badly_are_named() -> None:
    late = result((4.0, 4.0), attack="late").model_copy(update={"flags": (TIMED_OUT,)})
    results = {
        "a": [result((1.0, 1.0), attack="a")],
        "late": [late],
        "broken": [result(error="boom", attack="broken")],
        "half": [result((None, 9.0), attack="half")],
        "none": [result((None, None), attack="none")],
    }
    found = worst_case(results, metric="psnr_gain", attacks=[*results, "absent"], errors=["a"])
    assert found.incomplete == {
        "a": "error",
        "late": "timed out",
        "broken": "error",
        "half": "a value is missing",
        "none": "no value",
        "absent": "not measured",
    }
    # A leak is a leak: what the others had counts all the same.
    assert found.bound == interval([[4.0, 9.0]])


def test_a_victim_that_nobody_could_measure_leaves_no_figure() -> None:
    assert of({"a": (None, 1.0), "b": (None, 2.0)}).bound.mean is None


def test_without_any_value_there_is_no_bound() -> None:
    found = worst_case({}, metric="psnr_gain", attacks=["a"])
    assert (found.bound.mean, found.victims, found.incomplete) == (None, 0, {"a": "not measured"})


# What others send in


def test_others_may_raise_the_bound_and_take_no_victim_out_of_it() -> None:
    ours = {"a": [result((1.0, 1.0), attack="a", seed=seed) for seed in (0, 1)]}
    theirs = {"submission(name='x')": [result((7.0, 0.0), attack="submission(name='x')", seed=0)]}
    found = worst_case({**ours, **theirs}, metric="psnr_gain", attacks=["a", *theirs], others=list(theirs))
    assert found.bound == interval([[7.0, 1.0], [1.0, 1.0]])
    assert found.own == interval([[1.0, 1.0], [1.0, 1.0]])
    assert found.raised


# The table


def cells(of_attacks: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[tuple[str, str], list[Result]]:
    return {
        (defense, attack): [result(values, defense=defense, attack=attack)]
        for defense, by_attack in of_attacks.items()
        for attack, values in by_attack.items()
    }


def first_rows(text: str) -> dict[str, dict[str, str]]:
    head, _, *found = every_attack(text)
    return {row[0].strip("`"): dict(zip(head, row, strict=True)) for row in found}


def test_defenses_are_ranked_by_the_worst_case() -> None:
    # On average `steady` leaks more; but each of `mixed`'s victims falls to one of its attacks.
    found = cells({
        "none": {"ig": LEAKING, "dlg": LEAKING},
        "mixed": {"ig": (9.0, 9.0, 0.0, 0.0), "dlg": (0.0, 0.0, 9.0, 9.0)},
        "steady": {"ig": (5.0, 5.0, 5.0, 5.0), "dlg": (5.0, 5.0, 5.0, 5.0)},
    })  # fmt: skip
    text = leaderboard.render(table(found))
    shown = first_rows(text)
    assert list(shown) == ["steady", "mixed", "none"]
    assert list(shown["mixed"])[:4] == ["defense", "worst case", "`auto`", "gap, dB"]
    assert shown["mixed"]["worst case"] == "+9.00 [9.00, 9.00]"
    assert shown["mixed"]["worst attack"] == "`dlg`"  # of equals the first by name
    assert shown["mixed"]["worst"] == "+4.50"
    assert shown["steady"]["`auto`"] == "not measured"
    assert "Measured without `auto`: `none`, `mixed`, `steady`." in text


def test_auto_stands_beside_the_worst_case_with_the_gap() -> None:
    found = cells(
        {"none": {"ig": LEAKING, "auto": LEAKING}, "x": {"ig": (1.0, 4.0, 1.0, 4.0), "auto": (2.0, 2.0, 2.0, 2.0)}, "y": {"ig": SAFE}}
    )
    text = leaderboard.render(table(found))
    shown = first_rows(text)
    assert list(shown["x"])[1:5] == ["worst case", "`auto`", "gap, dB", "`ig`"]
    assert shown["x"]["worst case"].startswith("+3.00 [")
    assert shown["x"]["`auto`"] == "+2.00 [2.00, 2.00] holds"
    assert shown["x"]["gap, dB"] == "1.00"
    assert (shown["y"]["`auto`"], shown["y"]["gap, dB"]) == ("not measured", "")
    assert shown["y"]["worst case"].endswith(", 1 of 2 attacks")
    assert "Measured without `auto`: `y`." in text
    assert "- `y`, 4 victims compared: `auto`: not measured" in text


def test_auto_with_options_is_auto() -> None:
    text = leaderboard.render(table(cells({"none": {"ig": LEAKING, "auto(budget=9.0)": LEAKING}})))
    assert first_rows(text)["none"]["`auto(budget=9.0)`"].startswith("+9.00")
    assert "Measured without" not in text


def test_an_error_stays_visible_in_a_table_from_stored_results() -> None:
    stored = [result(), result(SAFE, defense="x"), result(attack="dlg"), result(error="boom", defense="x", attack="dlg")]
    (found,) = tables(stored)
    text = leaderboard.render(found)
    shown = first_rows(text)["x"]
    assert shown["`dlg`"] == "error"
    assert shown["worst case"].endswith(", 1 of 2 attacks")
    assert "- `x`, 4 victims compared: `dlg`: error" in text
    # Measured again, it is forgotten.
    again = result(SAFE, defense="x", attack="dlg", at="2025-03-01T00:00:00+00:00")
    (found,) = tables([*stored, again])
    assert "of 2 attacks" not in leaderboard.render(found)


def test_a_failed_control_is_said() -> None:
    text = leaderboard.render(table(cells({"none": {"ig": LEAKING, "dlg": SAFE}, "x": {"ig": SAFE, "dlg": SAFE}})))
    assert "- `x`, 4 victims compared: without a control that leaks: `dlg`" in text
    assert first_rows(text)["x"]["worst case"] == first_rows(text)["x"]["`ig`"].removesuffix(" holds")


def test_what_cannot_run_under_a_threat_model_is_not_missed() -> None:
    text = leaderboard.render(table(cells({"none": {"ig": LEAKING}}), not_applicable={("none", "auto"): "needs public"}))
    shown = first_rows(text)["none"]
    assert shown["worst case"] == shown["`ig`"].removesuffix(" leaks")
    assert shown["`auto`"] == "n/a"


# Winner's curse: docs/worst-case.md has these figures


@pytest.mark.parametrize(("attacks", "expected"), [(2, 0.56), (4, 1.03), (6, 1.27), (10, 1.54)])
def test_a_maximum_over_noise_is_too_high_by_so_many_standard_deviations(attacks: int, expected: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, (attacks, 16, 2000))
    assert noise.max(axis=0).mean() == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (("none/ridge", "none/lti", "none/gias", "none/ig", "none/dlg"), 0.01),
        (("none/ig", "none/dlg"), 0.20),
        (("dp_sgd(noise_multiplier=1.0)/ridge", "dp_sgd(noise_multiplier=1.0)/lti"), 0.15),
    ],
)
def test_the_bias_on_stored_draws_is_what_the_docs_say(cells: tuple[str, ...], expected: float) -> None:
    attacks = np.stack([STORED[cell] for cell in cells])  # (attacks, victims, draws)
    fair = []
    for draw in range(attacks.shape[2]):
        # The attack is chosen on the other draws, so that its own draw cannot flatter it.
        chosen = np.delete(attacks, draw, axis=2).mean(axis=2).argmax(axis=0)
        fair.append(np.take_along_axis(attacks[:, :, draw], chosen[None], axis=0).mean())
    assert attacks.max(axis=0).mean() - np.mean(fair) == pytest.approx(expected, abs=0.005)


def test_the_same_attack_drawn_again_is_no_further_attack() -> None:
    values = STORED["none/ig"]
    assert values.max(axis=1).mean() - values.mean() == pytest.approx(0.74, abs=0.005)
