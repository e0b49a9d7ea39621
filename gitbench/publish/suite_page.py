"""The table of a suite as people read it: lines for a terminal, and Markdown that remembers which run it is of."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from gitbench.core.errors import StoreError
from gitbench.core.text import code, escaped, printable
from gitbench.publish.details import blind_guess
from gitbench.publish.suite_table import MeasuredLine, SuiteFigure, SuiteTable
from gitbench.publish.table import markdown_table
from gitbench.run.suite import FULL, SuiteSetting
from gitbench.run.suite_plan import SuiteRun
from gitbench.store.folder import LARGEST, read_file, write_atomic
from gitbench.store.result import Result

FOLDER = "suites"
"""Of the tables, below that of the leaderboards."""

_MARK = re.compile(r"<!-- gitbench-suite: (.*) -->")
_NAMED = 6  # lines that a flag or an error names
_READ = (
    "The difference is ours less the published figure, with the digits that were published. An arrow shows where the attack got more: "
    "a lower MSE or LPIPS, a higher PSNR or SSIM. The interval is over our victims and seeds; the paper gives none."
)


@dataclass(frozen=True)
class WrittenSuite:
    """What a table on disk says of itself.

    Args:
        run: which run it is of.
        measured: the cells that it has figures of.
    """

    run: SuiteRun
    measured: frozenset[str]


def terminal_lines(table: SuiteTable) -> list[str]:
    """The table, compact: what is published, ours, the difference, and what to know before they are compared."""
    from tabulate import tabulate

    lines = [f"suite {table.run.suite}: {_title(table)}", *_budget(table), f"data: {_data(table, markdown=False)}", ""]
    for setting, its in table.settings():
        if not any(line.results for line in its):
            continue  # what is published and not measured stands in the Markdown; why, below
        rows = [_row(table, setting, figure, markdown=False) for line in its for figure in table.figures(line)]
        lines += [setting.title, *tabulate(rows, headers="keys", tablefmt="simple", disable_numparse=True).splitlines(), ""]
    lines += [_READ, *(f"note: {note}" for note in table.suite.notes)]
    lines += [f"the paper contradicts itself: {text}" for text in table.suite.contradictions]
    return [printable(line, keep="") for line in (*lines, *_failed(table, markdown=False))]


def render(table: SuiteTable) -> str:
    """The Markdown."""
    source = table.suite.source
    head = f"{source.paper}, {source.table}" + (f" (arXiv {source.arxiv})" if source.arxiv else "")
    mark = {"run": table.run.model_dump(), "measured": sorted({line.key for line in table.measured})}
    lines = [
        f"# {escaped(_title(table))}",
        "",
        # Two dashes could end the comment; JSON reads these back.
        f"<!-- gitbench-suite: {json.dumps(mark).replace('--', chr(92) + 'u002d' + chr(92) + 'u002d')} -->",
        "",
        f"- Published: {escaped(head)}. {escaped(source.budget)}",
        *(f"- {escaped(text)}" for text in _budget(table)),
        f"- Attackers: threat model {code(table.suite.threat)}; seeds {', '.join(map(str, range(table.run.seeds)))}",
        f"- Data: {_data(table, markdown=True)}",
        f"- Again: {code(_command(table.run))}",
        "",
    ]
    for setting, its in table.settings():
        lines += _setting(table, setting, its)
    lines += [_READ, ""]
    lines += _listed("What differs", [escaped(note) for note in table.suite.notes])
    lines += _listed("Where the paper contradicts itself", [escaped(text) for text in table.suite.contradictions])
    lines += _listed("Not measured", _failed(table, markdown=True))
    lines += _listed("Flags", _flags(table))
    lines += _listed("Settings of the attacks", _attacks(table))
    lines += _listed("Measured with", _environments(table))
    return "\n".join(lines)


def write(table: SuiteTable, folder: Path) -> tuple[Path, str | None]:
    """Write the table, unless that would lose figures.

    Returns:
        The path, and None when written, or the reason why not.
    """
    path = page_path(folder, table.run.suite)
    have = {line.key for line in table.measured}
    if not have:
        return path, "nothing was measured"
    old = read_written(path)
    if old is not None and old.run != table.run:
        options = f"profile {old.run.profile}, {old.run.victims} victims, {old.run.seeds} seeds, data {', '.join(old.run.data.values())}"
        return path, f"it holds a run with other options ({options}); choose another --gitbench-leaderboard, or delete it"
    lost = sorted(old.measured - have) if old is not None else []
    if lost:
        return path, f"it holds figures that are not measured here ({', '.join(lost)}); choose another --gitbench-leaderboard, or delete it"
    write_atomic(path, render(table).encode())
    return path, None


def page_path(folder: Path, name: str) -> Path:
    """Where the table of a suite stands in a folder of leaderboards."""
    return folder / FOLDER / f"{name}.md"


def read_written(path: Path) -> WrittenSuite | None:
    """What a table on disk says of itself; None where there is no readable one."""
    try:
        found = _MARK.search(read_file(path, most=LARGEST).decode())
        content = json.loads(found.group(1)) if found else {}
        return WrittenSuite(SuiteRun.model_validate(content["run"]), frozenset(map(str, content["measured"])))
    except (OSError, ValueError, TypeError, KeyError, RecursionError, StoreError, ValidationError):
        return None


def _title(table: SuiteTable) -> str:
    source = table.suite.source
    return f"{source.paper}, {source.table}: {table.suite.title}"


def _budget(table: SuiteTable) -> list[str]:
    run = table.run
    done, every = len(table.measured), len(table.lines)
    sizes = f"profile {run.profile}, {run.victims:,} victims a seed, {run.seeds:,} seed{'' if run.seeds == 1 else 's'}"
    told = [f"REDUCED: {', '.join(table.reduced)}"] if table.reduced else [f"Budget: {sizes}, the suite's own ({FULL})"]
    return [*told, f"Partial: {done} of {every} lines are measured" if done < every else f"All of its {every} lines are measured"]


def _data(table: SuiteTable, *, markdown: bool) -> str:
    told = []
    for need in table.suite.data:
        spec = table.run.data.get(need.name)
        if spec is None:
            told.append(f"{need.name} is not given")
            continue
        public = table.run.public.get(need.name)
        count = "" if public is None else f", {public:,} public images"
        told.append(f"{need.name} = {code(spec) if markdown else spec}{count}")
    return "; ".join(told)


def _command(run: SuiteRun) -> str:
    """What measures this: a suite of one's own is named by its path instead."""
    data = [f'--gitbench-dataset "{need}={spec.replace(chr(34), chr(92) + chr(34))}"' for need, spec in run.data.items()]
    sizes = f"--gitbench-profile {run.profile} --gitbench-victims {run.victims} --gitbench-seeds {run.seeds}"
    return " ".join(["pytest --gitbench", f"--gitbench-suite {run.suite}", *data, sizes])


def _setting(table: SuiteTable, setting: SuiteSetting, its: Sequence[MeasuredLine]) -> list[str]:
    of_model = ""
    if setting.model:
        rounds = f", {setting.rounds} rounds" if setting.rounds > 1 else ""
        of_model = f"Model {code(setting.model)}, clients {code(setting.client)}, batch size {setting.batch_size}{rounds}."
    rows = [_row(table, setting, figure, markdown=True) for line in its for figure in table.figures(line)]
    first = next((result for line in its for result in line.results), None)
    blind = "" if first is None else f"The blind guess, which needs no gradient: {blind_guess(first)}."
    parts = (f"## {escaped(setting.title)}", of_model, markdown_table(rows), blind)
    return [line for part in parts if part for line in (part, "")]


def _row(table: SuiteTable, setting: SuiteSetting, figure: SuiteFigure, *, markdown: bool) -> Mapping[str, str]:
    line = figure.line
    plain = escaped if markdown else str
    row = {plain(setting.rows): plain(line.row)} if setting.rows else {}
    row["attack"] = plain(line.paper)
    if markdown:
        row["measured here"] = " on ".join(code(one) for one in (line.attack, line.defense) if one) if line.attack else ""
    ours = "ours, reduced [95 %]" if table.reduced else "ours [95 %]"
    return {**row, "metric": figure.metric, "published": figure.published, ours: figure.ours, "difference": figure.difference}


def _named(lines: Sequence[MeasuredLine]) -> str:
    """``CIFAR-10, LeNet (DLG, IG at 0.1)``: lines by their settings, each once."""
    settings: dict[str, dict[str, None]] = {}
    for line in lines:
        row = f" at {line.planned.line.row}" if line.planned.line.row else ""
        settings.setdefault(line.planned.setting.title, {})[f"{line.planned.line.paper}{row}"] = None
    return "; ".join(f"{title} ({_some(list(names))})" for title, names in settings.items())


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")


def _failed(table: SuiteTable, *, markdown: bool) -> list[str]:
    """Why lines have no figures, each reason once."""
    reasons: dict[str, list[MeasuredLine]] = {}
    for line in table.lines:
        if not line.results:
            reasons.setdefault(line.why, []).append(line)
    plain = escaped if markdown else str
    return [plain(f"{why}: {_named(its)}") for why, its in reasons.items()]


def _flags(table: SuiteTable) -> list[str]:
    raised: dict[str, list[MeasuredLine]] = {}
    for line in table.measured:
        for flag in sorted({flag for result in line.results for flag in result.flags}):
            raised.setdefault(flag, []).append(line)
    told = [f"{code(flag)}: {escaped(_named(its))}" for flag, its in sorted(raised.items())]
    return [*told, "`gitbench flags` explains them"] if told else []


def _attacks(table: SuiteTable) -> list[str]:
    """The options of each attack, and how long a case took: several may share what was learned, so that their sum would say too much."""
    found: dict[tuple[str | None, str], list[Result]] = {}
    for line in table.measured:
        found.setdefault((line.planned.line.attack, line.planned.setting.title), []).extend(line.results)
    told = []
    for (attack, title), results in found.items():
        once = {result.case_id: result for result in results}.values()
        options = ", ".join(f"{key}={value}" for key, value in results[0].settings.items() if not key.startswith("model."))
        fit, run = (
            sum(seconds) / len(once) for seconds in zip(*((one.cost.fit_seconds, one.cost.attack_seconds) for one in once), strict=True)
        )
        told.append(f"{code(attack or '')}, {escaped(title)}: {fit:.1f} s to learn and {run:.1f} s to attack a case; {escaped(options)}")
    return told


def _environments(table: SuiteTable) -> list[str]:
    """Versions and machines, each once."""
    told = {
        f"gitbench {one.gitbench}, torch {one.torch}, torchvision {one.torchvision}, Python {one.python}, "
        f"{one.platform}, {one.device}, {one.threads} threads"
        for line in table.measured
        for one in (result.environment for result in line.results)
    }
    return [escaped(text) for text in sorted(told)]


def _listed(title: str, items: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {item}" for item in items), ""] if items else []
