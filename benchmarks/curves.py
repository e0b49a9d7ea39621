"""Leakage against one axis, drawn and as a Markdown table: the curves in docs/threat-models.md.

python benchmarks/curves.py RESULTS [RESULTS ...] --axis trained_epochs [--out curve]

RESULTS is what a run kept (--gitbench-results), or the folder it ran in, with .gitbench inside. It writes curve.svg and curve.png
and prints the table. One panel for each setting, one line for each attack; matplotlib comes with gitbench's extra `dev`.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from gitbench.core import figures
from gitbench.core.errors import SpecError
from gitbench.core.metric import Metric
from gitbench.core.spec import Kind, Part, Spec, parse_spec
from gitbench.core.text import code, escaped
from gitbench.identity.case import Case
from gitbench.judge.statistics import Interval, interval
from gitbench.publish.table import Table, tables
from gitbench.store.folder import Store
from gitbench.store.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN = ("leaks", "holds")  # every other verdict stands beside its figure
_UNDRAWN = ("timed out", "error")
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")  # Okabe and Ito's
_MARKERS = "osD^vP*X"
_ABREAST = 4  # panels; more begin another row
_DODGE = 0.06  # between the attacks at one place of the axis, so that intervals do not cover each other


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What the curves run along.

    Args:
        title: as written under the picture.
        kind: whose SPEC holds it; None where the case itself does, as its batch size.
        option: its name there.
        absent: its value where the SPEC does not say; None leaves such a case out.
        paired: whether the victims are the same images at each place.
    """

    title: str
    kind: Kind | None
    option: str
    absent: float | None = None
    paired: bool = True


AXES = {
    "batch_size": Axis(title="batch size", kind=None, option="batch_size", paired=False),
    "rounds": Axis(title="rounds", kind=None, option="rounds"),
    "trained_epochs": Axis(title="epochs of training", kind="model", option="trained_epochs", absent=0),
    "steps": Axis(title="local steps", kind="client", option="steps"),
}


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell: its mean and interval, None where it ended in an error, the word of its verdict, and seed to value per victim."""

    interval: Interval | None
    word: str
    values: Mapping[int, Sequence[float | None]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The curves of one setting.

    Args:
        setting: what all its cells share, as heading to text.
        curves: attack to the points along the axis.
        metric: whose values they are.
        threshold: past which a cell leaks.
    """

    setting: Mapping[str, str]
    curves: Mapping[str, Mapping[float, Point]]
    metric: Metric
    threshold: float

    @property
    def places(self) -> list[float]:
        return sorted({place for points in self.curves.values() for place in points})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", nargs="+", type=Path)
    parser.add_argument("--axis", choices=AXES, default="trained_epochs")
    parser.add_argument("--out", type=Path, default=Path("curve"), help="of the pictures, without .svg and .png (default: %(default)s)")
    given = parser.parse_args(arguments)
    axis = AXES[given.axis]
    panels = panels_of([result for folder in given.results for result in stored(folder)], axis)
    where = ", ".join(map(str, given.results))
    if not panels:
        raise SystemExit(f"Expected results with two or more values of {axis.title} in {where}, found none.")
    if len({(panel.metric.name, panel.threshold) for panel in panels}) > 1:
        raise SystemExit(f"Expected results that were judged by one metric and threshold in {where}, found several: draw them apart.")
    print(markdown(panels, axis))
    draw(panels, axis, given.out)


def stored(folder: Path) -> list[Result]:
    """Every readable result of a run."""
    for root in (folder, folder / ".gitbench"):
        if (root / "cases").is_dir():
            return list(Store(root).results())
    raise SystemExit(f"Expected what a run kept in {folder}: a folder cases, or .gitbench/cases. Markdown alone is not read.")


def panels_of(results: Sequence[Result], axis: Axis) -> list[Panel]:
    """Results sorted into curves; what stands alone on the axis is no curve and is left out."""
    found: dict[tuple[tuple[str, str], ...], tuple[Table, dict[str, dict[float, Point]]]] = {}
    for table in tables(results):
        case = next(iter(table.results.values()))[0].case
        place, specs = placed(case, axis)
        if place is None:
            continue
        for defense, attack in table.cells:
            setting = setting_of({**specs, "defense": parse_spec("defense", defense)}, table, axis)
            curves = found.setdefault(tuple(setting.items()), (table, {}))[1]
            curves.setdefault(attack, {})[place] = point(table, defense, attack)
    panels = [
        Panel(setting=dict(setting), curves=curves, metric=table.metric, threshold=next(iter(table.gate.values())))
        for setting, (table, curves) in found.items()
    ]
    return [panel for panel in panels if len(panel.places) > 1]


def placed(case: Case, axis: Axis) -> tuple[float | None, dict[Kind, Spec]]:
    """Where a case stands on the axis, and its SPECs without what says so."""
    kinds: tuple[Kind, ...] = ("dataset", "model", "client")
    specs = {kind: parse_spec(kind, getattr(case, kind)) for kind in kinds}
    if axis.kind is None:
        return float(getattr(case, axis.option)), specs
    value, specs[axis.kind] = taken(specs[axis.kind], axis.option)
    if value is None and axis.kind == "client":
        value = default_of_client(case.client, axis.option)
    value = axis.absent if value is None else value
    return (float(value) if isinstance(value, int | float) else None), specs


def taken(spec: Spec, option: str) -> tuple[object, Spec]:
    """The value of an option and the SPEC without it. A client may stand within another: secure_aggregation(client='fedavg(steps=5)')."""
    part = spec.parts[0]
    options = dict(part.arguments)
    value = options.pop(option, None)
    inner = options.get("client")
    if value is None and spec.kind == "client" and isinstance(inner, str):
        value, rest = taken(parse_spec("client", inner), option)
        options["client"] = str(rest)
    return value, Spec(spec.kind, (Part(part.target, tuple(options.items())), *spec.parts[1:]))


def default_of_client(client: str, option: str) -> object:
    """What a client does where its SPEC does not say; None of one that has no such option, as fedsgd has no steps."""
    from gitbench.clients.procedure import load_client

    built: object = load_client(client)
    return getattr(built, option, getattr(getattr(built, "client", None), option, None))


def setting_of(specs: Mapping[Kind, Spec], table: Table, axis: Axis) -> dict[str, str]:
    """What stands above a panel, without the folders of this machine."""
    conditions = {name.replace("_", " "): str(value) for name, value in {"rounds": 1, **table.conditions}.items() if name != "client"}
    found = {kind: str(local(spec)) for kind, spec in specs.items()}
    return {"model": found.pop("model"), **{name: text for name, text in (found | conditions).items() if name != axis.title}}


def local(spec: Spec) -> Spec:
    """A SPEC whose files are named without their folders, also within the SPECs that its options hold."""
    parts = [replace(part, arguments=tuple((key, _local_value(spec.kind, value)) for key, value in part.arguments)) for part in spec.parts]
    return parse_spec(spec.kind, Spec(spec.kind, tuple(parts)).label)


def _local_value(kind: Kind, value: object) -> object:
    if not isinstance(value, str):
        return value
    if "(" in value:
        with contextlib.suppress(SpecError):
            return str(local(parse_spec(kind, value)))
    return PurePath(value).name


def point(table: Table, defense: str, attack: str) -> Point:
    if (defense, attack) not in table.results:
        return Point(interval=None, word="error" if (defense, attack) in table.errors else "not measured")
    values = {result.case.seed: result.metrics[table.metric.name].values for result in table.results[defense, attack]}
    return Point(interval=table.mean(defense, attack), word=table.verdict(defense, attack).word, values=values)


def differing(panels: Sequence[Panel]) -> list[str]:
    """The headings that tell the panels apart; the model always does."""
    return [name for name in panels[0].setting if name == "model" or len({panel.setting.get(name) for panel in panels}) > 1]


def attacks_of(panels: Sequence[Panel]) -> list[str]:
    return sorted({attack for panel in panels for attack in panel.curves})


def open_words(panels: Sequence[Panel]) -> list[str]:
    """The verdicts that are drawn hollow."""
    points = [point for panel in panels for curve in panel.curves.values() for point in curve.values()]
    return sorted({point.word for point in points if any(mark.hollow for mark in marks_of(point, 0))})


def markdown(panels: Sequence[Panel], axis: Axis) -> str:
    """What the panels share, a row for each place of each panel, and one for the change from its first place to its last."""
    names, attacks = differing(panels), attacks_of(panels)
    plain = {*names, *(("rounds",) if panels[0].setting.get("rounds") == "1" else ())}
    shared = ", ".join(f"{name} {text}" for name, text in panels[0].setting.items() if name not in plain)
    metric = panels[0].metric
    lines = [
        f"{metric.name}{f' in {metric.unit}' if metric.unit else ''} with its 95 % interval; {escaped(shared)}.",
        "",
        "| " + " | ".join([*names, axis.title, *map(code, attacks)]) + " |",
        "| " + " | ".join(["---"] * (len(names) + 1 + len(attacks))) + " |",
    ]
    for panel in panels:
        for place in panel.places:
            cells = [cell(panel.metric, panel.curves.get(attack, {}).get(place)) for attack in attacks]
            lines.append("| " + " | ".join([*(code(panel.setting[name]) for name in names), f"{place:g}", *cells]) + " |")
        if axis.paired:
            first, last = panel.places[0], panel.places[-1]
            cells = [change(panel.metric, panel.curves.get(attack, {}), first, last) for attack in attacks]
            place_text = f"{first:g} → {last:g}"
            lines.append("| " + " | ".join([*(code(panel.setting[name]) for name in names), place_text, *cells]) + " |")
    return "\n".join(lines)


def cell(metric: Metric, point: Point | None) -> str:
    """``+13.1 [11.8, 14.6]``, with the word of a verdict that is neither leaking nor holding."""
    if point is None:
        return ""
    found = point.interval
    if found is None or found.mean is None:
        return point.word
    text = figures.figure(metric, found.mean, found.low, found.high, sign=figures.plus(metric), unit=False, brief=True)
    return text if point.word in _SHOWN else f"{text}, {point.word}"


def change(metric: Metric, points: Mapping[float, Point], first: float, last: float) -> str:
    """From the first place to the last, paired over victims."""
    if not {first, last} <= points.keys() or {points[first].word, points[last].word} & set(_UNDRAWN):
        return ""
    before, after = points[first].values, points[last].values
    if before.keys() != after.keys():
        return ""
    pairs = [zip(before[seed], after[seed], strict=True) for seed in before]
    found = interval([[None if a is None or b is None else b - a for a, b in group] for group in pairs])
    return "" if found.mean is None else figures.figure(metric, found.mean, found.low, found.high, sign="+", unit=False, brief=True)


def draw(panels: Sequence[Panel], axis: Axis, out: Path) -> None:
    """Write the picture twice, as SVG and PNG. Equal results give equal files.

    Places stand at equal distances, and each panel has a scale of its own: 70 dB of one would flatten the others.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise SystemExit("Expected matplotlib, which draws: pip install 'gitbench[dev]'. The table above needs none.") from None
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "gitbench", "font.size": 9}):
        columns = min(_ABREAST, len(panels))
        rows = -(-len(panels) // columns)
        picture = Figure(figsize=(1 + 2.6 * columns, 0.4 + 2.8 * rows), layout="constrained")
        grid = list(picture.subplots(rows, columns, squeeze=False).flat)
        axes = grid[: len(panels)]
        for empty in grid[len(panels) :]:
            empty.set_axis_off()
        for plot, panel in zip(axes, panels, strict=True):
            draw_panel(plot, panel, attacks_of(panels), title="\n".join(panel.setting[name] for name in differing(panels)))
            plot.set_xlabel(axis.title)
        metric, words = panels[0].metric, open_words(panels)
        if words:  # nothing is drawn: for the legend alone
            axes[0].plot([], [], "o", color="#888888", markerfacecolor="white", markersize=5, label=f"hollow: {' or '.join(words)}")
        for plot in axes[::columns]:
            plot.set_ylabel(f"{metric.name}{f' in {metric.unit}' if metric.unit else ''}")
        handles = {text: handle for plot in axes for handle, text in zip(*plot.get_legend_handles_labels(), strict=True)}
        abreast = int(picture.get_figwidth() / (0.6 + 0.06 * max(map(len, handles)))) or 1  # inches: a handle, and a letter
        legend = picture.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=abreast, frameon=False)
        for text in legend.get_texts():
            text.set_parse_math(False)
        out.parent.mkdir(parents=True, exist_ok=True)
        for suffix, metadata in (("svg", {"Date": None}), ("png", {"Software": None})):
            picture.savefig(out.with_name(f"{out.name}.{suffix}"), metadata=metadata, dpi=120)


def draw_panel(plot: Axes, panel: Panel, attacks: Sequence[str], *, title: str) -> None:
    """One line for each attack; a hollow mark is a cell whose control fails, or that is undecided."""
    places = panel.places
    plot.axhline(
        panel.threshold, color="#888888", linewidth=0.8, linestyle="--", label=f"leaks past {figures.limit(panel.metric, panel.threshold)}"
    )
    for number, attack in enumerate(attacks):
        points = panel.curves.get(attack, {})
        shift = _DODGE * (number - (len(attacks) - 1) / 2)
        marks = [mark for index, place in enumerate(places) if place in points for mark in marks_of(points[place], index + shift)]
        if not marks:
            continue
        colour, style = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        where, means = [mark.where for mark in marks], [mark.mean for mark in marks]
        arms = [[mark.mean - mark.low for mark in marks], [mark.high - mark.mean for mark in marks]]
        plot.errorbar(where, means, arms, color=colour, marker=style, markersize=5, linewidth=1.2, capsize=2, label=attack)
        for mark in marks:
            if mark.hollow:
                plot.plot(mark.where, mark.mean, marker=style, markersize=5, color=colour, markerfacecolor="white", zorder=5)
    plot.set_xticks(range(len(places)), [f"{place:g}" for place in places])
    plot.set_title(title, parse_math=False, fontsize=9)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What is drawn of a point: an interval that is not known has no arms."""

    where: float
    mean: float
    low: float
    high: float
    hollow: bool


def marks_of(point: Point, where: float) -> list[Mark]:
    """Nothing of a cell that was not measured, or whose time ran out: that proves nothing."""
    found = point.interval
    if found is None or found.mean is None or point.word in _UNDRAWN:
        return []
    low, high = (found.mean if end is None else end for end in (found.low, found.high))
    return [Mark(where=where, mean=found.mean, low=low, high=high, hollow=point.word not in _SHOWN)]


if __name__ == "__main__":
    main(sys.argv[1:])
