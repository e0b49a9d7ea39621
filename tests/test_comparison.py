"""Comparisons: what got worse is seen, and re-drawn noise is not."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.judge.statistics import student
from gitbench.publish.baseline import Record
from gitbench.publish.comparison import Change, compare_cell
from records import record

STORED: dict[str, np.ndarray] = {
    name: np.array(values) for name, values in json.loads((Path(__file__).parent / "reseeded.json").read_text())["cells"].items()
}
# One drifted model serves all victims of a seed: no number of victims averages that draw out, only seeds do.
SHARED_DRAW = [name for name in STORED if name.startswith("parameter_drift") and "same local model" not in name]
OWN_DRAWS = [name for name in STORED if name not in SHARED_DRAW]
VICTIMS, RUNS = 32, 1000


def change(before: list[Record], after: list[Record], **options: object) -> Change:
    then, now = ({one.seed: one for one in run} for run in (before, after))
    return compare_cell(before[0].key, then, now, metric="psnr_gain", **options)


# Both error rates, on stored values


def drawn(name: str, random: np.random.Generator, *, seeds: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two runs of the same victims, whose noise was drawn independently; every seed has victims of its own."""
    values = STORED[name]
    order = random.permutation(len(values))
    size = VICTIMS // seeds
    before, after = [], []
    for seed in range(seeds):
        victims = order[seed * size : (seed + 1) * size]
        first, second = random.choice(values.shape[1], 2, replace=False)
        before.append(values[victims, first])
        after.append(values[victims, second])
    return before, after


EFFECTS = {
    "none": lambda random, shape: 0,
    "+1 dB on every victim": lambda random, shape: 1,
    "+1 dB on average, skewed": lambda random, shape: random.exponential(1, shape),
    "+2 dB on half of the victims": lambda random, shape: 2 * (random.random(shape) < 0.5),
}


def alarms(name: str, effect: str, *, seeds: int = 1, runs: int = RUNS) -> np.ndarray:
    """In which of many runs the gate said that the cell got worse."""
    random = np.random.default_rng(0)
    local = [[1.0, 0.0], [0.0, 1.0]] if name in SHARED_DRAW else [[], []]
    found = np.zeros(runs, dtype=bool)
    for run in range(runs):
        before, after = drawn(name, random, seeds=seeds)
        after = [values + EFFECTS[effect](random, values.shape) for values in after]
        sides = [
            [record(values.tolist(), seed=seed, local_model=model) for seed, values in enumerate(side)]
            for side, model in zip((before, after), local, strict=True)
        ]
        found[run] = change(*sides).kind == "regressed"
    return found


def test_reseeding_raises_the_alarm_in_less_than_one_run_of_twenty() -> None:
    found = np.stack([alarms(name, "none") for name in OWN_DRAWS])
    assert (found.mean(axis=1) <= 0.05).all(), dict(zip(OWN_DRAWS, found.mean(axis=1), strict=True))
    assert found.any(axis=0).mean() <= 0.05  # of a run with all these cells


def test_one_db_on_one_attack_is_caught_at_32_victims() -> None:
    power = {name: alarms(name, "+1 dB on every victim").mean() for name in OWN_DRAWS}
    assert min(power.values()) >= 0.99, power


@pytest.mark.parametrize("effect", ["+1 dB on average, skewed", "+2 dB on half of the victims"])
def test_one_db_that_victims_do_not_share_alike_is_caught(effect: str) -> None:
    power = {name: alarms(name, effect).mean() for name in OWN_DRAWS}
    assert min(power.values()) >= 0.80, power  # none/gias; all others:
    assert sorted(power.values())[1] >= 0.90, power


def test_a_draw_that_all_victims_share_is_no_regression() -> None:
    for seeds in (1, 2, 3):
        found = {name: alarms(name, "none", seeds=seeds).mean() for name in SHARED_DRAW}
        assert max(found.values()) <= 0.05, (seeds, found)


def test_another_local_model_is_judged_more_leniently_and_less_so_with_seeds() -> None:
    values = [1.0, 2.0, 3.0, 4.5]
    here, rounded, elsewhere = ([1.0, -2.0, 0.5], [1.001, -2.0, 0.5], [-1.0, 1.0, 2.0])

    def kind(shift: float, *, now: list[float], seeds: int = 1) -> Change:
        return change(
            [record(values, seed=seed, local_model=here) for seed in range(seeds)],
            [record([value + shift for value in values], seed=seed, local_model=now) for seed in range(seeds)],
        )

    assert kind(1.0, now=rounded).kind == "regressed"
    assert kind(1.9, now=elsewhere).kind == "unchanged"
    assert "the clients' own model was drawn anew" in kind(1.9, now=elsewhere).reason
    assert kind(2.1, now=elsewhere).kind == "regressed"
    assert "tolerance 2 dB; the clients' own model" in kind(2.1, now=elsewhere).reason.replace("(", "").replace(")", "")
    assert kind(1.4, now=elsewhere, seeds=3).kind == "regressed"  # 0.5 + 1.5 / sqrt(3)
    assert kind(1.3, now=elsewhere, seeds=3).kind == "unchanged"
    assert kind(1.0, now=[]).kind == "unchanged"


def test_many_victims_do_not_hide_how_seeds_differ() -> None:
    random = np.random.default_rng(0)
    covered = {}
    for seeds in (2, 3, 5):
        hits = []
        for _ in range(400):
            found = student([random.normal(random.normal(), 1, size=16).tolist() for _ in range(seeds)])
            hits.append(found.low <= 0 <= found.high)
        covered[seeds] = np.mean(hits)
    assert covered[2] >= 0.85
    assert covered[3] >= 0.90
    assert covered[5] >= 0.92


def test_the_trimmed_interval_is_yuens() -> None:
    from scipy.stats import mstats

    values = np.random.default_rng(0).standard_t(2, size=30).tolist()
    found = student([values], trim=0.2)
    assert [found.low, found.high] == pytest.approx(mstats.trimmed_mean_ci(values, limits=(0.2, 0.2)).tolist())


# One cell


def test_the_same_run_is_unchanged() -> None:
    found = change([record([1.0, 5.0, 3.0])], [record([1.0, 5.0, 3.0])])
    assert (found.kind, found.pairs, found.mean.mean) == ("unchanged", 3, 0.0)


def test_a_tolerance_is_accepted_and_can_be_set() -> None:
    before, after = [record([1.0, 2.0, 3.0, 4.0])], [record([1.41, 2.4, 3.4, 4.4])]
    assert change(before, after).kind == "unchanged"
    found = change(before, after, tolerance={"psnr_gain": 0.2})
    assert found.kind == "regressed"
    assert found.reason == "psnr_gain leaks 0.40 dB [0.39, 0.41] more than the baseline, on 4 pairs of one seed (tolerance 0.2 dB)"


def test_direction_follows_the_metric() -> None:
    lpips = ([0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.61, 0.7])
    before, after = (record({"lpips": values}, gate={"lpips": 0.3}) for values in lpips)
    assert compare_cell(before.key, {0: before}, {0: after}, metric="lpips").kind == "regressed"
    assert compare_cell(before.key, {0: after}, {0: before}, metric="lpips").kind == "improved"


def test_victims_of_a_smaller_run_are_paired_with_the_first_of_a_larger() -> None:
    long = [float(index) for index in range(16)]
    found = change([record(long)], [record([value + 2 for value in long[:8]])])
    assert (found.kind, found.pairs) == ("regressed", 8)
    assert found.mean.mean == pytest.approx(2)


def test_only_seeds_of_both_runs_are_paired() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    found = change([record(values, seed=seed) for seed in (0, 1)], [record(values, seed=seed) for seed in (1, 2)])
    assert (found.kind, found.seeds, found.pairs) == ("unchanged", (1,), 4)
    assert "no seed in common: 0 before, 2 now" in change([record(values)], [record(values, seed=2)]).reason


def test_other_images_are_not_paired() -> None:
    values = [1.0, 2.0, 3.0]
    found = change([record(values)], [record(values, blind=[10.0, 11.0, 19.0])])
    assert found.kind == "unpaired"
    assert found.reason == "victim 2 of seed 0 is another image: the data changed, write the baseline again"


def test_what_cannot_be_measured_any_more_is_a_regression() -> None:
    good, broken = record([1.0, 2.0]), record([1.0, None])
    assert change([good], [broken]).kind == "regressed"
    assert change([broken], [good]).kind == "unpaired"
    error = good.model_copy(update={"verdict": "error", "reason": "RuntimeError: my bad", "values": {}, "blind": ()})
    assert change([good], [error]).kind == "regressed"
    assert "error in this run: RuntimeError: my bad" in change([good], [error]).reason
    assert change([record([1.0])], [record([9.0])]).kind == "unpaired"


numbers = st.lists(st.floats(-50, 90), min_size=2, max_size=12)


@given(values=numbers, more=st.floats(0, 5), tolerance=st.floats(0, 2))
def test_leaking_less_is_never_a_regression(values: list[float], more: float, tolerance: float) -> None:
    found = change([record(values)], [record([value - more for value in values])], tolerance={"psnr_gain": tolerance})
    assert found.kind in ("unchanged", "improved")


@given(before=numbers, after=numbers)
def test_swapping_the_runs_swaps_the_verdict(before: list[float], after: list[float]) -> None:
    there, back = change([record(before)], [record(after)]), change([record(after)], [record(before)])
    if "regressed" in (there.kind, back.kind):
        typical = np.sign([there.mean.mean or 0, there.typical.mean or 0])
        assert {there.kind, back.kind} == {"regressed", "improved"} or typical.prod() <= 0
