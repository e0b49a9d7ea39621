"""Leaderboards in Markdown: one file per dataset and model, written from a :class:`~gitbench.publish.table.Table` alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gitbench.core import figures
from gitbench.core.metric import Metric
from gitbench.core.text import code, escaped, printable
from gitbench.identity.case import PLAIN_CLIENT
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.flags import FLAGS
from gitbench.judge.statistics import Interval
from gitbench.judge.verdict import DEFAULT_GATE, exposures, pooled
from gitbench.judge.worst_case import AUTO, Worst
from gitbench.publish.cost_table import COST, costs, rank, usefulness
from gitbench.publish.table import Table, markdown_table
from gitbench.run.profiles import PROFILES
from gitbench.store.folder import write_atomic
from gitbench.store.result import TIMED_OUT, Measure, Result

_MARK = re.compile(r"<!-- gitbench-cells: (.*) -->")
_ATTACK_METRICS = ("mse", "psnr", "lpips", "ssim", "identification")
_USEFUL = (
    "What is left to learn from: `cosine` is that of the defended and the raw update, averaged over the victims; `descent` is how far "
    "the best step along the one lowers their loss, as a share of the same along the other (docs/flags.md)."
)

_EXPOSED = (
    "Their share [95 % Wilson interval], the worst victim, and the share that is certified: the reconstruction explains what was sent to "
    "numerical precision, so that the attacker knows without the truth that it is right (docs/statistics.md)."
)


def file_name(dataset: str, model: str, conditions: Mapping[str, object]) -> str:
    """``photos-lenet.md``; what differs from the quick profile's conditions is added to the name."""
    profile = PROFILES["quick"]
    usual = {
        "threat": "server",
        "profile": "quick",
        "client": PLAIN_CLIENT,
        "victims": profile.victims,
        "batch_size": 1,
        "rounds": 1,
        "seeds": profile.seeds,
    }
    parts = [dataset, model, *(f"{key}={value}" for key, value in conditions.items() if value != usual[key])]
    short = [re.sub(r"[^\w.=]+", "_", part).strip("_") for part in parts]
    if any(re.search(r"[^\w.=]", part) and "(" in part for part in parts[:2]) or len("-".join(short)) > 200:
        # Punctuation is what tells npz(path='a/b') from npz(path='a_b').
        short.append(hashlib.sha256("\n".join(parts[:2]).encode()).hexdigest()[:6])
    return "-".join(short)[-200:] + ".md"


def write(table: Table, folder: Path, expected: Sequence[tuple[str, str]]) -> tuple[Path, str | None]:
    """Write one leaderboard, unless that would lose rows.

    Args:
        table: what was measured.
        folder: where the file goes.
        expected: the cells that this run was asked for.

    Returns:
        The path, and None when written, or the reason why not.
    """
    path = folder / file_name(table.dataset, table.model, table.conditions)
    have = {"/".join(key) for key in (*table.results, *table.not_applicable)}
    missing = sorted({"/".join(key) for key in expected} - have)
    if missing:
        return path, f"not measured yet: {', '.join(missing)}"
    lost = sorted(written_cells(path) - have)
    if lost:
        cells = printable(", ".join(lost), keep="")
        return path, f"it holds cells that this run did not measure ({cells}); choose another --gitbench-leaderboard, or delete it"
    write_atomic(path, render(table).encode())
    return path, None


def written_cells(path: Path) -> set[str]:
    """The cells (``defense/attack``) of a leaderboard on disk; none where there is no readable one."""
    try:
        mark = _MARK.search(path.read_text(encoding="utf-8"))
        cells = json.loads(mark.group(1)) if mark else []
    except (OSError, ValueError, RecursionError):
        return set()
    return {str(cell) for cell in cells} if isinstance(cells, list) else set()


def render(table: Table) -> str:
    """The Markdown of one leaderboard."""
    worsts = {defense: table.worst(defense) for defense in table.defenses}
    lines = [
        *_head(table),
        "## Defenses",
        "",
        _defenses(table, worsts),
        "",
        (
            f"Each cell: mean {table.metric.name} [95 % interval] and verdict. Ranked by the worst case: on each victim the most "
            "that any attack got, which an evaluator can know and an attacker cannot; `auto` is what an attacker can do "
            "(docs/worst-case.md). The worst attack leaks most on average. An undecided or control-less cell acquits nobody."
        ),
        "",
        *([_USEFUL, ""] if usefulness(table) else []),
        *_section("Cost", COST, costs(table, worsts)),
        *_notes(table, worsts),
        *_section("Measured by others", "Digests of code that is not as here have a *.", _others(table)),
        *_section(
            "Flags", _flags(table), "`gitbench flags` explains them. A cell flagged `control-failed` or as no success acquits nobody."
        ),
        *_section("Attacks on undefended gradients", _attacks(table), "Settings of the attacks:", _settings(table)),
        *_section("Victims past the threshold", _EXPOSED, _exposure(table)),
    ]
    return "\n".join(lines)


def _section(title: str, *paragraphs: str) -> list[str]:
    """Nothing where a part of it is empty."""
    return [line for paragraph in (f"## {title}", *paragraphs) for line in (paragraph, "")] if all(paragraphs) else []


def _head(table: Table) -> list[str]:
    """What was measured, how, and on which machine: ours, where anything was measured here."""
    first = min(table.results.items(), key=lambda item: table.by_others(*item[0]))[1][0]
    environment, known = first.environment, known_metrics()
    shown = ", ".join(f"{key} {value}" for key, value in table.conditions.items())
    gate = ", ".join(f"{name} {figures.arrow(known[name])} {figures.limit(known[name], value)}" for name, value in table.gate.items())
    if first.accuracy_drop_limit is not None:
        gate += f", and holds only where it costs at most {first.accuracy_drop_limit:g} % of accuracy"
    cells = json.dumps(sorted("/".join(key) for key in (*table.results, *table.not_applicable)))
    cells = cells.replace("--", r"\u002d\u002d")  # two dashes could end the comment; JSON reads these back
    return [
        f"# {escaped(table.dataset)} · {escaped(table.model)}",
        "",
        f"<!-- gitbench-cells: {cells} -->",
        f"- Setting: {escaped(shown)}; {_of_the_model(first)}",
        f"- A cell leaks past {gate}; 95 % intervals over victims and seeds",
        (
            f"- gitbench {escaped(environment.gitbench)}, torch {escaped(environment.torch)}, "
            f"torchvision {escaped(environment.torchvision)}, Python {escaped(environment.python)}, "
            f"{escaped(environment.platform)}, {escaped(environment.device)}, {environment.threads} threads"
        ),
        f"- Blind guess: {_blind(first)}",
        "",
    ]


def _of_the_model(result: Result) -> str:
    """The model's mode, and where its logits are taken from if it does not return them."""
    told = result.settings
    lines = [f"BatchNorm and dropout in {escaped(told.get('model.mode', 'eval'))} mode"]
    if told.get("model.output", "logits") != "logits":
        lines.append(f"the model's logits: {escaped(told['model.output'])}")
    if "model.sent" in told:
        lines.append(f"{escaped(told['model.sent'])} of the parameters are sent, the others are frozen")
    return "; ".join(lines)


def _defenses(table: Table, worsts: Mapping[str, Worst]) -> str:
    auto, metric = table.auto, table.metric
    rows, useful = [], usefulness(table)
    headings = dict.fromkeys(heading for texts in table.columns.values() for heading in texts)
    for defense, worst in worsts.items():
        reached = "not measured" if auto is None else _cell(table, defense, auto)
        row = {"defense": code(defense), "worst case": _bound(table, worst), code(auto or AUTO): reached}
        row[f"gap, {metric.unit}".rstrip(", ")] = "" if worst.gap is None else figures.figure(metric, worst.gap, unit=False)
        row |= {code(attack): _cell(table, defense, attack) for attack in table.attacks if attack != auto}
        found = {attack: table.mean(defense, attack).mean for attack in table.row(defense)}
        means = {attack: metric.sign * mean for attack, mean in found.items() if mean is not None}
        row["worst attack"] = code(max(means, key=lambda name: means[name])) if means else "none"
        row["worst"] = _figure(table, metric.sign * max(means.values())) if means else "unknown"
        if useful:
            row |= useful.get(defense, {"cosine": "", "descent": ""})
        added = {escaped(heading): escaped(table.columns.get(defense, {}).get(heading, "")) for heading in headings}
        row |= {heading: text for heading, text in added.items() if heading not in row}
        rows.append((rank(table, defense, worst), row))
    return markdown_table([row for _, row in sorted(rows, key=lambda item: item[0])])


def _cell(table: Table, defense: str, attack: str) -> str:
    """Mean, interval and verdict; or why there are none."""
    results = table.results.get((defense, attack))
    if not results:
        reason = "error" if (defense, attack) in table.errors else "not measured"
        return "n/a" if (defense, attack) in table.not_applicable else reason
    verdict, found = table.verdict(defense, attack), table.mean(defense, attack)
    if found.mean is None or found.low is None or found.high is None:
        return "error" if any(result.status == "error" for result in results) else "timed out" if verdict.late else "unknown"
    return f"{_bounded(table, found)} {verdict.word}" + (", by others" if table.by_others(defense, attack) else "")


def _bound(table: Table, worst: Worst) -> str:
    text = _bounded(table, worst.bound)
    if worst.incomplete:
        text += f", {len(worst.complete)} of {len(worst.complete) + len(worst.incomplete)} attacks"
    return text + (f" ({_bounded(table, worst.own)} without what others sent in)" if worst.raised else "")


def _bounded(table: Table, found: Interval) -> str:
    return "unknown" if found.mean is None else _figure(table, found.mean, found.low, found.high)


def _figure(table: Table, value: float, low: float | None = None, high: float | None = None) -> str:
    """A value of the gated metric; its unit stands above the table."""
    return figures.figure(table.metric, value, low, high, sign=figures.plus(table.metric), unit=False)


def _notes(table: Table, worsts: Mapping[str, Worst]) -> list[str]:
    """What the first columns lack, in words: nothing vanishes from a maximum without a trace."""
    lines = []
    for defense, worst in worsts.items():
        missing = [f"{code(attack)}: {reason}" for attack, reason in worst.incomplete.items()]
        failed = [code(attack) for attack in table.row(defense) if table.verdict(defense, attack).control_failed]
        missing += [f"without a control that leaks: {', '.join(failed)}"] if failed else []
        if missing:
            lines.append(f"- {code(defense)}, {worst.victims} victims compared: {'; '.join(missing)}")
    without = [code(defense) for defense, worst in worsts.items() if worst.auto.mean is None]
    if without:
        lines.append(f"- Measured without `auto`: {', '.join(without)}. What an attacker can do there who must choose is not known.")
    if any(table.by_others(*key) for key in table.results):
        lines.append(
            "- By others: figures measured elsewhere, or reconstructions that were sent in and scored here. Nobody has checked "
            "how they came about. They may raise the worst case, and never lower it."
        )
    return [*lines, ""] if lines else []


def _others(table: Table) -> str:
    rows = [
        {
            "defense": code(defense),
            "attack": code(attack),
            "seed": str(result.case.seed),
            "case": code(result.case_id),
            "gitbench": escaped(result.environment.gitbench),
            "code": ", ".join(
                f"{escaped(kind)} {code(digest[:8])}" + ("\\*" if kind in table.others[result.case_id] else "")
                for kind, digest in sorted(result.case.code.items())
                if kind != "gitbench"
            ),
        }
        for (defense, attack), results in table.results.items()
        for result in results
        if result.case_id in table.others
    ]
    return markdown_table(rows) if rows else ""


def _flags(table: Table) -> str:
    cells: dict[str, list[str]] = {}
    for (defense, attack), results in table.results.items():
        for name in sorted({flag for result in results for flag in result.flags}):
            cells.setdefault(name, []).append(f"{code(defense)} / {code(attack)}")
    rows = [
        {"flag": code(name), "cells": ", ".join(named), "raised when": escaped(FLAGS[name].raised) if name in FLAGS else ""}
        for name, named in sorted(cells.items())
    ]
    return markdown_table(rows) if rows else ""


def _exposure(table: Table) -> str:
    """Privacy is not an average: a table of the victims that the means hide."""
    defenses = list(dict.fromkeys(defense for defense, _ in table.results))
    attacks = list(dict.fromkeys(attack for _, attack in table.results))
    metric = table.metric.name
    rows = []
    for attack in attacks:
        row: dict[str, str] = {"attacked by": code(attack)}
        for defense in defenses:
            found = exposures(table.results.get((defense, attack), ()), {metric: table.gate[metric]}).get(metric)
            share = f"{100 * found.share:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}], " if found else "n/a"
            share += _figure(table, found.worst) if found else ""
            sure = table.certified(defense, attack)
            share += f", {100 * sure:.0f} % certified" if found and sure is not None else ""
            share += ", by others" if found and table.by_others(defense, attack) else ""
            row[code(defense)] = share
        rows.append(row)
    return markdown_table(rows)


def _attacks(table: Table) -> str:
    rows, shown = [], _shown(table)
    for (defense, attack), results in table.results.items():
        if defense != "none" or any(result.status == "error" or TIMED_OUT in result.flags for result in results):
            continue
        row: dict[str, object] = {"attack": code(attack) + (", by others" if table.by_others(defense, attack) else "")}
        for metric in shown:
            measure = pooled(results, {metric.name: None})[metric.name]
            row[f"{metric.heading or metric.name} {figures.arrow(metric)}"] = "" if measure.mean is None else f"{measure.mean:.4f}"
        row["fit s"] = f"{sum(result.cost.fit_seconds for result in results) / len(results):.1f}"
        row["attack s"] = f"{sum(result.cost.attack_seconds for result in results) / len(results):.1f}"
        unknown = Measure(mean=None, low=None, high=None, values=())
        rows.append((results[0].metrics.get("mse", unknown).mean or 0.0, row))
    if not rows:
        return ""
    return markdown_table([row for _, row in sorted(rows, key=lambda item: item[0])])


def _shown(table: Table) -> list[Metric]:
    """The metrics that attacks are told apart by: the built-in ones, and those of plugins that were measured."""
    known = known_metrics()
    measured = {name for results in table.results.values() for result in results for name in result.metrics}
    others = [name for name in known if name in measured and name not in (*_ATTACK_METRICS, *DEFAULT_GATE)]
    return [known[name] for name in (*_ATTACK_METRICS, *others)]


def _settings(table: Table) -> str:
    lines: dict[str, str] = {}
    for (_, attack), results in table.results.items():
        options = ", ".join(f"{key}={value}" for key, value in results[0].settings.items() if not key.startswith("model."))
        lines.setdefault(attack, f"- {code(attack)}: {escaped(options)}")
    return "\n".join(lines.values())


def _blind(result: Result) -> str:
    blind = result.baselines.blind
    return ", ".join(f"{metric.heading or metric.name} {blind[name]:.4g}" for name, metric in known_metrics().items() if name in blind)
