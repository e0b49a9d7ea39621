"""A suite in a run of pytest: its data are looked at before it, and its table is told after it."""

from __future__ import annotations

from pathlib import Path

from gitbench.core.errors import GitbenchError
from gitbench.publish import suite_page
from gitbench.publish.suite_table import SuiteTable, suite_table
from gitbench.run.suite_data import public_images
from gitbench.run.suite_plan import SuitePlan, SuiteRun
from gitbench.run.suite_record import load_run, save_run
from gitbench.store.folder import Store


class SuiteRunner:
    """The suite of one session.

    Args:
        plan: what is run.
        store: where results are kept.
    """

    def __init__(self, plan: SuitePlan, store: Store) -> None:
        self._plan = plan
        self._store = store
        self._run: SuiteRun | None = None

    def start(self, *, look: bool) -> None:
        """Look at the data, and keep which run this is.

        Args:
            look: whether anything is measured; else the data are as they were in the last run with the same options.

        Raises:
            GitbenchError: the data are missing, or others than the table's.
        """
        last = load_run(self._store, self._plan.name)
        if not look and last is not None and last == self._plan.run(last.public):
            self._run = last
            return
        self._run = self._plan.run(public_images(self._plan.suite, self._plan.data))
        save_run(self._store, self._run)

    def told(self, folder: Path | None) -> list[str]:
        """The table, and where it was written.

        Args:
            folder: of the leaderboards; None writes nothing.
        """
        try:
            table = self._table()
            lines = [*suite_page.terminal_lines(table), ""]
            if folder is None:
                return lines
            path, refused = suite_page.write(table, folder)
            return [*lines, f"suite table {path}: not written, {refused}" if refused else f"suite table: {path}"]
        except GitbenchError as error:
            return [f"suite {self._plan.name}: no table, {error}"]

    def _table(self) -> SuiteTable:
        run = self._run or load_run(self._store, self._plan.name) or self._plan.run({})
        cases = [case for cell in self._plan.cells(every=True) for case in cell.cases]
        found = [self._store.load(case.case_id) for case in cases]
        return suite_table(self._plan.suite, run, [result for result in found if result is not None])
