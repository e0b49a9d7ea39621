"""Leaderboards in Markdown: one file per dataset and model, built from stored results alone."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gitbench.config import PROFILES, Config
from gitbench.flags import FLAGS
from gitbench.metric import METRICS
from gitbench.result import TIMED_OUT, Measure, Result
from gitbench.sequential import FIRST, at_look, looks
from gitbench.statistics import interval
from gitbench.store import write_atomic
from gitbench.text import code, escaped, printable
from gitbench.verdict import DEFAULT_GATE, Estimate, exposures, judge_results, pooled

_MARK = re.compile(r"<!-- gitbench-cells: (.*) -->")
_ATTACK_METRICS = ("mse", "psnr", "lpips", "ssim", "identification")


@dataclass(frozen=True)
class Table:
    """The results behind one leaderboard.

    Args:
        dataset: label of the dataset.
        model: label of the model.
        results: (defense, attack) to the results of all seeds.
        setting: threat model, profile, victims, batch size, seeds.
        gate: metric name to threshold.
        not_applicable: (defense, attack) to the reason why it was not run.
        columns: defense to heading and text of the columns that plugins add.
    """

    dataset: str
    model: str
    results: Mapping[tuple[str, str], Sequence[Result]]
    setting: Mapping[str, object]
    gate: Mapping[str, float]
    not_applicable: Mapping[tuple[str, str], str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def file_name(dataset: str, model: str, setting: Mapping[str, object]) -> str:
    """``photos-lenet.md``; what differs from the quick profile's setting is added to the name."""
    profile = PROFILES["quick"]
    usual = {"threat": "server", "profile": "quick", "victims": profile.victims, "batch_size": profile.batch_size, "seeds": profile.seeds}
    parts = [dataset, model, *(f"{key}={value}" for key, value in setting.items() if value != usual[key])]
    short = [re.sub(r"[^\w.=]+", "_", part).strip("_") for part in parts]
    if any(re.search(r"[^\w.=]", part) and "(" in part for part in parts[:2]) or len("-".join(short)) > 200:
        # Punctuation is what tells npz(path='a/b') from npz(path='a_b').
        short.append(hashlib.sha256("\n".join(parts[:2]).encode()).hexdigest()[:6])
    return "-".join(short)[-200:] + ".md"


def render(table: Table) -> str:
    """The Markdown of one leaderboard."""
    first = next(iter(table.results.values()))[0]
    environment = first.environment
    shown = ", ".join(f"{key} {value}" for key, value in table.setting.items())
    gate = ", ".join(f"{metric} {METRICS[metric].arrow} {value:g} {METRICS[metric].unit}".strip() for metric, value in table.gate.items())
    cells = json.dumps(sorted("/".join(key) for key in (*table.results, *table.not_applicable)))
    cells = cells.replace("--", r"\u002d\u002d")  # two dashes could end the comment; JSON reads these back
    mode = escaped(first.settings.get("model.mode", "eval"))
    lines = [
        f"# {escaped(table.dataset)} · {escaped(table.model)}",
        "",
        f"<!-- gitbench-cells: {cells} -->",
        f"- Setting: {escaped(shown)}; BatchNorm and dropout in {mode} mode",
        f"- A cell leaks past {gate}; 95 % intervals over victims and seeds",
        (
            f"- gitbench {escaped(environment.gitbench)}, torch {escaped(environment.torch)}, "
            f"torchvision {escaped(environment.torchvision)}, Python {escaped(environment.python)}, "
            f"{escaped(environment.platform)}, {escaped(environment.device)}, {environment.threads} threads"
        ),
        f"- Blind guess: {_blind(first)}",
        "",
        "## Defenses",
        "",
        _defenses(table),
        "",
        (
            f"Each cell: mean {next(iter(table.gate))} [95 % interval] and verdict. The worst attack leaks most. "
            "An undecided or control-less cell acquits nobody."
        ),
        "",
    ]
    flags = _flags(table)
    if flags:
        lines += [
            "## Flags",
            "",
            flags,
            "",
            "docs/flags.md explains them. A cell flagged `control-failed` or as no success acquits nobody.",
            "",
        ]
    attacks = _attacks(table)
    if attacks:
        lines += ["## Attacks on undefended gradients", "", attacks, ""]
        lines += ["Settings of the attacks:", "", *_settings(table), ""]
    exposed = _exposure(table)
    if exposed:
        lines += ["## Victims past the threshold", "", "Their share [95 % Wilson interval], and the worst victim.", "", exposed, ""]
    return "\n".join(lines)


def write(table: Table, folder: Path, expected: Sequence[tuple[str, str]]) -> tuple[Path, str | None]:
    """Write one leaderboard, unless that would lose rows.

    Args:
        table: what was measured.
        folder: where the file goes.
        expected: the cells that this run was asked for.

    Returns:
        The path, and None when written, or the reason why not.
    """
    path = folder / file_name(table.dataset, table.model, table.setting)
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


def tables(results: Sequence[Result]) -> list[Table]:
    """Sort stored results into tables; of several measurements of one cell the latest counts."""
    groups: dict[str, dict[tuple[str, str], dict[int, Result]]] = {}
    for result in sorted(results, key=lambda result: result.finished_at):
        if result.status != "done":
            continue
        case = result.case
        shared = (case.dataset, case.model, case.threat, case.profile, case.victims, case.batch_size)
        cell = groups.setdefault(json.dumps(shared), {}).setdefault((case.defense, case.attack), {})
        cell[case.seed] = result
    found = []
    for key, cells in sorted(groups.items()):
        dataset, model, threat, profile, victims, batch_size = json.loads(key)
        seeds = max(len(by_seed) for by_seed in cells.values())
        any_result = next(iter(next(iter(cells.values())).values()))
        found.append(
            Table(
                dataset=dataset,
                model=model,
                results={cell: [by_seed[seed] for seed in sorted(by_seed)] for cell, by_seed in cells.items()},
                setting={"threat": threat, "profile": profile, "victims": victims, "batch_size": batch_size, "seeds": seeds},
                gate=any_result.gate or DEFAULT_GATE,
            )
        )
    return found


def table_of(
    config: Config,
    group: tuple[str, str],
    results: Mapping[tuple[str, str], Sequence[Result]],
    not_applicable: Mapping[tuple[str, str], str],
    *,
    columns: Mapping[str, Mapping[str, str]],
) -> Table:
    """The table of one dataset and model of a run."""
    return Table(*group, results=results, setting=config.setting, gate=config.threshold, not_applicable=not_applicable, columns=columns)


def _defenses(table: Table) -> str:
    keys = (*table.results, *table.not_applicable)
    defenses = list(dict.fromkeys(defense for defense, _ in keys))
    attacks = list(dict.fromkeys(attack for _, attack in keys))
    metric = next(iter(table.gate))
    sign = 1 if METRICS[metric].higher_leaks else -1
    rows = []
    for defense in defenses:
        row: dict[str, str] = {"defense": code(defense)}
        means: dict[str, float] = {}
        for attack in attacks:
            results = table.results.get((defense, attack))
            if not results:
                row[code(attack)] = "n/a" if (defense, attack) in table.not_applicable else "not measured"
                continue
            control = None if defense == "none" else table.results.get(("none", attack), [])
            estimate = _estimate(table)
            verdict = judge_results(results, control, gate=table.gate, estimate=estimate)
            found = pooled(results, table.gate, estimate=estimate)[metric]
            if found.mean is not None:
                means[attack] = sign * found.mean
            if found.mean is None or found.low is None or found.high is None:
                row[code(attack)] = (
                    "error" if any(result.status == "error" for result in results) else "timed out" if verdict.late else "unknown"
                )
            else:
                row[code(attack)] = f"{found.mean:+.2f} [{found.low:.2f}, {found.high:.2f}] {verdict.word}"
        row["worst attack"] = code(max(means, key=lambda name: means[name])) if means else "none"
        row["worst"] = f"{sign * max(means.values()):+.2f}" if means else "unknown"
        headings = dict.fromkeys(heading for texts in table.columns.values() for heading in texts)
        added = {escaped(heading): escaped(table.columns.get(defense, {}).get(heading, "")) for heading in headings}
        row |= {heading: text for heading, text in added.items() if heading not in row}
        rows.append((max(means.values(), default=float("inf")), defense != "none", row))
    # The best defense first, the undefended row at the end as the yardstick.
    ordered = [row for *_, row in sorted(rows, key=lambda item: (not item[1], item[0]))]
    return _markdown(ordered)


def _flags(table: Table) -> str:
    cells: dict[str, list[str]] = {}
    for (defense, attack), results in table.results.items():
        for name in sorted({flag for result in results for flag in result.flags}):
            cells.setdefault(name, []).append(f"{code(defense)} / {code(attack)}")
    rows = [
        {"flag": code(name), "cells": ", ".join(named), "raised when": escaped(FLAGS[name].raised) if name in FLAGS else ""}
        for name, named in sorted(cells.items())
    ]
    return _markdown(rows) if rows else ""


def _estimate(table: Table) -> Estimate:
    """How the intervals of the run were made."""
    profile = str(table.setting.get("profile"))
    if table.setting.get("victims") != "auto" or profile not in PROFILES:
        return interval
    return functools.partial(at_look, planned=looks(FIRST, PROFILES[profile].most_victims))


def _exposure(table: Table) -> str:
    """Privacy is not an average: a table of the victims that the means hide."""
    defenses = list(dict.fromkeys(defense for defense, _ in table.results))
    attacks = list(dict.fromkeys(attack for _, attack in table.results))
    metric = next(iter(table.gate))
    rows = []
    for attack in attacks:
        row: dict[str, str] = {"attacked by": code(attack)}
        for defense in defenses:
            found = exposures(table.results.get((defense, attack), ()), {metric: table.gate[metric]}).get(metric)
            share = f"{100 * found.share:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}], {found.worst:+.2f}" if found else "n/a"
            row[code(defense)] = share
        rows.append(row)
    return _markdown(rows)


def _attacks(table: Table) -> str:
    rows = []
    for (defense, attack), results in table.results.items():
        if defense != "none" or any(result.status == "error" or TIMED_OUT in result.flags for result in results):
            continue
        row: dict[str, object] = {"attack": code(attack)}
        for metric in _ATTACK_METRICS:
            measure = pooled(results, {metric: None})[metric]
            row[f"{metric.upper() if len(metric) < 6 else metric} {METRICS[metric].arrow}"] = (
                "" if measure.mean is None else f"{measure.mean:.4f}"
            )
        row["fit s"] = f"{sum(result.cost.fit_seconds for result in results) / len(results):.1f}"
        row["attack s"] = f"{sum(result.cost.attack_seconds for result in results) / len(results):.1f}"
        unknown = Measure(mean=None, low=None, high=None, values=())
        rows.append((results[0].metrics.get("mse", unknown).mean or 0.0, row))
    if not rows:
        return ""
    return _markdown([row for _, row in sorted(rows, key=lambda item: item[0])])


def _markdown(rows: Sequence[Mapping[str, object]]) -> str:
    import pandas as pd

    text: str = pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
    return text


def _settings(table: Table) -> list[str]:
    lines: dict[str, str] = {}
    for (_, attack), results in table.results.items():
        options = ", ".join(f"{key}={value}" for key, value in results[0].settings.items() if key != "model.mode")
        lines.setdefault(attack, f"- {code(attack)}: {escaped(options)}")
    return list(lines.values())


def _blind(result: Result) -> str:
    blind = result.baselines.blind
    return ", ".join(f"{metric.upper()} {blind[metric]:.4g}" for metric in ("mse", "psnr", "ssim", "lpips") if metric in blind)
