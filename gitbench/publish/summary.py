"""The first table of a leaderboard: what a reader wants to know first of each defense, in at most six columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gitbench.core import figures
from gitbench.core.text import code
from gitbench.identity.case import UNDEFENDED
from gitbench.judge.cost import Percent
from gitbench.judge.statistics import Interval
from gitbench.judge.verdict import side
from gitbench.judge.worst_case import Worst
from gitbench.publish.cost_table import measured_drops, rank
from gitbench.publish.report.cells import IDENTIFICATION, identified, standing_of
from gitbench.publish.report.data import ShareFound, Standing
from gitbench.publish.report.standing import row_standing
from gitbench.publish.table import Table, markdown_table

LEGEND = (
    "Ranked by the worst case, the best first: on each victim the most that any attack got, mean [95 % interval]. The verdict is that of "
    "the gravest attack, and an attack counts only where it works without a defense; `control` is the row without one. The strongest "
    "attack leaks most on average. Identified: the largest share of victims that any attack's reconstructions tell from all other "
    "private images. Accuracy lost: by a model that is trained under the defense, in percentage points (docs/leaderboards.md)."
)


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """What stands in the first table of one defense.

    Args:
        defense: its label.
        verdict: in a word or a few.
        worst: over all attacks.
        strongest: the attack with the largest mean, None where nothing was measured.
        identified: the largest share over all attacks.
        lost: accuracy, in percentage points.
    """

    defense: str
    verdict: str
    worst: Worst
    strongest: str | None
    identified: ShareFound | None
    lost: Percent | None


def summary_rows(table: Table) -> list[SummaryRow]:
    """A row for each defense, ranked."""
    drops = measured_drops(table)
    found = [_row(table, defense, worst, drops.get(defense)) for defense, worst in table.worsts.items()]
    return sorted(found, key=lambda row: rank(table, row.defense, row.worst))


def summary_table(table: Table, rows: Sequence[SummaryRow]) -> str:
    """The Markdown of the first table."""
    heading = ", ".join(part for part in ("worst case", table.metric.unit) if part)
    return markdown_table(
        [
            {
                "defense": code(row.defense),
                "verdict": row.verdict,
                heading: worst_shown(table, row.worst),
                "strongest attack": code(row.strongest) if row.strongest else "none",
                "identified": _share(row.identified),
                "accuracy lost": "" if row.defense == UNDEFENDED else row.lost.shown(sign=True) if row.lost else "not measured",
            }
            for row in rows
        ]
    )


def strongest_attack(table: Table, defense: str) -> tuple[str, float] | None:
    """The attack with the largest mean, and that mean; None where nothing was measured."""
    sign = table.metric.sign
    found = {attack: table.mean(defense, attack).mean for attack in table.row(defense)}
    known = {attack: mean for attack, mean in found.items() if mean is not None}
    name = max(known, key=lambda attack: sign * known[attack], default=None)
    return None if name is None else (name, known[name])


def worst_shown(table: Table, worst: Worst) -> str:
    """``+1.06 [0.23, 2.10], 5 of 6 attacks``: what is missing from a maximum is said beside it."""
    text = bounded(table, worst.bound)
    if worst.incomplete:
        text += f", {len(worst.complete)} of {len(worst.complete) + len(worst.incomplete)} attacks"
    return f"{text}, by others" if worst.raised else text


def bounded(table: Table, found: Interval) -> str:
    """A value of the gated metric with its interval; its unit stands above the table."""
    return "unknown" if found.mean is None else gated_figure(table, found.mean, found.low, found.high)


def gated_figure(table: Table, value: float, low: float | None = None, high: float | None = None) -> str:
    """A value of the gated metric; its unit stands above the table."""
    return figures.figure(table.metric, value, low, high, sign=figures.plus(table.metric), unit=False)


def _row(table: Table, defense: str, worst: Worst, lost: Percent | None) -> SummaryRow:
    strongest = strongest_attack(table, defense)
    return SummaryRow(
        defense=defense,
        verdict=_verdict(table, defense, worst),
        worst=worst,
        strongest=None if strongest is None else strongest[0],
        identified=_identified(table, defense),
        lost=None if defense == UNDEFENDED else lost,
    )


def _verdict(table: Table, defense: str, worst: Worst) -> str:
    cells = {attack: standing_of(table, defense, attack) for attack in table.attacks}
    found = row_standing(list(cells.values()))
    own = row_standing([one for attack, one in cells.items() if not table.by_others(defense, attack)])
    theirs = "" if own == found else ", by others"
    if defense == UNDEFENDED:
        return _of_control(found) + theirs
    alone = found == "holds" and side(table.metric.name, worst.bound, table.gate[table.metric.name]) != "holds"
    # The worst case is made of several attacks: past the threshold it accuses nobody, and is not passed over.
    return found + theirs + (", against each attack alone" if alone else "")


def _of_control(found: Standing) -> str:
    """An undefended row holds nothing: it shows whether attacks work."""
    return {"leaks": "control", "holds": "no control", "undecided": "no control"}.get(found, found)


def _identified(table: Table, defense: str) -> ShareFound | None:
    shares = []
    for results in table.row(defense).values():
        share = identified(value for result in results if (one := result.metrics.get(IDENTIFICATION)) for value in one.values)
        shares += [share] if share is not None else []
    return max(shares, key=lambda one: (one.share, one.high), default=None)


def _share(found: ShareFound | None) -> str:
    return "not tested" if found is None else f"{100 * found.share:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}]"
