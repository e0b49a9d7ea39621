"""The picture of a leaderboard: what every attack got from every defense, with intervals, as SVG. The same results give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from gitbench.core import figures
from gitbench.core.text import printable
from gitbench.identity.case import UNDEFENDED
from gitbench.identity.known_modalities import gain_of
from gitbench.judge.statistics import Interval
from gitbench.judge.verdict import side
from gitbench.publish.report.cells import standing_of
from gitbench.publish.summary import SummaryRow, bounded, worst_shown
from gitbench.publish.table import Table

_LEFT, _RIGHT, _TOP = 310, 640, 62  # of the plot, in pixels; names stand left of it, figures right
_LINE, _HEADING, _GAP = 17, 20, 10  # heights
_MOST_LINES = 300  # a picture of more would be read by nobody: the rest stand in the tables
_LARGEST = 1e9  # values are drawn as far as that; figures are written as they are
_TICKS = 7


@dataclass(frozen=True, kw_only=True)
class PictureLine:
    """One line of the picture: an attack on a defense, or the worst case of a defense. Positions are in pixels.

    Args:
        name: what stands at its left.
        figure: what stands at its right.
        y: of its middle.
        mark: ``leaks``, ``holds`` or ``open``.
        whole: whether it is the worst case.
        x: of the mean; empty where it is unknown.
        low: of the interval's lower end; empty where it is unknown.
        high: of its upper end.
    """

    name: str
    figure: str
    y: int
    mark: str
    whole: bool
    x: str
    low: str
    high: str


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float

    def __call__(self, value: float | None) -> str:
        if value is None:
            return ""
        share = (_clamped(value) - self.low) / (self.high - self.low)
        return f"{_LEFT + share * (_RIGHT - _LEFT):.1f}"

    def ticks(self) -> list[float]:
        """Round numbers, at most a handful."""
        rough = (self.high - self.low) / _TICKS
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [step * number for number in range(first, last + 1)]


def title(table: Table) -> str:
    """What the picture shows, in a sentence."""
    settings = {"batch_size": 1, "rounds": 1}
    several = ", ".join(f"{key} {table.conditions[key]}" for key, usual in settings.items() if table.conditions.get(key, usual) != usual)
    of = f"{table.dataset}, {table.model}{f', {several}' if several else ''}"
    return printable(f"{_measure(table)} of every attack on every defense, with 95 % intervals: {of}", keep="")


def draw(table: Table, rows: Sequence[SummaryRow]) -> str:
    """The SVG of a canonical table and its ranked rows."""
    import jinja2

    scale, left_out, bottom = _scale(table, rows), 0, _TOP
    groups: list[tuple[int, str, list[PictureLine]]] = []
    for row in rows:
        attacks = _attacks(table, row.defense)
        if sum(len(lines) for _, _, lines in groups) + len(attacks) >= _MOST_LINES:
            left_out += 1
            continue
        heading, bottom = bottom + _GAP, bottom + _GAP + _HEADING
        lines = _lines(table, row, attacks, scale, bottom)
        groups.append((heading, _cut(row.defense, 96) + (" (no defense)" if row.defense == UNDEFENDED else ""), lines))
        bottom += _LINE * len(lines)
    environment = jinja2.Environment(
        autoescape=True,  # strangers wrote names
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    template = resources.files("gitbench.publish").joinpath("picture.svg.jinja").read_text(encoding="utf-8")
    return environment.from_string(template).render(
        title=title(table),
        description=_description(table, rows),
        axis=_axis(table),
        limit=scale(table.gate[table.metric.name]),
        limit_text=f"leaks past {figures.limit(table.metric, table.gate[table.metric.name])}",
        ticks=[(scale(tick), f"{tick + 0.0:g}") for tick in scale.ticks()],
        groups=groups,
        note=f"and {left_out} more defenses: see the tables" if left_out else "",
        left=_LEFT,
        right=_RIGHT,
        top=_TOP,
        bottom=bottom + _GAP,
    )


def _measure(table: Table) -> str:
    return f"{table.metric.name}{f' in {table.metric.unit}' if table.metric.unit else ''}"


def _axis(table: Table) -> str:
    guess = ", 0 is a blind guess" if table.metric.name == gain_of([table.metric.name]) else ""
    return f"{_measure(table)}: {'more' if table.metric.higher_leaks else 'less'} is more leakage{guess}"


def _description(table: Table, rows: Sequence[SummaryRow]) -> str:
    """The picture in words, for who cannot see it."""
    told = [f"{printable(row.defense, keep='')}: {row.verdict}, worst case {worst_shown(table, row.worst)}" for row in rows[:_MOST_LINES]]
    return f"A line with an interval for each attack, grouped by defense, the best defense first. {'; '.join(told)}."


def _attacks(table: Table, defense: str) -> list[str]:
    """Of a defense, what got most first; what has no figure last."""
    means = {attack: table.mean(defense, attack).mean for attack in table.row(defense)}
    sign = table.metric.sign
    return sorted(table.attacks_on(defense), key=lambda attack: math.inf if (mean := means.get(attack)) is None else -sign * mean)


def _lines(table: Table, row: SummaryRow, attacks: Sequence[str], scale: _Scale, top: int) -> list[PictureLine]:
    """The worst case of a defense, and below it its attacks."""
    told = [("worst case", row.worst.bound, worst_shown(table, row.worst), _mark_of_worst(table, row))]
    for attack in attacks:
        interval, standing = _interval(table, row.defense, attack), standing_of(table, row.defense, attack)
        control = row.defense == UNDEFENDED
        word = {"leaks": "", "holds": "no control", "undecided": "no control"}.get(standing, standing) if control else standing
        figure = standing if interval.mean is None else f"{bounded(table, interval)} {word}".strip()
        figure += ", by others" if table.by_others(row.defense, attack) else ""
        told.append((attack, interval, figure, shown if (shown := word or standing) in ("leaks", "holds") else "open"))
    return [
        PictureLine(
            name=_cut(name, 36),
            figure=_cut(figure, 42),
            y=top + _LINE * number + _LINE // 2,
            mark=mark,
            whole=number == 0,
            x=scale(interval.mean),
            low=scale(interval.low),
            high=scale(interval.high),
        )
        for number, (name, interval, figure, mark) in enumerate(told)
    ]


def _mark_of_worst(table: Table, row: SummaryRow) -> str:
    """A bound past the threshold shows; one below it acquits only a defense that holds."""
    found = side(table.metric.name, row.worst.bound, table.gate[table.metric.name])
    return "leaks" if found == "leaks" else "holds" if found == "holds" and row.verdict.startswith("holds") else "open"


def _interval(table: Table, defense: str, attack: str) -> Interval:
    return table.mean(defense, attack) if (defense, attack) in table.results else Interval(None, None, None)


def _scale(table: Table, rows: Sequence[SummaryRow]) -> _Scale:
    """From the least to the most that is drawn, the threshold and, of a gain, the blind guess at zero among it."""
    intervals = [*(row.worst.bound for row in rows), *(table.mean(*key) for key in table.results)]
    ends = [_clamped(end) for one in intervals for end in (one.mean, one.low, one.high) if end is not None]
    ends += [_clamped(table.gate[table.metric.name]), 0.0]
    low, high = min(ends), max(ends)
    room = 0.03 * (high - low) or 1.0
    return _Scale(low - room, high + room)


def _clamped(value: float) -> float:
    return max(-_LARGEST, min(_LARGEST, value))


def _cut(text: str, most: int) -> str:
    """As much of a name as there is room for."""
    text = printable(" ".join(text.split()), keep="")
    return text if len(text) <= most else f"{text[: most - 1]}…"
