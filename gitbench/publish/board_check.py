"""Whether committed leaderboards follow from their results (``gitbench leaderboard --check``)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from gitbench.core.errors import StoreError
from gitbench.publish.leaderboard import completed, file_name, files, is_leaderboard
from gitbench.publish.table import Table
from gitbench.store.folder import LARGEST, read_file, read_result
from gitbench.store.result import Result

_MOST_LINES = 24  # of one diff: a reader wants to know what differs, not all of it
_WIDTH = 150  # characters of a line: rows of tables are long
_BEFORE = 40  # of them, those before the first difference


def read_strictly(results: Path) -> list[Result]:
    """Every result of a folder. A file that a run would measure again is an error here: a check must not pass over it.

    Raises:
        StoreError: a file is no result.
    """
    found = []
    for path in sorted((results / "cases").glob("*.json"), key=str):
        try:
            found.append(read_result(path))
        except ValidationError:
            raise StoreError(
                f"Expected a result of gitbench in {path}, found something else. Restore the file as it was committed, or delete it."
            ) from None
    return found


def differences(tables: Sequence[Table], folder: Path) -> list[str]:
    """What in a folder of leaderboards does not follow from these tables, in words and diffs; empty where all does."""
    told: list[str] = []
    expected: set[str] = set()
    for table in tables:
        name = file_name(table.dataset, table.model, table.conditions)
        expected.add(name)
        told += _of_table(completed(table, folder / name), folder)
    for path in sorted(folder.glob("*.md")):
        if path.name not in expected and is_leaderboard(path):
            told.append(f"{path}: no result gives this table. Add its results, or delete it and its picture.")
    return told


def text_differs(path: Path, text: str) -> list[str]:
    """What of a committed file is not as this text, in words and a diff; empty where it is, but for what a formatter may change."""
    try:
        committed = read_file(path, most=LARGEST).decode("utf-8")
    except FileNotFoundError:
        return [f"{path}: missing, though there are results for it."]
    except UnicodeDecodeError:
        return [f"{path}: expected text in UTF-8, found other bytes."]
    before, after = _plain(committed), _plain(text)
    return [] if before == after else [f"{path}: does not follow from the results.", *_diff(before, after)]


def _of_table(table: Table, folder: Path) -> list[str]:
    told: list[str] = []
    for name, text in reversed(files(table).items()):  # the Markdown first, its picture after it
        found = text_differs(folder / name, text)
        told += found if name.endswith(".md") or not told else found[:1]  # of a picture the diff only where that is all
    return told


def _plain(text: str) -> list[str]:
    """Lines without what a checkout or a formatter of Markdown may change: ends of lines, and the widths of columns."""
    return [_narrow(line) if line.startswith("|") else line.rstrip() for line in text.replace("\r\n", "\n").rstrip().split("\n")]


def _narrow(row: str) -> str:
    narrow = re.sub(r" *(?<!\\)\| *", " | ", row).strip()
    return re.sub(r"-+", "-", narrow) if re.fullmatch(r"[|:\- ]+", narrow) else narrow


def _diff(before: Sequence[str], after: Sequence[str]) -> list[str]:
    """A unified diff of whole lines, each cut to where it differs."""
    lines = ["--- committed", "+++ from the results"]
    for tag, a, b, c, d in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            continue
        old, new = before[a:b], after[c:d]
        lines.append(f"@@ -{a + 1},{b - a} +{c + 1},{d - c} @@")
        starts = [_first_difference(one, other) for one, other in zip(old, new, strict=False)]
        starts += [0] * (max(len(old), len(new)) - len(starts))
        lines += [f"-{_cut(line, start)}" for line, start in zip(old, starts, strict=False)]
        lines += [f"+{_cut(line, start)}" for line, start in zip(new, starts, strict=False)]
    left = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], f"... and {left} more lines"] if left > 0 else lines


def _first_difference(a: str, b: str) -> int:
    return next((place for place, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))


def _cut(line: str, start: int) -> str:
    """The part of a line around its first difference, and its beginning, which names the row."""
    if len(line) <= _WIDTH:
        return line
    first = max(0, start - _BEFORE)
    head = "" if first == 0 else f"{line[:_BEFORE]} ... " if first > _BEFORE else line[:first]
    rest = line[first : first + _WIDTH - len(head)]
    return f"{head}{rest}{' ...' if first + len(rest) < len(line) else ''}"
