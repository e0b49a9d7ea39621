"""Leaks as SARIF 2.1.0, which code scanning shows beside the code of the defense (OASIS, Static Analysis Results Interchange Format)."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gitbench._version import __version__
from gitbench.core.errors import GitbenchError
from gitbench.core.spec import parse_spec
from gitbench.identity.case import UNDEFENDED
from gitbench.identity.names import Target, locate
from gitbench.publish.report.data import CellMeasured, ReportData

OPTIONS_FILE = "pyproject.toml"
"""Where a leak is shown whose defense is no file of the project: its options name it."""

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
_ROOT = "%SRCROOT%"
_BROKEN = ("error", "timed out")
_HELP = (
    "An attacker who sees the defended gradients reconstructs the private training images better than by guessing: the whole 95 % interval "
    "of the gated metric is past its threshold, against an attack that works without a defense too. The message has the figures; the HTML "
    "report of the same results (gitbench report) has the reconstructions beside the truth, what the defense costs, and what to do next."
)


def sarif(data: ReportData, specs: Mapping[str, str], *, root: Path) -> dict[str, Any]:
    """The log: one result for each cell in which a defense leaks, a rule for each attack.

    What could not be judged is no leak and no pass: it is a notification of the run, which was not successful where a cell broke.

    Args:
        data: of the report.
        specs: the id of each case to the SPEC of its defense, as it was typed.
        root: of the repository: paths are relative to it.
    """
    defended = [cell for cell in data.cells if cell.defense != UNDEFENDED]
    leaks = [cell for cell in defended if cell.standing == "leaks"]
    rules = list(dict.fromkeys(_names(cell.attack) for cell in leaks))
    unjudged = [cell for cell in defended if cell.standing not in ("leaks", "holds", "n/a")]
    run = {
        "tool": {"driver": {"name": "gitbench", "version": __version__, "rules": [_rule(attack) for attack in rules]}},
        "automationDetails": {"id": "gitbench/"},
        "invocations": [
            {
                "executionSuccessful": not any(cell.standing in _BROKEN for cell in unjudged),
                "toolExecutionNotifications": [_notification(data, cell) for cell in unjudged],
            }
        ],
        "results": [_result(data, cell, specs, root) | {"ruleIndex": rules.index(_names(cell.attack))} for cell in leaks],
        "columnKind": "unicodeCodePoints",
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def sarif_text(data: ReportData, specs: Mapping[str, str], *, root: Path) -> str:
    """The same as it is written to a file."""
    return json.dumps(sarif(data, specs, root=root), indent=1, ensure_ascii=False) + "\n"


def _names(attack: str) -> str:
    """An attack without its options: ``ridge+ig``."""
    try:
        return "+".join(part.target.rpartition(":")[2] for part in parse_spec("attack", attack).parts)
    except GitbenchError:  # a result of before, or of others, may be spelled otherwise
        return attack


def _rule(attack: str) -> dict[str, Any]:
    return {
        "id": f"leaks/{attack}",
        "name": "TrainingDataLeak",
        "shortDescription": {"text": f"The attack {attack} reconstructs private training images from the defended gradients"},
        "fullDescription": {"text": _HELP},
        "help": {"text": _HELP},
        "defaultConfiguration": {"level": "error"},
        "properties": {"tags": ["privacy", "security"]},
    }


def _result(data: ReportData, cell: CellMeasured, specs: Mapping[str, str], root: Path) -> dict[str, Any]:
    name, spec = _cell_name(data, cell), next((specs[seed.case_id] for seed in cell.seeds if seed.case_id in specs), cell.defense)
    path, line = _place(spec, root)
    return {
        "ruleId": f"leaks/{_names(cell.attack)}",
        "level": "error",
        "message": {"text": f"{name} leaks: {cell.reason}. What next: {cell.next}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": quote(path), "uriBaseId": _ROOT},
                    "region": {"startLine": line},
                }
            }
        ],
        "partialFingerprints": {"gitbenchCell/v1": hashlib.sha256(name.encode()).hexdigest()[:32]},
        "properties": {
            "metric": data.settings[cell.setting].metric.name,
            "mean": cell.value.mean,
            "low": cell.value.low,
            "high": cell.value.high,
            "caseIds": [seed.case_id for seed in cell.seeds],
            "flags": list(cell.flags),
        },
    }


def _notification(data: ReportData, cell: CellMeasured) -> dict[str, Any]:
    level = "error" if cell.standing in _BROKEN else "warning"
    return {"level": level, "message": {"text": f"{_cell_name(data, cell)}: {cell.standing}: {cell.reason}"}}


def _cell_name(data: ReportData, cell: CellMeasured) -> str:
    setting = data.settings[cell.setting]
    return f"{setting.name}/{setting.threat}/{setting.profile}/{cell.defense}/{cell.attack}"


def _place(spec: str, root: Path) -> tuple[str, int]:
    """The file of the defense within the repository and the line of its class; the options where there is none."""
    for target in _targets(spec):
        path = target.path and target.path.resolve()
        if path is not None and path.is_relative_to(root.resolve()) and "site-packages" not in path.parts:
            return path.relative_to(root.resolve()).as_posix(), _line(path, target.attribute)
    return OPTIONS_FILE, 1


def _targets(spec: str) -> list[Target]:
    try:
        return [locate("defense", part) for part in parse_spec("defense", spec).parts]
    except GitbenchError:  # not installed here, or its file has moved
        return []


def _line(path: Path, name: str) -> int:
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return 1
    kinds = (ast.ClassDef, ast.FunctionDef)
    return next((node.lineno for node in tree.body if isinstance(node, kinds) and node.name == name), 1)


def repository_of(folder: Path) -> Path:
    """The repository around a folder; the folder itself where there is none."""
    folder = folder.resolve()
    return next((one for one in (folder, *folder.parents) if (one / ".git").exists()), folder)
