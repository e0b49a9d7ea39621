"""Leaderboards in Markdown: one file per dataset and model, written from a :class:`~gitbench.publish.table.Table` alone."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from gitbench.core import figures
from gitbench.core.errors import StoreError
from gitbench.core.text import code, escaped, printable
from gitbench.identity.case import PLAIN_CLIENT
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.worst_case import AUTO, Worst
from gitbench.publish import picture
from gitbench.publish.cost_table import COST, costs, rank, usefulness
from gitbench.publish.details import attack_settings, blind_guess, measured_by_others, raised_flags, single_victims, undefended_attacks
from gitbench.publish.summary import LEGEND, SummaryRow, bounded, gated_figure, strongest_attack, summary_rows, summary_table
from gitbench.publish.table import Table, canonical, markdown_table
from gitbench.run.profiles import PROFILES
from gitbench.store.folder import LARGEST, read_file, write_atomic
from gitbench.store.result import Result

PICTURES = "pictures"
"""The folder of the pictures, beside the Markdown."""

_MARK = re.compile(r"<!-- gitbench-cells: (.*) -->")
_NOT_GRANTED = re.compile(r"<!-- gitbench-not-granted: (.*) -->")
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
        short.append(hashlib.sha256("\n".join(parts[:2]).encode(errors="backslashreplace")).hexdigest()[:6])
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
    table = completed(table, path)
    if not table.results:
        return path, "nothing was measured, every cell ended in an error"
    have = {"/".join(key) for key in table.cells}
    missing = sorted({"/".join(key) for key in expected} - have)
    if missing:
        return path, f"not measured yet: {', '.join(missing)}"
    lost = sorted(written_cells(path) - have)
    if lost:
        cells = printable(", ".join(lost), keep="")
        return path, f"it holds cells that this run did not measure ({cells}); choose another --gitbench-leaderboard, or delete it"
    for name, text in files(table).items():
        write_atomic(folder / name, text.encode())
    return path, None


def completed(table: Table, path: Path) -> Table:
    """The table with what a committed one says of cells that the threat model does not let run: no result tells of those."""
    pairs = [pair for pair in _marked(path, _NOT_GRANTED) if isinstance(pair, list) and list(map(type, pair)) == [str, str]]
    return canonical(table, not_applicable={(defense, attack): "" for defense, attack in pairs if defense in table.defenses})


def files(table: Table) -> dict[str, str]:
    """What a table is written as, by paths within its folder: the picture, and the Markdown that shows it."""
    name = file_name(table.dataset, table.model, table.conditions)
    ordered = canonical(table)
    rows = summary_rows(ordered)
    return {_picture_of(name): picture.draw(ordered, rows), name: _rendered(ordered, rows)}


def is_leaderboard(path: Path) -> bool:
    """Whether a file was written by :func:`write`."""
    try:
        return _MARK.search(_text(path)) is not None
    except (OSError, ValueError, StoreError):
        return False


def written_cells(path: Path) -> set[str]:
    """The cells (``defense/attack``) of a leaderboard on disk; none where there is no readable one."""
    return {str(cell) for cell in _marked(path, _MARK)}


def _marked(path: Path, mark: re.Pattern[str]) -> list[object]:
    """The list in a comment of a leaderboard on disk; empty where there is no readable one."""
    try:
        found = mark.search(_text(path))
        content = json.loads(found.group(1)) if found else []
    except (OSError, ValueError, RecursionError, StoreError):
        return []
    return content if isinstance(content, list) else []


def _text(path: Path) -> str:
    return read_file(path, most=LARGEST).decode("utf-8")


def _picture_of(name: str) -> str:
    return f"{PICTURES}/{name.removesuffix('.md')}.svg"


def render(table: Table) -> str:
    """The Markdown of one leaderboard, the same whatever order its cells were measured in."""
    ordered = canonical(table)
    return _rendered(ordered, summary_rows(ordered))


def _rendered(table: Table, rows: Sequence[SummaryRow]) -> str:
    worsts = table.worsts
    name = file_name(table.dataset, table.model, table.conditions)
    lines = [
        *_head(table),
        "## Defenses",
        "",
        summary_table(table, rows),
        "",
        LEGEND,
        "",
        f"![{escaped(picture.title(table))}]({quote(_picture_of(name))})",
        "",
        *_notes(table, worsts),
        "## Every attack",
        "",
        _defenses(table, worsts),
        "",
        (
            f"Each cell: mean {table.metric.name} [95 % interval] and verdict. The worst case is what an evaluator can know and an "
            "attacker cannot; `auto` is what an attacker can do (docs/worst-case.md). The worst attack leaks most on average. An "
            "undecided or control-less cell acquits nobody."
        ),
        "",
        *([_USEFUL, ""] if usefulness(table) else []),
        *_section("Cost", COST, costs(table, worsts)),
        *_section("Measured by others", "Digests of code that is not as here have a *.", measured_by_others(table)),
        *_section(
            "Flags",
            raised_flags(table),
            "`gitbench flags` explains them. A cell flagged `control-failed` or as no success acquits nobody.",
        ),
        *_section("Attacks on undefended gradients", undefended_attacks(table), "Settings of the attacks:", attack_settings(table)),
        *_section("Victims past the threshold", _EXPOSED, single_victims(table)),
        *_measured_with(table),
    ]
    return "\n".join(lines)


def _section(title: str, *paragraphs: str) -> list[str]:
    """Nothing where a part of it is empty."""
    return [line for paragraph in (f"## {title}", *paragraphs) for line in (paragraph, "")] if all(paragraphs) else []


def _head(table: Table) -> list[str]:
    """What was measured, and what counts as a leak."""
    first, known = _first(table), known_metrics()
    shown = ", ".join(f"{key} {value}" for key, value in table.conditions.items())
    gate = ", ".join(f"{name} {figures.arrow(known[name])} {figures.limit(known[name], value)}" for name, value in table.gate.items())
    if first.accuracy_drop_limit is not None:
        gate += f", and holds only where it costs at most {first.accuracy_drop_limit:g} % of accuracy"
    return [
        f"# {escaped(table.dataset)} · {escaped(table.model)}",
        "",
        _comment("gitbench-cells", sorted("/".join(key) for key in table.cells)),
        *([_comment("gitbench-not-granted", list(map(list, table.not_applicable)))] if table.not_applicable else []),
        f"- Setting: {escaped(shown)}; {_of_the_model(first)}",
        f"- A cell leaks past {gate}; 95 % intervals over victims and seeds",
        "",
    ]


def _comment(mark: str, content: list[object] | list[str] | list[list[str]]) -> str:
    # Two dashes could end the comment; JSON reads these back.
    return f"<!-- {mark}: {json.dumps(content).replace('--', chr(92) + 'u002d' + chr(92) + 'u002d')} -->"


def _first(table: Table) -> Result:
    """One result for what all have in common: ours, where anything was measured here."""
    return min(table.results.items(), key=lambda item: table.by_others(*item[0]))[1][0]


def _measured_with(table: Table) -> list[str]:
    """Versions and machine: ours, where anything was measured here."""
    environment = _first(table).environment
    return [
        "## Measured with",
        "",
        (
            f"- gitbench {escaped(environment.gitbench)}, torch {escaped(environment.torch)}, "
            f"torchvision {escaped(environment.torchvision)}, Python {escaped(environment.python)}, "
            f"{escaped(environment.platform)}, {escaped(environment.device)}, {environment.threads} threads"
        ),
        f"- Blind guess: {blind_guess(_first(table))}",
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
        strongest = strongest_attack(table, defense)
        row["worst attack"] = code(strongest[0]) if strongest else "none"
        row["worst"] = gated_figure(table, strongest[1]) if strongest else "unknown"
        if useful:
            row |= useful.get(defense, {"cosine": "", "descent": ""})
        added = {escaped(heading): escaped(table.columns.get(defense, {}).get(heading, "")) for heading in headings}
        row |= {heading: text for heading, text in added.items() if heading not in row}
        rows.append((rank(table, defense, worst), row))
    return markdown_table([row for _, row in sorted(rows, key=lambda item: item[0])])


def _cell(table: Table, defense: str, attack: str) -> str:
    """Mean, interval and verdict; or why there are none."""
    if (defense, attack) in table.errors:
        return "error"
    if not table.results.get((defense, attack)):
        return "n/a" if (defense, attack) in table.not_applicable else "not measured"
    verdict, found = table.verdict(defense, attack), table.mean(defense, attack)
    if found.mean is None or found.low is None or found.high is None:
        return "timed out" if verdict.late else "unknown"
    return f"{bounded(table, found)} {verdict.word}" + (", by others" if table.by_others(defense, attack) else "")


def _bound(table: Table, worst: Worst) -> str:
    text = bounded(table, worst.bound)
    if worst.incomplete:
        text += f", {len(worst.complete)} of {len(worst.complete) + len(worst.incomplete)} attacks"
    return text + (f" ({bounded(table, worst.own)} without what others sent in)" if worst.raised else "")


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
