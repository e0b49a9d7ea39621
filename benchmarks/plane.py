"""The privacy-utility plane: what leaks against what is lost in accuracy, one panel for each dataset, model and setting.

python benchmarks/plane.py RESULTS [RESULTS ...] [--out plane]

RESULTS is what a run with --gitbench-cost yes kept (--gitbench-results), or the folder it ran in, with .gitbench inside. It writes
plane.svg and plane.png. Both error bars are 95 % intervals; the line joins the Pareto front. matplotlib comes with gitbench's extra `dev`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from curves import local, stored

from gitbench.core import figures
from gitbench.core.metric import Metric
from gitbench.core.spec import parse_spec
from gitbench.judge.cost import Percent
from gitbench.judge.flags import blocking
from gitbench.judge.statistics import Interval
from gitbench.publish.cost_table import front, measured_drops, measured_here
from gitbench.publish.table import Table, tables

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito's
_MARKERS = "osD^vP*X"
_ABREAST = 2


@dataclass(frozen=True, kw_only=True)
class Spot:
    """One defense: the worst case over all attacks, what it costs, whether it is on the front, and whether it is no success."""

    defense: str
    leak: Interval
    lost: Percent
    best: bool
    refused: bool


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One table."""

    title: str
    metric: Metric
    threshold: float
    spots: tuple[Spot, ...]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=Path("plane"), help="of the pictures, without .svg and .png (default: %(default)s)")
    given = parser.parse_args(arguments)
    results = [result for folder in given.results for result in stored(folder)]
    panels = [panel for panel in map(panel_of, tables(results)) if panel.spots]
    if not panels:
        where = ", ".join(map(str, given.results))
        raise SystemExit(
            f"Expected results with the cost of their defenses in {where}, found none. Run pytest --gitbench --gitbench-cost yes."
        )
    draw(panels, given.out)


def panel_of(table: Table) -> Panel:
    """The defenses of a table whose cost was measured."""
    worsts = {defense: table.worst(defense) for defense in table.defenses}
    drops = measured_drops(table)
    best = front(table, worsts, drops)
    case = next(iter(table.results.values()))[0].case
    settings = [f"batches of {case.batch_size}"] if case.batch_size > 1 else []
    return Panel(
        title=", ".join([str(local(parse_spec("dataset", case.dataset))), case.model, *settings]),
        metric=table.metric,
        threshold=table.gate[table.metric.name],
        spots=tuple(
            Spot(defense=name, leak=worsts[name].bound, lost=drop, best=name in best, refused=bool(blocking(measured_here(table, name))))
            for name, drop in drops.items()
            if worsts[name].bound.mean is not None
        ),
    )


def draw(panels: Sequence[Panel], out: Path) -> None:
    """Write the picture twice, as SVG and PNG. Equal results give equal files."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("Expected matplotlib, which draws: pip install 'gitbench[dev]'.") from None
    names = list(dict.fromkeys(spot.defense for panel in panels for spot in panel.spots))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gitbench", "font.size": 9}):
        columns = min(_ABREAST, len(panels))
        rows = -(-len(panels) // columns)
        height = max(3.6 * rows, 0.2 * (len(names) + 3))  # inches: a line of the legend takes a fifth
        picture = Figure(figsize=(4.6 * columns + 2.6, height), layout="constrained")
        grid = list(picture.subplots(rows, columns, squeeze=False).flat)
        for empty in grid[len(panels) :]:
            empty.set_axis_off()
        for plot, panel in zip(grid, panels, strict=False):
            draw_panel(plot, panel, names)
        handles = {text: handle for plot in grid for handle, text in zip(*plot.get_legend_handles_labels(), strict=True)}
        legend = picture.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            picture.savefig(out.with_name(f"{out.name}.{suffix}"), metadata=metadata, dpi=120)


def draw_panel(plot: Axes, panel: Panel, names: Sequence[str]) -> None:
    """One mark for each defense, hollow where it is no success."""
    limit = f"leaks past {figures.limit(panel.metric, panel.threshold)}"
    plot.axhline(panel.threshold, color="#888888", linewidth=0.8, linestyle="--", label=limit)
    best = sorted((spot.lost.mean, spot.leak.mean or 0.0) for spot in panel.spots if spot.best)
    plot.plot([x for x, _ in best], [y for _, y in best], color="#888888", linewidth=0.8, label="front")
    for spot in panel.spots:
        number, leak, lost = names.index(spot.defense), spot.leak, spot.lost
        mean = leak.mean or 0.0
        low, high = (mean if end is None else end for end in (leak.low, leak.high))
        colour = _COLOURS[number % len(_COLOURS)]
        plot.errorbar(
            [lost.mean], [mean], [[mean - low], [high - mean]], [[max(0.0, lost.mean - lost.low)], [max(0.0, lost.high - lost.mean)]],
            color=colour, marker=_MARKERS[(number // len(_COLOURS) + number) % len(_MARKERS)], markersize=6, capsize=2, linewidth=0.8,
            markerfacecolor="white" if spot.refused else colour, linestyle="none", label=spot.defense,
        )  # fmt: skip
    plot.set_title(panel.title, parse_math=False, fontsize=9)
    plot.set_xlabel("accuracy lost, percentage points")
    plot.set_ylabel(f"worst case: {panel.metric.name}{f' in {panel.metric.unit}' if panel.metric.unit else ''}")


if __name__ == "__main__":
    main()
