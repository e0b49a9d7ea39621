"""Victims until the verdict is decided: looks at growing numbers of them, which share one error probability."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gitbench.identity.case import Case
from gitbench.judge.statistics import CONFIDENCE, Interval, interval, student
from gitbench.judge.verdict import Estimate, Judgement, judge_results, pooled, side
from gitbench.store.result import Result

FIRST = 8

Measure = Callable[[int], tuple[Sequence[Result], Sequence[Result] | None]]
"""From a number of victims to a cell's results and its controls' (None where the cell is the control)."""


@dataclass(frozen=True)
class Decision:
    """The look at which it ended: its results, its verdict, and how its intervals are made."""

    results: Sequence[Result]
    judgement: Judgement
    estimate: Estimate

    def interval_of(self, metric: str) -> Interval:
        """Mean and interval of a metric over all seeds; unknown where a case ended in an error."""
        if any(result.status != "done" for result in self.results):
            return Interval(None, None, None)
        return pooled(self.results, {metric: None}, estimate=self.estimate)[metric]


def looks(first: int, most: int) -> tuple[int, ...]:
    """Doubling numbers of victims: 8, 16, 32, ... up to ``most``."""
    found = [first]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return tuple(found)


def confidence_at(victims: int, planned: Sequence[int]) -> float:
    """Confidence of one look's intervals.

    The error that one look may make (5 %) is divided among all planned looks by the square of their victims
    (alpha spending): whenever it stops, all intervals so far hold together in 95 % of runs.
    """
    return 1 - (1 - CONFIDENCE) * victims**2 / sum(number**2 for number in planned)


def at_look(groups: Sequence[Sequence[float | None]], *, planned: Sequence[int]) -> Interval:
    """The interval of the look that has this many victims: the bootstrap's or Student's, whichever reaches further.

    The tails that a first look needs are beyond what eight victims resampled can show.
    """
    confidence = confidence_at(len(groups[0]) if groups else 0, planned)
    found = interval(groups, confidence=confidence)
    if found.mean is None or found.low is None or found.high is None:
        return found
    other = student([[value for value in group if value is not None] for group in groups], confidence=confidence)
    if other.low is None or other.high is None:
        return Interval(found.mean, None, None)
    return Interval(found.mean, min(found.low, other.low), max(found.high, other.high))


def decide_cell(measure: Callable[[Case], Result], cases: Sequence[Case], *, planned: Sequence[int], gate: Mapping[str, float]) -> Decision:
    """Measure a cell, and its control where it is none itself.

    Args:
        measure: from a case to its result.
        cases: of the cell, one for each seed.
        planned: growing numbers of victims, of which as many are measured as the verdict takes; or the one that it is judged by.
        gate: metric to threshold.
    """

    def look(victims: int) -> tuple[Sequence[Result], Sequence[Result] | None]:
        sized = [case.model_copy(update={"victims": victims}) for case in cases]
        results = [measure(case) for case in sized]
        return results, None if cases[0].is_control else [measure(case.control()) for case in sized]

    if len(planned) > 1:
        return decide(look, planned=planned, gate=gate)
    results, controls = look(planned[0])
    return Decision(results, judge_results(results, controls, gate=gate), interval)


def decide(measure: Measure, *, planned: Sequence[int], gate: Mapping[str, float]) -> Decision:
    """Measure at one planned number of victims after the other, until the verdict is decided.

    A later look that cannot be measured (too few images, say) leaves the verdict of the one before.
    """
    last: Decision | None = None
    estimate = functools.partial(at_look, planned=planned)
    for victims in planned:
        results, controls = measure(victims)
        errors = [result.error for result in (*results, *(controls or ())) if result.status == "error"]
        if errors and last is not None:
            reason = f"{last.judgement.reason}; {victims} victims could not be measured: {errors[0]}"
            return dataclasses.replace(last, judgement=dataclasses.replace(last.judgement, reason=reason))
        judgement = judge_results(results, controls, gate=gate, estimate=estimate)
        last = Decision(results, judgement, estimate)
        if errors or judgement.late or _decided(judgement, controls, gate, estimate):
            break
    if last is None:
        raise ValueError("Expected at least one planned look, got none.")
    return last


def _decided(
    judgement: Judgement,
    controls: Sequence[Result] | None,
    gate: Mapping[str, float],
    estimate: Estimate,
) -> bool:
    if judgement.verdict != "inconclusive":
        return True
    if not judgement.control_failed or controls is None:
        return False
    # More victims help as long as the control may still turn out to leak.
    found = pooled(controls, gate, estimate=estimate)
    return any(side(metric, found[metric], threshold) == "holds" for metric, threshold in gate.items())
