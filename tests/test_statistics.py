"""Intervals over victims and seeds, leak rates, and verdicts that stop when they are decided: checked by simulation."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import special, stats

from gitbench.judge import statistics
from gitbench.judge.sequential import FIRST, at_look, confidence_at, decide, looks
from gitbench.judge.statistics import RESAMPLES, _quantiles, interval, wilson
from gitbench.judge.verdict import exposures, judge_results
from gitbench.run.bench import case_of
from gitbench.run.config import make_config
from gitbench.run.profiles import PROFILES
from gitbench.store.result import Environment, Measure, Result

STORED = json.loads((Path(__file__).parent / "reseeded.json").read_text())["cells"]
GATE = {"psnr_gain": 3.0}
CASE = case_of(
    attack="ig", defense="pruning(rate=0.5)", model="mlp", dataset="photos", threat="server", profile="quick", victims=1, batch_size=1, seed=0
)  # fmt: skip


def result(values: list[float | None], *, metric: str = "psnr_gain", seed: int = 0, error: str | None = None) -> Result:
    case = CASE.model_copy(update={"victims": len(values), "seed": seed})
    return Result(
        case=case, case_id=case.case_id, status="error" if error else "done", error=error, verdict="inconclusive", verdict_reason="",
        metrics={} if error else {metric: Measure(mean=0.0, low=0.0, high=0.0, values=tuple(values))}, finished_at="2026-01-01T00:00:00.000+00:00",
        environment=Environment(gitbench="0", torch="0", torchvision="0", python="0", platform="", device="cpu", threads=1),
    )  # fmt: skip


# Seeds are clusters


@pytest.mark.parametrize(("seeds", "apart", "least"), [(3, 0.0, 0.93), (3, 1.0, 0.90), (5, 0.0, 0.93), (5, 1.0, 0.92), (2, 1.0, 0.84)])
def test_the_interval_holds_the_mean_of_all_seeds(seeds: int, apart: float, least: float) -> None:
    # apart: by how much the seeds' own means differ, in units of the victims' spread.
    random = np.random.default_rng(0)
    hits = []
    for _ in range(250):
        found = interval([random.normal(apart * random.normal(), 1, 16).tolist() for _ in range(seeds)])
        hits.append(found.low <= 0 <= found.high)
    assert np.mean(hits) >= least


def test_victims_do_not_make_up_for_seeds() -> None:
    random = np.random.default_rng(0)
    many = [random.normal(centre, 1, 200).tolist() for centre in (0.0, 2.0, 4.0)]
    found = interval(many)
    assert found.high - found.low > 2 * 4.3 * np.std([0, 2, 4], ddof=1) / math.sqrt(3) * 0.8
    alone = interval(many[:1])
    assert alone.high - alone.low < 0.5  # one seed says nothing about others


@given(confidence=st.floats(0.5, 0.99), more=st.floats(0.0, 0.009))
def test_more_confidence_is_never_narrower(confidence: float, more: float) -> None:
    values = [[1.0, 2.0, 4.0, 8.0, 16.0]]
    less, wider = interval(values, confidence=confidence), interval(values, confidence=confidence + more)
    assert wider.low <= less.low <= less.high <= wider.high


# Leak rate and worst victim


@given(total=st.integers(1, 200), data=st.data())
def test_wilsons_interval_solves_its_equation(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, total))
    low, high = wilson(count, total)
    assert -1e-9 <= low <= count / total <= high <= 1 + 1e-9
    for bound in (low, high):  # the score test rejects just there
        if 1e-9 < bound < 1 - 1e-9:
            assert abs(count / total - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / total), rel=1e-4)


@pytest.mark.parametrize("total", [1, 2, 16, 64, 999])
def test_wilsons_interval_is_that_of_scipy(total: int) -> None:
    for count in {0, 1, total // 3, total - 1, total}:
        found = stats.binomtest(count, total).proportion_ci(confidence_level=0.95, method="wilson")
        assert wilson(count, total) == (found.low, found.high)  # to the last bit: reports hold it


@given(st.lists(st.lists(st.floats(-9, 9), min_size=1, max_size=20), min_size=1, max_size=3))
def test_what_was_asked_before_changes_no_interval(groups: list[list[float]]) -> None:
    first = interval(groups)
    interval(groups[:1])
    interval([[*group, 1.0] for group in groups])
    assert interval(groups) == first


def test_an_interval_is_the_expanded_bootstrap() -> None:
    """The slow, obvious version, but for the order in which a resample's values are added."""
    values = np.random.default_rng(1).normal(size=(2, 9))
    random, means = np.random.default_rng(0), np.zeros(RESAMPLES)
    for group in values:
        means += group[random.integers(0, 9, (RESAMPLES, 9))].T.copy().sum(axis=0) / 18
    share = special.ndtr(special.stdtrit(17, (1 - 0.95) / 2) * np.sqrt(18 / 17))
    low, high = np.quantile(means, [share, 1 - share])
    found = interval([list(group) for group in values])
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-13)


@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from(["normal", "equal", "two", "sorted", "heavy"]),
    st.floats(1e-6, 1 - 1e-6),
)
def test_percentiles_are_those_of_numpy(seed: int, kind: str, share: float) -> None:
    random = np.random.default_rng(seed)
    values = {
        "normal": random.normal(size=RESAMPLES),
        "equal": np.full(RESAMPLES, 0.3),
        "two": random.integers(0, 2, RESAMPLES) / 3,
        "sorted": np.sort(random.normal(size=RESAMPLES)),
        "heavy": random.standard_cauchy(RESAMPLES),
    }[kind]
    assert _quantiles(values, (share, 1 - share)) == pytest.approx(np.quantile(values, [share, 1 - share]), rel=1e-12, abs=1e-15)


def test_a_mean_that_holds_names_the_victim_that_it_hides() -> None:
    values = [0.0] * 30 + [3.0, 14.5]
    control = result([20.0, 21.0, 22.0])
    judgement = judge_results([result(values)], [control], gate=GATE)
    assert judgement.verdict == "holds"
    assert judgement.reason.endswith("; 2 of 32 victims are past it (6 % [2, 20]), the worst is victim 31 of seed 0 with 14.50 dB")


def test_the_worst_victim_is_sought_in_all_seeds_and_knows_the_direction() -> None:
    found = exposures([result([1.0, 5.0]), result([9.0, 2.0], seed=1)], GATE)["psnr_gain"]
    assert (found.leaked, found.victims, found.worst, found.worst_victim, found.worst_seed) == (2, 4, 9.0, 0, 1)
    found = exposures([result([0.5, 0.1, 0.2], metric="lpips")], {"lpips": 0.2})["lpips"]
    assert (found.leaked, found.worst, found.worst_victim) == (2, 0.1, 1)
    assert exposures([result([None, None])], GATE) == {}
    assert exposures([result([None, 4.0])], GATE)["psnr_gain"].worst_victim == 1


# Sequential


def test_looks_double_up_to_the_profiles_bound() -> None:
    assert looks(8, 64) == (8, 16, 32, 64)
    assert looks(8, 100) == (8, 16, 32, 64)
    assert looks(8, 8) == looks(8, 3) == (8,)
    for name, profile in PROFILES.items():
        config = make_config({"profile": name, "victims": "auto"}, {})
        assert config.looks == looks(FIRST, profile.most_victims)
        assert config.number_of_victims == "auto"
        assert make_config({"profile": name}, {}).looks == (profile.victims,)


def test_the_looks_share_one_error_probability() -> None:
    planned = looks(8, 64)
    spent = [1 - confidence_at(victims, planned) for victims in planned]
    assert sum(spent) == pytest.approx(0.05)
    assert spent == sorted(spent)
    assert confidence_at(32, (32,)) == pytest.approx(0.95)


def wrong(draw, mean: float, planned: tuple[int, ...], estimate) -> float:
    """How often any look puts the whole interval on one side of a threshold that *is* the true mean."""
    count = 0
    for _ in range(500):
        values = draw(planned[-1]).tolist()
        found = [estimate([values[:victims]]) for victims in planned]
        count += any(one.low >= mean or one.high < mean for one in found)
    return count / 500


@pytest.mark.parametrize("name", ["none/ridge", "none/dlg", "none/gias", "normal"])
def test_looking_often_does_not_inflate_the_error(name: str) -> None:
    random = np.random.default_rng(5)
    planned = looks(8, 64)
    if name == "normal":
        draw, mean = functools.partial(random.normal, 0.0, 1.0), 0.0
    else:
        values = np.array(STORED[name])[:, 0]
        draw, mean = functools.partial(random.choice, values), float(values.mean())
    assert wrong(draw, mean, planned, functools.partial(at_look, planned=planned)) <= 0.07  # 5 %, and twice the error of 500 runs
    if name == "normal":
        assert wrong(draw, mean, planned, interval) >= 0.10  # what happens without sharing


def test_it_stops_when_the_verdict_is_decided_and_takes_the_first_victims() -> None:
    seen = []
    random = np.random.default_rng(0)
    values = (3.4 + random.normal(size=64)).tolist()

    def measure(victims: int, centre: float = 0.0):
        seen.append(victims)
        return [result([value + centre for value in values[:victims]])], [result([20.0, 21.0, 22.0] * 3)]

    decision = decide(functools.partial(measure, centre=9.0), planned=looks(8, 64), gate=GATE)
    assert (decision.judgement.verdict, seen) == ("leaks", [8])
    seen.clear()
    decision = decide(measure, planned=looks(8, 64), gate=GATE)
    assert len(seen) > 1
    assert decision.results[0].case.victims == seen[-1]
    seen.clear()
    decision = decide(functools.partial(measure, centre=-0.4 - float(np.mean(values)) + 3.4), planned=looks(8, 64), gate=GATE)
    assert (decision.judgement.verdict, seen) == ("inconclusive", [8, 16, 32, 64])
    assert decision.judgement.reason.startswith("undecided at 64 victims")


def test_too_few_images_leave_the_last_verdict() -> None:
    def measure(victims: int):
        short = victims > 16
        return [result([2.0, 4.0] * (victims // 2), error="64 images needed" if short else None)], [result([20.0, 21.0, 22.0] * 3)]

    decision = decide(measure, planned=looks(8, 64), gate=GATE)
    assert decision.judgement.verdict == "inconclusive"
    assert decision.judgement.reason.endswith("; 32 victims could not be measured: 64 images needed")
    assert decision.results[0].case.victims == 16


def test_a_control_that_surely_fails_ends_it_and_one_that_may_leak_does_not() -> None:
    for control, last in (([0.0, 0.1] * 4, 8), ([2.0, 4.5] * 4, 64)):

        def measure(victims: int, control: list[float] = control):
            return [result([1.0, 0.5] * (victims // 2))], [result(control)]

        decision = decide(measure, planned=looks(8, 64), gate=GATE)
        assert decision.judgement.control_failed
        assert decision.results[0].case.victims == last


def test_an_error_at_the_first_look_is_told() -> None:
    decision = decide(lambda victims: ([result([0.0] * victims, error="boom")], None), planned=looks(8, 64), gate=GATE)
    assert "boom" in decision.judgement.reason


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60), st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_quantiles_are_those_of_numpy(values: list[float], shares: list[float]) -> None:
    assert statistics._quantiles(np.array(values), shares) == np.quantile(np.array(values), shares).tolist()
