"""What people read: lines of progress and the summary. Functions of what they are given: they print nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gitbench.core.figures import figure, plus
from gitbench.identity.case import CellLabels, Setting
from gitbench.identity.known_metrics import known_metrics
from pytest_gitbench.outcome import SYMBOLS, Figures, Outcome

_NAMED = 3  # cells per flag
Row = tuple[Setting, str]
"""The setting and the defense of a row of the matrix, as labels."""


def figures(found: Figures) -> str:
    """``+12.4 dB [10.2, 14.8]``, as far as it is known."""
    if found.mean is None:
        return ""
    metric = known_metrics()[found.metric]
    return figure(metric, found.mean, found.low, found.high, sign=plus(metric), brief=True)


def duration(seconds: float) -> str:
    """``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def remaining(durations: Mapping[str, Sequence[float]], waiting: Sequence[str], workers: int) -> float | None:
    """Seconds left: each waiting cell costs what its attack has cost so far, shared among the workers.

    Args:
        durations: attack to the seconds of its finished cells.
        waiting: the attack of each waiting cell.
        workers: processes at work.
    """
    every = [seconds for group in durations.values() for seconds in group]
    if not every:
        return None
    mean = sum(every) / len(every)
    costs = [sum(durations[name]) / len(durations[name]) if durations.get(name) else mean for name in waiting]
    return sum(costs) / workers


class Pace:
    """How long the work under way will take, from how fast it has gone since it was first told of."""

    def __init__(self) -> None:
        self._work = ("", 0)
        self._start = 0.0
        self._first = self._last = 0

    def left(self, what: str, done: int, total: int, *, now: float) -> float | None:
        """Seconds left at the time ``now``; None in the first two seconds, and for work whose name keeps changing."""
        if (what, total) != self._work or done < self._last:
            self._work, self._start, self._first = (what, total), now, done
        self._last = done
        if now - self._start < 2 or done <= self._first:
            return None
        return (now - self._start) / (done - self._first) * (total - done)


def running_line(what: str, done: int, total: int, left: float | None) -> str:
    """What is under way. A training says itself how much time is left, and is not contradicted."""
    if what.endswith(" left"):
        return f"      running {what} ({done}/{total})"
    tail = "" if left is None else f", about {duration(left)} left"
    return f"      running {what} {done}/{total}{tail}"


def progress_line(outcome: Outcome, done: int, total: int, left: float | None) -> str:
    """One line per finished cell."""
    width = len(str(total))
    tail = f"  about {duration(left)} left" if left is not None and done < total else ""
    shown = f"{SYMBOLS[outcome.status]:2} {outcome.cell}  {outcome.word} {figures(outcome.figures)}"
    return f"[{done:{width}}/{total}] {shown}  {outcome.seconds:.1f} s{tail}"


def matrix_lines(outcomes: Sequence[Outcome], columns: Mapping[Row, Mapping[str, str]]) -> list[str]:
    """The matrix: one table per setting, a row per defense, a column per attack, and what plugins add to rows."""
    return table_lines([(one.cell, f"{SYMBOLS[one.status]} {one.word} {figures(one.figures)}".strip()) for one in outcomes], columns)


def table_lines(cells: Sequence[tuple[CellLabels, str]], columns: Mapping[Row, Mapping[str, str]] | None = None) -> list[str]:
    """The same from the labels of cells and what to show of them."""
    groups: dict[Setting, dict[str, dict[str, str]]] = {}
    for cell, shown in cells:
        groups.setdefault(cell.setting, {}).setdefault(cell.defense, {})[cell.attack] = shown
    for (setting, defense), added in (columns or {}).items():
        row = groups.get(setting, {}).get(defense)
        if row is not None:
            row.update({heading: text for heading, text in added.items() if heading not in row})
    lines = []
    for setting, rows in groups.items():
        headings = list(dict.fromkeys(heading for row in rows.values() for heading in row))
        table = [
            [str(setting), *headings],
            *([defense, *(row.get(heading, "") for heading in headings)] for defense, row in rows.items()),
        ]
        widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
        lines += ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table]
        lines.append("")
    return lines


def flag_lines(flags: Mapping[str, Sequence[str]]) -> list[str]:
    """For each kind of doubt what to do, and which cells raised it.

    Args:
        flags: of each cell, by its name.
    """
    from gitbench.judge.flags import FLAGS

    cells: dict[str, list[str]] = {}
    for cell, names in flags.items():
        for name in names:
            cells.setdefault(name, []).append(cell)
    lines = []
    for name, named in sorted(cells.items()):
        shown = ", ".join(named[:_NAMED]) + (f" and {len(named) - _NAMED} more" if len(named) > _NAMED else "")
        advice = f": {FLAGS[name].what_to_do}" if name in FLAGS else ""
        lines += [f"flag {name}{advice}", f"      {shown}"]
    return [*lines, "gitbench flags explains the flags", ""] if lines else []


def baseline_lines(outcomes: Sequence[Outcome], not_run: Sequence[str], path: str) -> list[str]:
    """What became of every cell of this run and of the baseline: how many were compared, and which could not be.

    Args:
        outcomes: of the cells that ran.
        not_run: the cells of the baseline that did not.
        path: of the baseline.
    """
    kinds = [one.baseline.kind for one in outcomes if one.baseline is not None]
    compared = len(kinds) - kinds.count("new") - kinds.count("unpaired")
    told = [f"baseline {path}: {compared} cells compared, {kinds.count('regressed')} regressed, {kinds.count('improved')} improved"]
    for one in outcomes:
        if one.baseline is None:
            told.append(f"  not compared: {one.cell}: not measured")
        elif one.baseline.kind == "new":
            told.append(f"  not in the baseline: {one.baseline.reason}")
        elif one.baseline.kind == "unpaired":
            told.append(f"  not compared: {one.cell}: {one.baseline.reason}")
    told += [f"  in the baseline, not run: {name}" for name in not_run]
    return [*told, ""]


def legend(metric: str) -> list[str]:
    """What the marks of the matrix mean, and its figures."""
    return [
        "ok: holds, or an undefended control that leaks   x: leaks, and is known to   F: failed   s: skipped",
        f"{metric}: {known_metrics()[metric].summary}, mean [95 % interval]",
    ]
