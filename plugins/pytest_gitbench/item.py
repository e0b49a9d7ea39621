"""One cell of the matrix as a pytest item."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from gitbench.run.matrix import Cell
from pytest_gitbench.outcome import Outcome

RUN_ID = "gitbench"


def node_id(cell: Cell) -> str:
    """What pytest calls a cell."""
    return f"{RUN_ID}::{cell.name}"


class CellItem(pytest.Item):
    """Runs one cell through the session's ``run`` and turns its outcome into pytest's."""

    cell: Cell
    run_cell: Callable[[Cell], Outcome]
    outcome: Outcome | None = None

    def runtest(self) -> None:
        self.outcome = None  # a plugin may run a cell more than once
        outcome = self.outcome = self.run_cell(self.cell)
        shown = outcome.properties
        self.user_properties[:] = [*(pair for pair in self.user_properties if pair[0] not in shown), *shown.items()]
        if outcome.status == "failed" or (outcome.status == "xfailed" and self.config.option.runxfail):
            pytest.fail(outcome.reason, pytrace=False)
        if outcome.status == "skipped":
            pytest.skip(outcome.reason)
        if outcome.status == "xfailed":
            pytest.xfail(outcome.reason)

    def _initrequest(self) -> None:
        """Forget a test's fixtures, of which a cell has none: pytest-retry asks that of every item before it runs it again."""

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: object = None) -> str:
        from gitbench.core.errors import GitbenchError

        if isinstance(excinfo.value, GitbenchError | Warning):  # a warning is raised where the user's filters say "error"
            return str(excinfo.value)
        if isinstance(excinfo.value, pytest.xfail.Exception) and not self.config.option.xfail_tb:
            return str(excinfo.value)  # nobody sees the traceback, which takes longer to write than all else of a stored cell
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, int, str]:
        # pytest needs some line where a mark skips an item. In a name that ends an id it writes "::" for every dot, and
        # 0.5 is no path of classes: with the space it ends none, and -v prints ids that can be given back to pytest.
        return self.path, 0, f"{node_id(self.cell)} "


class Matrix(pytest.Collector):
    """The parent of all cells; its node id is the first part of theirs."""

    cells: list[Cell]
    run_cell: Callable[[Cell], Outcome]

    def collect(self) -> Iterable[pytest.Item]:
        for cell in self.cells:
            item = CellItem.from_parent(self, name=cell.name)
            item.cell, item.run_cell = cell, self.run_cell
            yield item
