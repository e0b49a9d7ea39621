"""What defenses cost beside what they let leak: the columns and the section of a leaderboard, and the order of its rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean

from gitbench.core import figures
from gitbench.core.text import code
from gitbench.judge.cost import Percent, accuracy, accuracy_drop, trainings
from gitbench.judge.flags import blocking
from gitbench.judge.worst_case import Worst
from gitbench.publish.table import Table, markdown_table
from gitbench.store.result import Result, Utility

COST = (
    "`accuracy` of a model that was trained under the defense, as clients would, on public images and tested on others, and what is "
    "lost to the same without a defense: a paired difference [95 % interval]. It is relative to this size of data and this budget. "
    "Bytes are those of one update after lossless compression, milliseconds those that a client takes for one. `front`: no other "
    "defense here leaks less and costs less."
)


def rank(table: Table, defense: str, worst: Worst) -> tuple[bool, bool, float, float]:
    """Where a defense stands among the rows: the best first, the undefended one at the end as the yardstick.

    By what leaks, and of equals by what is lost, so that nothing stands above what dominates it; what trains nothing stands last.
    """
    lost = accuracy_drop(measured_here(table, defense))
    leak = math.inf if worst.bound.mean is None else table.metric.sign * worst.bound.mean
    return defense == "none", bool(blocking(measured_here(table, defense))), leak, math.inf if lost is None else lost.mean


def costs(table: Table, worsts: Mapping[str, Worst]) -> str:
    """A row for each defense whose cost was measured."""
    measured = measured_drops(table)
    best = front(table, worsts, measured)
    if not measured:
        return ""
    ordered = sorted(measured, key=lambda defense: rank(table, defense, worsts[defense]))
    text = markdown_table([_row(table, defense, measured[defense], worsts[defense], on_front=defense in best) for defense in ordered])
    missing = ", ".join(code(defense) for defense in worsts if defense not in measured)
    return (
        f"{text}\n\nNot measured: {missing}. A training that runs out of --gitbench-timeout goes on in the next run." if missing else text
    )


def measured_drops(table: Table) -> dict[str, Percent]:
    """What each defense costs whose cost was measured."""
    known = {defense: accuracy_drop(measured_here(table, defense)) for defense in table.defenses}
    return {defense: drop for defense, drop in known.items() if drop is not None}


def _row(table: Table, defense: str, drop: Percent, worst: Worst, *, on_front: bool) -> dict[str, str]:
    found, right = trainings(measured_here(table, defense)), accuracy(measured_here(table, defense))
    assert right is not None
    first, leak = found[0], worst.bound
    bounds = (
        figures.figure(table.metric, leak.mean, leak.low, leak.high, sign=figures.plus(table.metric), unit=False)
        if leak.mean is not None
        else "unknown"
    )
    return {
        "defense": code(defense),
        "accuracy": right.shown(),
        "lost": "" if defense == "none" else drop.shown(sign=True),
        "worst case": bounds,
        "front": "yes" if on_front else "",
        "bytes": f"{fmean(one.bytes_sent for one in found):,.0f}",
        "ms": f"{1000 * fmean(one.seconds for one in found):.2f}",
        "ε": "" if first.epsilon is None else f"{first.epsilon:.3g} at δ = {first.delta:g}",
        "trained": f"{first.rounds} rounds of {first.clients} x {first.batch_size}",
    }


def front(table: Table, worsts: Mapping[str, Worst], drops: Mapping[str, Percent]) -> set[str]:
    """Defenses that no other dominates: leaks no more and costs no more, and one of both less. What is no success is not asked."""
    leaks = {defense: worsts[defense].bound.mean for defense in drops if not blocking(measured_here(table, defense))}
    points = {name: (table.metric.sign * leak, drops[name].mean) for name, leak in leaks.items() if leak is not None}
    return {
        name
        for name, point in points.items()
        if not any(other != point and other[0] <= point[0] and other[1] <= point[1] for other in points.values())
    }


def usefulness(table: Table) -> dict[str, dict[str, str]]:
    """What each defense leaves to learn from, averaged over seeds: it does not depend on the attack."""
    of_defense: dict[str, dict[int, Utility]] = {}
    for (defense, _), results in table.results.items():
        of_defense.setdefault(defense, {}).update({one.case.seed: one.utility for one in results if one.utility is not None})
    found = {}
    for defense, of_seed in of_defense.items():
        cosines = [one.cosine for one in of_seed.values() if one.cosine is not None]
        descents = [one.descent for one in of_seed.values() if one.descent is not None]
        if of_seed:
            found[defense] = {
                "cosine": f"{fmean(cosines):.2f}" if cosines else "unknown",
                "descent": f"{100 * fmean(descents):.0f} %" if descents else "unknown",
            }
    return found


def measured_here(table: Table, defense: str) -> list[Result]:
    """The results of a row that were measured here, of all attacks and seeds."""
    return [
        result
        for attack, results in table.row(defense).items()
        if not table.by_others(defense, attack)
        for result in results
        if result.status == "done"
    ]
