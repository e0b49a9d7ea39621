"""The worst case: on each victim the most that any attack of the matrix got, and what `auto` got on the same victims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gitbench.core.errors import SpecError
from gitbench.core.spec import canonical_json, parse_spec
from gitbench.identity.case import Case
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.statistics import Interval, interval
from gitbench.judge.verdict import Estimate
from gitbench.store.result import TIMED_OUT, Result

AUTO = "auto"
SUBMISSION = "submission"  # the attack's name where reconstructions were sent in, and scored here

_UNKNOWN = Interval(None, None, None)
_Values = Sequence[float | None]


@dataclass(frozen=True)
class Worst:
    """The worst case of one defense. Figures are in the metric's unit.

    Args:
        bound: the mean over victims of the most that any attack got from each, submissions included.
        own: the same without what others sent in.
        auto: what the attack ``auto`` got from the same victims; unknown without one.
        gap: by how much the bound leaks more than ``auto``; None without ``auto``.
        victims: how many were compared, all seeds together.
        complete: attacks that were measured on all of them.
        incomplete: every other attack, and why.
    """

    bound: Interval = _UNKNOWN
    own: Interval = _UNKNOWN
    auto: Interval = _UNKNOWN
    gap: float | None = None
    victims: int = 0
    complete: tuple[str, ...] = ()
    incomplete: Mapping[str, str] = field(default_factory=dict)

    @property
    def raised(self) -> bool:
        """Whether what others sent in leaks more than what was measured here."""
        return self.bound.mean != self.own.mean


def is_auto(attack: str) -> bool:
    """Whether a SPEC is that of ``auto``, with or without options; a hybrid is not."""
    return _name(attack) == AUTO


def is_submission(attack: str) -> bool:
    """Whether a SPEC stands for reconstructions that were sent in."""
    return _name(attack) == SUBMISSION


def worst_case(
    results: Mapping[str, Sequence[Result]],
    *,
    metric: str,
    attacks: Sequence[str],
    auto: str | None = None,
    others: Collection[str] = (),
    errors: Collection[str] = (),
    estimate: Estimate = interval,
) -> Worst:
    """The worst case of one defense.

    Compared are the victims that all attacks share: their cases are equal but for the attack. Where that leaves
    none, as many attacks as possible are kept. An attack that timed out, or whose control failed, counts with what
    it got: a leak is a leak.

    Args:
        results: attack to its results of all seeds.
        metric: what leaks.
        attacks: all that the row should have, ``auto`` included.
        auto: the one of them that stands for ``auto``.
        others: those of them that others sent in: they may raise the bound, and take no victim out of it.
        errors: those that ended in an error, where no result says so.
        estimate: from values per seed to an interval.
    """
    keys = {result.case_id: _but_for_the_attack(result.case) for several in results.values() for result in several}
    found = {attack: _values(results.get(attack, ()), metric, keys) for attack in attacks}
    usable = {attack: values for attack, values in found.items() if values}
    base = {attack: values for attack, values in usable.items() if attack not in others} or usable
    times = [(keys[result.case_id], result.finished_at) for attack in base for result in results.get(attack, ())]
    shared = _shared(base, dict(sorted(times, key=lambda one: one[1])))
    compared = {attack: values for attack, values in base.items() if shared and shared.keys() <= values.keys()}
    sign = known_metrics()[metric].sign
    own = _most(compared.values(), shared, sign)
    bound = _most([*compared.values(), *(usable[attack] for attack in usable if attack not in base)], shared, sign)
    lacks = {attack: _incomplete(results.get(attack, ()), usable.get(attack), shared, failed=attack in errors) for attack in attacks}
    reached = estimate(_cut(compared[auto], shared)) if auto in compared else _UNKNOWN
    limits = estimate(bound)
    gap = None if limits.mean is None or reached.mean is None else sign * (limits.mean - reached.mean)
    return Worst(
        bound=limits,
        own=estimate(own),
        auto=reached,
        gap=gap,
        victims=sum(shared.values()),
        complete=tuple(attack for attack, reason in lacks.items() if not reason),
        incomplete={attack: reason for attack, reason in lacks.items() if reason},
    )


def _values(results: Sequence[Result], metric: str, keys: Mapping[str, str]) -> dict[str, _Values]:
    """What each victim lost, by the case but for the attack and the number of victims: the first ones are the same."""
    return {
        keys[result.case_id]: result.metrics[metric].values
        for result in results
        if metric in result.metrics and any(value is not None for value in result.metrics[metric].values)
    }


def _but_for_the_attack(case: Case) -> str:
    content = case.model_dump(mode="json", exclude={"attack", "victims"})
    content["code"] = {kind: digest for kind, digest in case.code.items() if kind != "attack"}
    return canonical_json(content)


def _shared(base: Mapping[str, Mapping[str, _Values]], measured: Mapping[str, str]) -> dict[str, int]:
    """The cases (but for the attack) that are compared, and how many victims all attacks have of each.

    Args:
        base: attack to case to values.
        measured: case to when it was last measured: of cases that equally many attacks have, the newer ones count.
    """
    counts = Counter(key for values in base.values() for key in values)
    if not counts:
        return {}
    first = max(counts, key=lambda key: (counts[key], measured[key]))
    compared = [values for values in base.values() if first in values]
    keys = [key for key in compared[0] if all(key in values for values in compared)]
    return {key: min(len(values[key]) for values in compared) for key in keys}


def _cut(values: Mapping[str, _Values], shared: Mapping[str, int]) -> list[_Values]:
    return [values[key][:count] for key, count in shared.items()]


def _most(attacks: Collection[Mapping[str, _Values]], shared: Mapping[str, int], sign: int) -> list[list[float | None]]:
    """The most that any attack got from each victim; None where none of them could be measured."""
    groups = []
    for key, count in shared.items():
        columns = [values[key] for values in attacks if key in values]
        known = [[column[victim] for column in columns if victim < len(column)] for victim in range(count)]
        groups.append([_largest([value for value in one if value is not None], sign) for one in known])
    return groups


def _largest(values: Sequence[float], sign: int) -> float | None:
    return max(values, key=lambda value: sign * value, default=None)


def _incomplete(results: Sequence[Result], values: Mapping[str, _Values] | None, shared: Mapping[str, int], *, failed: bool) -> str:
    """Why an attack does not speak for all compared victims; empty where it does."""
    if failed or any(result.status == "error" for result in results):
        return "error"
    if any(TIMED_OUT in result.flags for result in results):
        return "timed out"
    if not results:
        return "not measured"
    if values is None:
        return "no value"
    if not shared.keys() <= values.keys() or any(len(values[key]) < count for key, count in shared.items()):
        return "other victims, or other code"
    if any(value is None for group in _cut(values, shared) for value in group):
        return "a value is missing"
    return ""


def _name(attack: str) -> str:
    try:
        parts = parse_spec("attack", attack).parts
    except SpecError:  # a name from elsewhere
        return ""
    return parts[0].target if len(parts) == 1 else ""
