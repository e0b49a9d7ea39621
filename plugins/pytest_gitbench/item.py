"""One cell of the matrix as a pytest item."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest

from gitbench.run.config import Cell

RUN_ID = "gitbench"


@dataclass(frozen=True)
class Outcome:
    """How a cell ended, ready for pytest. ``word`` is what the matrix shows."""

    status: str  # passed, failed, skipped or xfailed
    reason: str
    word: str
    gain: tuple[float | None, float | None, float | None]
    metric: str
    case_ids: tuple[str, ...]
    flags: tuple[str, ...] = ()
    baseline: str = ""  # what the comparison with the baseline found: a kind of change, and why


class CellItem(pytest.Item):
    """Runs one cell through the session's ``run`` and turns its outcome into pytest's."""

    cell: Cell
    run_cell: Callable[[Cell], Outcome]

    def runtest(self) -> None:
        outcome = self.run_cell(self.cell)
        mean, low, high = outcome.gain
        self.user_properties += [
            ("gitbench", outcome.word),
            ("metric", outcome.metric),
            ("mean", mean),
            ("low", low),
            ("high", high),
            ("case_ids", " ".join(outcome.case_ids)),
            ("reason", outcome.reason),
            ("flags", " ".join(outcome.flags)),
            ("baseline", outcome.baseline),
        ]
        if outcome.status == "failed" or (outcome.status == "xfailed" and self.config.option.runxfail):
            pytest.fail(outcome.reason, pytrace=False)
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)
        if outcome.status == "xfailed":
            pytest.xfail(outcome.reason)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        from gitbench.core.errors import GitbenchError

        if isinstance(excinfo.value, GitbenchError | Warning):  # a warning is raised where the user's filters say "error"
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{RUN_ID}::{self.name}"


class Matrix(pytest.Collector):
    """The parent of all cells; its node id is the first part of theirs."""

    cells: list[Cell]
    run_cell: Callable[[Cell], Outcome]

    def collect(self) -> Iterable[pytest.Item]:
        for cell in self.cells:
            item = CellItem.from_parent(self, name=cell.name)
            item.cell, item.run_cell = cell, self.run_cell
            yield item
