"""Does a cell leak more than it did? Paired by victim: the same images, the same seeds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gitbench.core.figures import figure, limit
from gitbench.identity.case import UNDEFENDED
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.statistics import Interval, student
from gitbench.judge.verdict import DEFAULT_GATE
from gitbench.publish.baseline import CellKey, Cells, Record

CONFIDENCE = 0.975  # of each of the two means, so that both intervals hold together in 95 % of comparisons
TRIM = 0.2  # off either end: what 32 victims of which a few go astray are judged by
BLIND_DIGITS = 0.01  # dB by which the blind guess may differ between machines
DRAWN_ANEW = 3  # tolerances (1.5 dB) that another draw of the clients' model is granted with one seed, whose victims share it
_SAME_DRAW = 0.1  # of a fingerprint's length: machines differ by far less, another draw by about all of it

_UNKNOWN = Interval(None, None, None)

Kind = Literal["regressed", "improved", "unchanged", "unpaired"]


@dataclass(frozen=True)
class Change:
    """One cell and metric in two runs. Differences are in the metric's unit; positive means that more leaks.

    Args:
        mean: of the paired differences, with its interval.
        typical: the trimmed mean, which a few victims that went astray do not move.
        pairs: how many victims both runs have, all seeds together.
        seeds: seeds that both have.
        reason: why it regressed, why it cannot be compared, or what it was granted.
    """

    key: CellKey
    metric: str
    kind: Kind
    reason: str = ""
    mean: Interval = _UNKNOWN
    typical: Interval = _UNKNOWN
    pairs: int = 0
    seeds: tuple[int, ...] = ()
    before: str = ""
    after: str = ""

    @property
    def blind_below(self) -> float | None:
        """The smallest change of the typical victim that would have counted as certain."""
        mean, low = self.typical.mean, self.typical.low
        return None if mean is None or low is None else mean - low


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Args:
        changes: one per cell and metric that both have.
        gone: cells of the earlier run that the later one lacks.
        new: cells of the later run that the earlier one lacks.
        differs: what else differs: versions, machine, code, settings.
    """

    changes: tuple[Change, ...]
    gone: tuple[CellKey, ...]
    new: tuple[CellKey, ...]
    differs: tuple[str, ...]

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.kind == "regressed")

    @property
    def idle(self) -> bool:
        """Whether there are defended cells, on whichever side, and none was compared: then nothing was shown of any defense."""
        compared = {change.key.defense for change in self.changes if change.kind != "unpaired"}
        return not compared or (compared == {UNDEFENDED} and any(key.defense != UNDEFENDED for key in (*self.gone, *self.new)))

    @property
    def failed(self) -> bool:
        """Whether a cell regressed, or is on both sides and cannot be compared, or nothing was: what is not shown is no pass."""
        return self.idle or any(change.kind in ("regressed", "unpaired") for change in self.changes)


def compare(before: Cells, after: Cells, *, gate: Sequence[str] | None = None, tolerance: Mapping[str, float] | None = None) -> Comparison:
    """Compare two runs, cell by cell.

    Args:
        before: the earlier run.
        after: the later run.
        gate: the metrics to compare; None takes those that the later run was judged by.
        tolerance: metric to the change that is accepted; None takes that of each metric.
    """
    both = sorted(key for key in after if key in before)
    changes = []
    for key in both:
        metrics = gate or list(dict.fromkeys(name for record in after[key].values() for name in record.gate or DEFAULT_GATE))
        changes += [compare_cell(key, before[key], after[key], metric=metric, tolerance=tolerance) for metric in metrics]
    return Comparison(
        changes=tuple(changes),
        gone=tuple(sorted(set(before) - set(after))),
        new=tuple(sorted(set(after) - set(before))),
        differs=_differs(before, after),
    )


def compare_cell(
    key: CellKey,
    before: Mapping[int, Record],
    after: Mapping[int, Record],
    *,
    metric: str,
    tolerance: Mapping[str, float] | None = None,
) -> Change:
    """Compare one cell.

    It regressed when the mean of the paired differences, or their trimmed mean, is past the tolerance *and* its
    whole interval is past zero; the two intervals hold together in 95 % of comparisons. The mean sees the few
    victims that lost everything; the trimmed mean sees what happened to the others where a few that went astray
    drown it in noise. Where the clients' own model was drawn anew more is accepted: it moves all victims of a
    seed together, and only seeds average it out.
    """
    seeds = tuple(sorted(set(before) & set(after)))
    found = Change(key, metric, "unchanged", before=_word(before), after=_word(after), seeds=seeds)
    known = known_metrics()[metric]
    accepted = known.tolerance if tolerance is None else tolerance[metric]
    problem = _problem(before, after, seeds)
    if problem:
        # What could be measured and cannot be any more is no pass.
        lost = found.after == "error" and found.before != "error"
        return dataclasses.replace(found, kind="regressed" if lost else "unpaired", reason=problem)
    groups = _paired(found, before, after)
    if isinstance(groups, Change):
        return groups
    granted = ""
    if any(_drawn_anew(before[seed].local_model, after[seed].local_model) for seed in seeds):
        more = DRAWN_ANEW * known.tolerance / math.sqrt(len(seeds))
        accepted += more
        granted = (
            f"the clients' own model was drawn anew, which moves all victims of a seed together: {limit(known, more, digits=3)} more "
            "are accepted, less with more seeds"
        )
    mean, typical = student(groups, confidence=CONFIDENCE), student(groups, trim=TRIM, confidence=CONFIDENCE)
    found = dataclasses.replace(found, mean=mean, typical=typical, pairs=sum(map(len, groups)), reason=granted)
    if mean.low is None:
        return dataclasses.replace(
            found, kind="unpaired", reason=f"{metric} cannot be compared: {found.pairs} pair is too few, raise --gitbench-victims"
        )
    if _past(mean, accepted) or _past(typical, accepted):
        return dataclasses.replace(found, kind="regressed", reason=_reason(found, accepted) + (f"; {granted}" if granted else ""))
    improved = _past(_mirrored(mean), accepted) or _past(_mirrored(typical), accepted)
    return dataclasses.replace(found, kind="improved") if improved else found


def _paired(found: Change, before: Mapping[int, Record], after: Mapping[int, Record]) -> list[list[float]] | Change:
    """How much more each victim leaks than before, seed by seed; or what to say where that cannot be told."""
    metric = found.metric
    groups: list[list[float]] = []
    for seed in found.seeds:
        then, now = (run[seed].values.get(metric, ()) for run in (before, after))
        pairs = list(zip(then, now, strict=False))  # victims of a smaller run are the first ones of a larger run
        if then and not now:
            return dataclasses.replace(found, kind="regressed", reason=f"{metric} was measured and is not any more: {after[seed].reason}")
        if any(a is not None and b is None for a, b in pairs):
            return dataclasses.replace(
                found, kind="regressed", reason=f"{metric} could be measured and cannot be any more: a value is missing"
            )
        if not pairs or any(a is None or b is None for a, b in pairs):
            return dataclasses.replace(
                found, kind="unpaired", reason=f"{metric} cannot be compared: a value is missing, write the baseline again"
            )
        groups.append([known_metrics()[metric].sign * (b - a) for a, b in pairs if a is not None and b is not None])
    return groups


def tolerances(decibels: float) -> dict[str, float]:
    """The change of every metric that is accepted where this many dB are; other units in proportion."""
    known = known_metrics()
    return {name: metric.tolerance * decibels / known["psnr_gain"].tolerance for name, metric in known.items()}


def _past(found: Interval, accepted: float) -> bool:
    return found.mean is not None and found.low is not None and found.mean > accepted and found.low > 0


def _mirrored(found: Interval) -> Interval:
    if found.mean is None or found.low is None or found.high is None:
        return found
    return Interval(-found.mean, -found.high, -found.low)


def _drawn_anew(before: Sequence[float], after: Sequence[float]) -> bool:
    if not before or not after:
        return bool(before) != bool(after)
    return math.dist(before, after) > _SAME_DRAW * max(math.hypot(*before), math.hypot(*after))


def _reason(change: Change, accepted: float) -> str:
    found, name = (change.mean, "") if _past(change.mean, accepted) else (change.typical, " (trimmed mean)")
    known = known_metrics()[change.metric]
    assert found.mean is not None
    shown = f"{figure(known, found.mean, found.low, found.high)}{name}"
    seeds = "one seed" if len(change.seeds) == 1 else f"{len(change.seeds)} seeds"
    pairs = f"{change.pairs} pairs of {seeds}"
    return f"{change.metric} leaks {shown} more than the baseline, on {pairs} (tolerance {limit(known, accepted, digits=3)})"


def _problem(before: Mapping[int, Record], after: Mapping[int, Record], seeds: Sequence[int]) -> str:
    for name, run in (("baseline", before), ("this run", after)):
        broken = next((record for record in run.values() if record.verdict == "error"), None)
        if broken is not None:
            return f"error in {'the ' if name == 'baseline' else ''}{name}: {broken.reason}"
    if not seeds:
        return f"no seed in common: {', '.join(map(str, sorted(before)))} before, {', '.join(map(str, sorted(after)))} now"
    for seed in seeds:
        for one, (a, b) in enumerate(zip(before[seed].blind, after[seed].blind, strict=False)):
            if a is not None and b is not None and abs(a - b) > BLIND_DIGITS:
                return f"victim {one} of seed {seed} is another image: the data changed, write the baseline again"
    return ""


def _word(run: Mapping[int, Record]) -> str:
    """The worst verdict of a cell's seeds."""
    found = {record.verdict for record in run.values()}
    return next(word for word in ("error", "leaks", "inconclusive", "holds") if word in found)


def _differs(before: Cells, after: Cells) -> tuple[str, ...]:
    pairs = [(before[key][seed], after[key][seed]) for key in after if key in before for seed in after[key] if seed in before[key]]
    told: dict[str, int] = {}
    for then, now in pairs:
        for name in type(then.environment).model_fields:
            _note(told, name, getattr(then.environment, name), getattr(now.environment, name))
        for name in sorted({*then.code, *now.code} - {"gitbench"}):
            if then.code.get(name) != now.code.get(name):
                told[_code_of(name, now)] = told.get(_code_of(name, now), 0) + 1
        for name in sorted({*then.settings, *now.settings}):
            _note(told, f"{now.attack}: {name}", then.settings.get(name), now.settings.get(name))
        _note(told, "victims", then.victims, now.victims)
    seeds = {(tuple(sorted(before[key])), tuple(sorted(after[key]))) for key in after if key in before}
    lists = [f"seeds: {_listed(then)} -> {_listed(now)}" for then, now in sorted(seeds) if then != now]
    return (*told, *lists)


def _note(told: dict[str, int], name: str, then: object, now: object) -> None:
    if then != now:
        told[f"{name}: {then} -> {now}"] = told.get(f"{name}: {then} -> {now}", 0) + 1


def _code_of(name: str, record: Record) -> str:
    return "code of gitbench's measuring chain" if name == "core" else f"code or files of the {name} {getattr(record, name, '')}".rstrip()


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
