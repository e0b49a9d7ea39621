"""When does a cell pass? The gate fails closed: only evidence of the whole interval acquits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from gitbench.core import figures
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.cost import accuracy_drop
from gitbench.judge.flags import STILL_IMPROVING, blocking, explained
from gitbench.judge.statistics import Interval, interval, wilson
from gitbench.store.result import TIMED_OUT, Exposure, Measure, Result, Verdict

Estimate = Callable[[Sequence[Sequence[float | None]]], Interval]
"""From one sequence of per-victim values per seed to the interval of their mean."""

_UNKNOWN = Interval(None, None, None)
DEFAULT_GATE: dict[str, float] = {"psnr_gain": 3.0}


@dataclass(frozen=True)
class Judgement:
    """A verdict, why, and what left it open: the control, a flag that no defense may hold with, or the time."""

    verdict: Verdict
    reason: str
    control_failed: bool = False
    blocked: bool = False
    late: bool = False

    @property
    def word(self) -> str:
        """The verdict as tables show it: an inconclusive one says what left it open."""
        if self.late:
            return "timed out"
        if self.control_failed:
            return "no control"
        if self.blocked:
            return "no success"
        return "undecided" if self.verdict == "inconclusive" else self.verdict


def side(metric: str, interval: Interval, threshold: float) -> Verdict:
    """On which side of the threshold the whole interval lies (``inconclusive``: on neither)."""
    low, high = interval.low, interval.high
    if low is None or high is None:
        return "inconclusive"
    if not known_metrics()[metric].higher_leaks:
        low, high, threshold = -high, -low, -threshold
    if low >= threshold:
        return "leaks"
    return "holds" if high < threshold else "inconclusive"


def judge(
    intervals: Mapping[str, Interval],
    *,
    gate: Mapping[str, float],
    control: Mapping[str, Interval] | None,
    victims: int,
) -> Judgement:
    """Judge one cell.

    Args:
        intervals: metric name to interval, of the cell.
        gate: metric name to threshold; the cell leaks when any metric does, and holds when all do.
        control: the same of the undefended cell, or None when the cell *is* the control.
        victims: how many victims stand behind the intervals, for the advice.
    """
    judged = [_one(metric, threshold, intervals, control, victims) for metric, threshold in gate.items()]
    for judgement in judged:
        if judgement.verdict == "leaks":
            return judgement
    # A metric that is undecided comes before one whose control failed: the latter excuses the attack, not the defense.
    for judgement in sorted(judged, key=lambda one: one.control_failed):
        if judgement.verdict == "inconclusive":
            return judgement
    if not judged:
        return Judgement("inconclusive", "no threshold was set, so nothing was judged")
    failed = any(judgement.control_failed for judgement in judged)
    return Judgement("holds", "; ".join(judgement.reason for judgement in judged), control_failed=failed)


def judge_results(
    results: Sequence[Result],
    controls: Sequence[Result] | None,
    *,
    gate: Mapping[str, float],
    estimate: Estimate = interval,
    past: Mapping[str, Exposure] | None = None,
) -> Judgement:
    """Judge a cell on all its seeds together. The reason names the victims that the mean hides.

    Args:
        results: of the cell.
        controls: of the undefended cell, or None when the cell *is* the control.
        gate: metric name to threshold.
        estimate: from values per seed to an interval.
        past: what :func:`exposures` finds, where that is known already.
    """
    for result in [*results, *(controls or ())]:
        if result.status == "error":
            whose = "the control" if result not in results else "this cell"
            return Judgement("inconclusive", f"{whose} ended in an error: {result.error}", control_failed=result not in results)
    late = _late(results, controls or (), gate)
    if late is not None:
        return late
    found = judge(
        pooled(results, gate, estimate=estimate),
        gate=gate,
        control=pooled(controls, gate, estimate=estimate) if controls is not None else None,
        victims=sum(result.case.victims for result in results),
    )
    told = [exposure_text(metric, one) for metric, one in (exposures(results, gate) if past is None else past).items()]
    open_ones = (controls if found.control_failed else None) or results
    if found.word not in ("leaks", "holds") and any(STILL_IMPROVING in result.flags for result in open_ones):
        told.append("the attack still improves: raise its budget")
    found = dataclasses.replace(found, reason="; ".join([found.reason, *told]))
    doubts = blocking(results)
    if doubts and found.verdict == "holds":
        return Judgement("inconclusive", f"{found.reason}; but that is no success: {explained(doubts)}", blocked=True)
    return _with_cost(found, results) if controls is not None else found


def _with_cost(found: Judgement, results: Sequence[Result]) -> Judgement:
    """A defense that holds, and is surely within the accuracy that it may cost; otherwise it is no success, or undecided."""
    limit = next((result.accuracy_drop_limit for result in results), None)
    if limit is None or found.verdict != "holds" or found.control_failed:
        return found
    drop = accuracy_drop(results)
    if drop is None:
        return Judgement("inconclusive", f"{found.reason}; what it costs was not measured")
    text = f"it costs {drop.shown(sign=True)} of accuracy"
    if drop.low > limit:
        return Judgement("inconclusive", f"{found.reason}; but that is no success: {text}, more than {limit:g} %", blocked=True)
    if drop.high > limit:
        return Judgement("inconclusive", f"{found.reason}; {text}, which straddles {limit:g} %: test on more public images, or more seeds")
    return dataclasses.replace(found, reason=f"{found.reason}; {text}, at most {limit:g} %")


def _late(results: Sequence[Result], controls: Sequence[Result], gate: Mapping[str, float]) -> Judgement | None:
    """What ran out of time proves nothing, whatever it had by then: another machine would have had more, or less."""
    for whose, found in (("this cell", results), ("the control", controls)):
        timeouts = [result.timeout for result in found if TIMED_OUT in result.flags]
        if timeouts:
            limit = "" if timeouts[0] is None else f" after {timeouts[0]:g} s"
            had = "; ".join(
                f"{metric} {figures.figure(known_metrics()[metric], one.mean, one.low, one.high, unit=False)}"
                for metric, one in pooled(found, gate).items()
                if one.mean is not None
            )
            reason = f"{whose} timed out{limit}: raise --gitbench-timeout ({f'it had {had}' if had else 'it had nothing yet'})"
            return Judgement("inconclusive", reason, late=True)
    return None


def exposures(results: Sequence[Result], gate: Mapping[str, float]) -> dict[str, Exposure]:
    """The victims of all seeds past each threshold, and the worst; nothing of a metric that no victim has.

    Wilson's interval takes the victims as independent: seeds that differ are not widened for, as the mean's are.
    """
    found = {}
    for metric, threshold in gate.items():
        sign = known_metrics()[metric].sign
        values = [
            (sign * value, result.case.seed, victim)
            for result in results
            if metric in result.metrics
            for victim, value in enumerate(result.metrics[metric].values)
            if value is not None
        ]
        if not values:
            continue
        leaked = sum(value >= sign * threshold for value, _, _ in values)
        worst, seed, victim = max(values, key=lambda one: one[0])
        low, high = wilson(leaked, len(values))
        found[metric] = Exposure(
            leaked=leaked, victims=len(values), share=leaked / len(values), low=low, high=high,
            worst=sign * worst, worst_victim=victim, worst_seed=seed,
        )  # fmt: skip
    return found


def exposure_text(metric: str, found: Exposure) -> str:
    """``3 of 16 victims are past it (19 % [7, 43]), the worst is victim 2 of seed 0 with 7.10 dB``."""
    share = f"{100 * found.share:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"
    worst = figures.figure(known_metrics()[metric], found.worst)
    past = f"{found.leaked} of {found.victims} victims {'is' if found.leaked == 1 else 'are'} past it"
    return f"{past} ({share}), the worst is victim {found.worst_victim} of seed {found.worst_seed} with {worst}"


def pooled(results: Sequence[Result], metrics: Collection[str], *, estimate: Estimate = interval) -> dict[str, Interval]:
    """Intervals over the victims of all seeds."""
    empty = Measure(mean=None, low=None, high=None, values=())
    return {name: estimate([result.metrics.get(name, empty).values for result in results]) for name in metrics}


def _one(
    metric: str,
    threshold: float,
    intervals: Mapping[str, Interval],
    control: Mapping[str, Interval] | None,
    victims: int,
) -> Judgement:
    found = intervals.get(metric, _UNKNOWN)
    if found.mean is None:
        return Judgement("inconclusive", f"{metric} could not be measured")
    shown, limit = _shown(metric, found), figures.limit(known_metrics()[metric], threshold)
    verdict = side(metric, found, threshold)
    if verdict == "leaks":
        return Judgement("leaks", f"{shown} is past the threshold of {limit}")
    doubt = "" if control is None else _doubt(metric, control.get(metric, _UNKNOWN), threshold, limit)
    if doubt:
        return Judgement("inconclusive", doubt, control_failed=True)
    if verdict == "holds":
        if control is None:
            return Judgement("holds", f"undefended, yet {shown} stays under {limit}: no control here", control_failed=True)
        return Judgement("holds", f"{shown} stays under {limit}")
    advice = f"undecided at {victims} victims: raise --gitbench-victims"
    return Judgement("inconclusive", f"{advice} ({shown} straddles {limit})", control_failed=control is None)


def _doubt(metric: str, control: Interval, threshold: float, limit: str) -> str:
    """Why a control acquits nobody, with the bound that decided; empty where it leaks."""
    verdict, higher = side(metric, control, threshold), known_metrics()[metric].higher_leaks
    if verdict == "leaks":
        return ""
    nothing = "this attack proves nothing here"
    if control.mean is None:
        return f"the control is not shown to leak (undefended, {metric} was not measured): {nothing}"
    shown = f"undefended, {_shown(metric, control)}"
    if verdict == "holds":
        return f"the control does not leak ({shown} lies {'below' if higher else 'above'} {limit}): {nothing}"
    bound = "has no interval" if control.low is None else f"{'starts below' if higher else 'ends above'} {limit}"
    return f"the control is not shown to leak ({shown} {bound}): {nothing}; more victims narrow the interval, raise --gitbench-victims"


def _shown(metric: str, found: Interval) -> str:
    assert found.mean is not None
    unknown = " [unknown]" if found.low is None or found.high is None else ""
    return f"{metric} {figures.figure(known_metrics()[metric], found.mean, found.low, found.high, unit=False)}{unknown}"
