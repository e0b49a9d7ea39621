"""What stands below the first tables of a leaderboard: entries of others, flags, attacks with their settings, single victims."""

from __future__ import annotations

from gitbench.core import figures
from gitbench.core.metric import Metric
from gitbench.core.text import code, escaped
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.flags import FLAGS
from gitbench.judge.verdict import DEFAULT_GATE, pooled
from gitbench.publish.summary import gated_figure
from gitbench.publish.table import Table, markdown_table
from gitbench.store.result import TIMED_OUT, Measure, Result

_ATTACK_METRICS = ("mse", "psnr", "lpips", "ssim", "identification")


def measured_by_others(table: Table) -> str:
    """Where the figures of others come from, and whether their code is as here."""
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


def raised_flags(table: Table) -> str:
    """Each flag, with its cells."""
    cells: dict[str, list[str]] = {}
    for (defense, attack), results in table.results.items():
        for name in sorted({flag for result in results for flag in result.flags}):
            cells.setdefault(name, []).append(f"{code(defense)} / {code(attack)}")
    rows = [
        {"flag": code(name), "cells": ", ".join(named), "raised when": escaped(FLAGS[name].raised) if name in FLAGS else ""}
        for name, named in sorted(cells.items())
    ]
    return markdown_table(rows) if rows else ""


def single_victims(table: Table) -> str:
    """Privacy is not an average: a table of the victims that the means hide."""
    defenses = list(dict.fromkeys(defense for defense, _ in table.results))
    attacks = list(dict.fromkeys(attack for _, attack in table.results))
    metric = table.metric.name
    rows = []
    for attack in attacks:
        row: dict[str, str] = {"attacked by": code(attack)}
        for defense in defenses:
            found = table.past(defense, attack).get(metric) if (defense, attack) in table.results else None
            share = f"{100 * found.share:.0f} % [{100 * found.low:.0f}, {100 * found.high:.0f}], " if found else "n/a"
            share += gated_figure(table, found.worst) if found else ""
            sure = table.certified(defense, attack)
            share += f", {100 * sure:.0f} % certified" if found and sure is not None else ""
            share += ", by others" if found and table.by_others(defense, attack) else ""
            row[code(defense)] = share
        rows.append(row)
    return markdown_table(rows)


def undefended_attacks(table: Table) -> str:
    """What each attack gets without a defense, and how long it takes."""
    rows, shown = [], _shown(table)
    for (defense, attack), results in table.results.items():
        if defense != "none" or (defense, attack) in table.errors or any(TIMED_OUT in result.flags for result in results):
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
    usual = _ATTACK_METRICS if measured.intersection(_ATTACK_METRICS) or not measured else ()
    return [known[name] for name in (*usual, *others)]


def attack_settings(table: Table) -> str:
    """The options of each attack."""
    lines: dict[str, str] = {}
    for (_, attack), results in table.results.items():
        options = ", ".join(f"{key}={value}" for key, value in results[0].settings.items() if not key.startswith("model."))
        lines.setdefault(attack, f"- {code(attack)}: {escaped(options)}")
    return "\n".join(lines.values())


def blind_guess(result: Result) -> str:
    """What a guess without any gradient scores."""
    blind = result.baselines.blind
    return ", ".join(f"{metric.heading or metric.name} {blind[name]:.4g}" for name, metric in known_metrics().items() if name in blind)
