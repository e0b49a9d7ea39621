"""Verdicts: the gate fails closed, and a reason names the bound that decided."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.core import figures
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.statistics import Interval, interval
from gitbench.judge.verdict import DEFAULT_GATE, Judgement, judge, judge_results, pooled, side
from gitbench.run.bench import case_of
from gitbench.store.result import Environment, Measure, Result

GATE = {"psnr_gain": 3.0}
LEAKS, HOLDS, STRADDLES = Interval(9.0, 8.0, 10.0), Interval(0.5, 0.0, 1.0), Interval(3.0, 2.0, 4.0)
UNKNOWN = Interval(None, None, None)
finite = st.floats(-100, 100)


def one(found: Interval, control: Interval | None, *, metric: str = "psnr_gain", threshold: float = 3.0, victims: int = 16) -> Judgement:
    return judge({metric: found}, gate={metric: threshold}, control=None if control is None else {metric: control}, victims=victims)


@pytest.mark.parametrize(
    ("found", "control", "verdict", "control_failed", "reason"),
    [
        (LEAKS, LEAKS, "leaks", False, r"psnr_gain 9\.00 \[8\.00, 10\.00\] is past the threshold of 3 dB"),
        (HOLDS, LEAKS, "holds", False, r"psnr_gain 0\.50 \[0\.00, 1\.00\] stays under 3 dB"),
        (STRADDLES, LEAKS, "inconclusive", False, r"undecided at 16 victims: raise --gitbench-victims .*straddles 3 dB"),
        # An attack that fails its control acquits nobody, but what leaks, leaks.
        (
            HOLDS,
            HOLDS,
            "inconclusive",
            True,
            r"the control does not leak \(undefended, psnr_gain 0\.50 \[0\.00, 1\.00\] lies below 3 dB\): this attack proves nothing here$",
        ),
        (
            HOLDS,
            STRADDLES,
            "inconclusive",
            True,
            r"control is not shown to leak \(undefended, psnr_gain 3\.00 \[2\.00, 4\.00\] starts below 3 dB\)",
        ),
        (STRADDLES, HOLDS, "inconclusive", True, r"the control does not leak"),
        (LEAKS, HOLDS, "leaks", False, r"past the threshold"),
        (HOLDS, UNKNOWN, "inconclusive", True, r"the control is not shown to leak \(undefended, psnr_gain was not measured\)"),
        (HOLDS, Interval(9.0, None, None), "inconclusive", True, r"psnr_gain 9\.00 \[unknown\] has no interval\).* --gitbench-victims"),
        # The control itself.
        (LEAKS, None, "leaks", False, r"past the threshold"),
        (HOLDS, None, "holds", True, r"undefended, yet psnr_gain 0\.50 .* stays under 3 dB: no control here"),
        (STRADDLES, None, "inconclusive", True, r"undecided at 16 victims: raise --gitbench-victims"),
        # What could not be measured.
        (UNKNOWN, LEAKS, "inconclusive", False, r"psnr_gain could not be measured"),
        (UNKNOWN, None, "inconclusive", False, r"psnr_gain could not be measured"),
        (Interval(0.5, None, None), LEAKS, "inconclusive", False, r"raise --gitbench-victims .*psnr_gain 0\.50 \[unknown\]"),
        (Interval(99.0, None, None), LEAKS, "inconclusive", False, r"raise --gitbench-victims"),
        (Interval(math.nan, math.nan, math.nan), LEAKS, "inconclusive", False, ""),
        # The threshold itself leaks.
        (Interval(3.0, 3.0, 3.0), LEAKS, "leaks", False, ""),
        (Interval(3.5, 3.0, 4.0), LEAKS, "leaks", False, ""),
        (Interval(2.5, 2.0, 3.0), LEAKS, "inconclusive", False, ""),
        (Interval(2.5, 2.0, 2.999), LEAKS, "holds", False, ""),
    ],
)
def test_the_verdict_table(found: Interval, control: Interval | None, verdict: str, control_failed: bool, reason: str) -> None:
    judgement = one(found, control)
    assert (judgement.verdict, judgement.control_failed) == (verdict, control_failed)
    assert re.search(reason, judgement.reason), judgement.reason


@pytest.mark.parametrize("metric", [name for name, info in known_metrics().items() if not info.higher_leaks])
def test_small_distances_leak(metric: str) -> None:
    near, far = Interval(0.05, 0.01, 0.09), Interval(0.5, 0.4, 0.6)
    assert side(metric, near, 0.1) == "leaks"
    assert side(metric, far, 0.1) == "holds"
    assert side(metric, Interval(0.1, 0.05, 0.15), 0.1) == "inconclusive"
    assert side(metric, Interval(0.1, 0.1, 0.1), 0.1) == "leaks"
    assert one(far, near, metric=metric, threshold=0.1).verdict == "holds"
    assert one(near, near, metric=metric, threshold=0.1).verdict == "leaks"
    assert one(far, far, metric=metric, threshold=0.1).control_failed


@pytest.mark.parametrize("metric", [name for name, info in known_metrics().items() if info.higher_leaks])
def test_large_similarities_leak(metric: str) -> None:
    assert side(metric, Interval(0.9, 0.8, 0.95), 0.5) == "leaks"
    assert side(metric, Interval(0.1, 0.0, 0.2), 0.5) == "holds"


def test_mse_lpips_and_edits_are_distances() -> None:
    assert {name for name, info in known_metrics().items() if not info.higher_leaks} == {"mse", "lpips", "edit_distance"}
    assert [figures.arrow(known_metrics()[name]) for name in ("psnr", "mse")] == ["↑", "↓"]
    assert DEFAULT_GATE == GATE


@pytest.mark.parametrize(
    ("psnr", "lpips", "verdict"),
    [
        ("holds", "holds", "holds"),
        ("holds", "leaks", "leaks"),
        ("leaks", "holds", "leaks"),
        ("straddles", "leaks", "leaks"),
        ("holds", "straddles", "inconclusive"),
        ("straddles", "holds", "inconclusive"),
        ("missing", "holds", "inconclusive"),
        ("holds", "missing", "inconclusive"),
        ("missing", "leaks", "leaks"),
    ],
)
def test_several_gates_leak_when_one_does_and_hold_when_all_do(psnr: str, lpips: str, verdict: str) -> None:
    far = {"holds": Interval(0.5, 0.4, 0.6), "leaks": Interval(0.05, 0.01, 0.09), "straddles": Interval(0.1, 0.05, 0.2)}
    intervals: dict[str, Interval] = {}
    if psnr != "missing":
        intervals["psnr_gain"] = {"holds": HOLDS, "leaks": LEAKS, "straddles": STRADDLES}[psnr]
    if lpips != "missing":
        intervals["lpips"] = far[lpips]
    judgement = judge(intervals, gate={"psnr_gain": 3.0, "lpips": 0.1}, control={"psnr_gain": LEAKS, "lpips": far["leaks"]}, victims=16)
    assert judgement.verdict == verdict
    if verdict == "holds":
        assert "psnr_gain" in judgement.reason
        assert "lpips" in judgement.reason


def test_a_control_is_doubted_by_the_bound_that_decided() -> None:
    # A mean past the threshold does not contradict the reason: the interval is named.
    wide = one(HOLDS, Interval(8.23, -10.0, 26.0)).reason
    assert wide.startswith("the control is not shown to leak (undefended, psnr_gain 8.23 [-10.00, 26.00] starts below 3 dB): ")
    assert wide.endswith("more victims narrow the interval, raise --gitbench-victims")
    distance = one(Interval(0.9, 0.8, 1.0), Interval(0.1, 0.0, 0.5), metric="lpips", threshold=0.2).reason
    assert "lpips 0.1000 [0.0000, 0.5000] ends above 0.2" in distance
    assert "lies above 0.2" in one(Interval(0.9, 0.8, 1.0), Interval(0.9, 0.8, 1.0), metric="lpips", threshold=0.2).reason
    # More victims do not help where the whole interval is on the wrong side.
    assert "--gitbench-victims" not in one(HOLDS, HOLDS).reason


def test_every_gate_needs_a_control_that_leaks() -> None:
    holds = {"psnr_gain": HOLDS, "ssim": Interval(0.1, 0.0, 0.2)}
    judgement = judge(holds, gate={"psnr_gain": 3.0, "ssim": 0.5}, control={"psnr_gain": LEAKS}, victims=16)
    assert (judgement.verdict, judgement.control_failed) == ("inconclusive", True)


def test_without_a_gate_nothing_is_judged() -> None:
    assert judge({"psnr_gain": HOLDS}, gate={}, control={"psnr_gain": LEAKS}, victims=16).verdict == "inconclusive"


possible = st.one_of(finite, st.none(), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(
    groups=st.lists(st.lists(possible, max_size=5), max_size=3),
    spoil=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    metric=st.sampled_from(sorted(known_metrics())),
    threshold=finite,
    control=st.sampled_from([LEAKS, HOLDS, UNKNOWN, Interval(-1e9, -1e9, -1e9), Interval(1e9, 1e9, 1e9)]) | st.none(),
)
def test_a_missing_value_never_holds(
    groups: list[list[float | None]], spoil: float | None, metric: str, threshold: float, control: Interval | None
) -> None:
    assert one(interval([*groups, [spoil, 1.0]]), control, metric=metric, threshold=threshold).verdict == "inconclusive"
    if any(value is None or not math.isfinite(value) for group in groups for value in group) or not all(groups) or not groups:
        assert one(interval(groups), control, metric=metric, threshold=threshold).verdict == "inconclusive"


@given(low=finite, width=st.floats(0, 50), threshold=finite, metric=st.sampled_from(sorted(known_metrics())))
def test_holds_is_said_only_of_whole_intervals_beside_a_leaking_control(low: float, width: float, threshold: float, metric: str) -> None:
    found = Interval(low + width / 2, low, low + width)
    for control in (LEAKS, HOLDS, UNKNOWN):
        if one(found, control, metric=metric, threshold=threshold).verdict == "holds":
            safe = found.high < threshold if known_metrics()[metric].higher_leaks else found.low > threshold
            assert safe
            assert side(metric, control, threshold) == "leaks"


def test_an_undecided_metric_is_not_hidden_by_another_whose_control_failed() -> None:
    intervals = {"ssim": Interval(0.5, 0.4, 0.6), "psnr_gain": Interval(3.0, 1.0, 5.0)}
    control = {"ssim": Interval(0.6, 0.5, 0.7), "psnr_gain": Interval(20.0, 19.0, 21.0)}
    for gate in ({"ssim": 0.9, "psnr_gain": 3.0}, {"psnr_gain": 3.0, "ssim": 0.9}):
        found = judge(intervals, gate=gate, control=control, victims=16)
        assert (found.word, found.control_failed) == ("undecided", False)


# Verdicts of results


def result(
    values: tuple[float | None, ...],
    *,
    flags: tuple[str, ...] = (),
    defense: str = "pruning(rate=0.9)",
    seed: int = 0,
    error: str | None = None,
) -> Result:
    case = case_of(
        attack="ig",
        defense=defense,
        model="lenet",
        dataset="photos",
        threat="server",
        profile="quick",
        victims=len(values),
        batch_size=1,
        seed=seed,
    )
    bounds = interval([values])
    return Result(
        case=case,
        case_id=case.case_id,
        status="error" if error else "done",
        error=error,
        verdict=None,
        verdict_reason="",
        flags=flags,
        metrics={} if error else {"psnr_gain": Measure(mean=bounds.mean, low=bounds.low, high=bounds.high, values=values)},
        environment=Environment(gitbench="0", torch="2", torchvision="0", python="3", platform="Linux", device="cpu", threads=2),
        finished_at="2025-01-01T00:00:00+00:00",
    )


def test_seeds_are_judged_together() -> None:
    weak, strong = (0.0, 0.5, 1.0, 0.5), (9.0, 8.0, 9.5, 8.5)
    control = [result(strong, defense="none", seed=seed) for seed in range(2)]
    assert judge_results([result(weak), result(weak, seed=1)], control, gate=GATE).verdict == "holds"
    judgement = judge_results([result(weak), result(strong, seed=1)], control, gate=GATE)
    assert judgement.verdict == "inconclusive"
    assert "at 8 victims" in judgement.reason
    assert pooled([result(weak), result(weak, seed=1)], GATE)["psnr_gain"].mean == pytest.approx(0.5)
    assert judge_results([result(strong)], control[:1], gate=GATE).verdict == "leaks"
    assert judge_results([result(weak)], [], gate=GATE).control_failed  # a control that was never run
    assert judge_results(control, None, gate=GATE).verdict == "leaks"


def test_errors_and_missing_values_never_hold() -> None:
    control, weak = [result((9.0, 8.0), defense="none")], (0.0, 0.1)
    for found, controls, reason in (
        ([result(weak), result(weak, seed=1, error="boom")], control, "this cell ended in an error: boom"),
        ([result(weak)], [result(weak, defense="none", error="boom")], "the control ended in an error: boom"),
        ([result((0.0, None))], control, "could not be measured"),
        ([result(weak), result((None, None), seed=1)], control, "could not be measured"),
        ([], control, "could not be measured"),
        ([result(weak)], [result((9.0, None), defense="none")], "the control is not shown to leak"),
    ):
        judgement = judge_results(found, controls, gate=GATE)
        assert judgement.verdict == "inconclusive"
        assert reason in judgement.reason
    assert judge_results([result(weak)], control, gate={"ssim": 0.5}).verdict == "inconclusive"  # a metric that nobody measured


def test_a_reason_says_what_cures() -> None:
    weak, wide, strong = (0.0, 0.5, 1.0, 0.5), (-20.0, 30.0, 2.0, 25.0), (9.0, 8.0, 9.5, 8.5)
    budget, victims = "the attack still improves: raise its budget", "raise --gitbench-victims"
    for values, control, expected in (
        (weak, result(weak, defense="none"), set()),
        (weak, result(weak, defense="none", flags=("still-improving",)), {budget}),
        (weak, result(wide, defense="none"), {victims}),
        (weak, result(wide, defense="none", flags=("still-improving",)), {budget, victims}),
        (wide, result(strong, defense="none"), {victims}),
        (strong, result(strong, defense="none", flags=("still-improving",)), set()),
    ):
        reason = judge_results([result(values)], [control], gate=GATE).reason
        assert {cure for cure in (budget, victims) if cure in reason} == expected, reason
    own = result(weak, defense="none", flags=("still-improving",))
    assert budget in judge_results([own], None, gate=GATE).reason
    assert budget not in judge_results([result(weak, flags=("still-improving",))], [result(strong, defense="none")], gate=GATE).reason
