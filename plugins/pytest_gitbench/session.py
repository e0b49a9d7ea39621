"""The state of one ``pytest --gitbench``: the matrix, its running, its telling, its leaderboards."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gitbench.core.errors import ConfigError, GitbenchError
from gitbench.identity.case import UNDEFENDED, Setting
from gitbench.publish import leaderboard
from gitbench.publish.baseline import key_of, load_baseline
from gitbench.publish.table import table_of
from gitbench.run.matrix import Cell, make_cells
from gitbench.store.folder import Store
from gitbench.store.result import Result
from pytest_gitbench import report as lines
from pytest_gitbench.extensions import REGISTERED, added_columns, added_lines, shaped
from pytest_gitbench.item import RUN_ID, CellItem, Matrix, node_id
from pytest_gitbench.options import check_executor, read_config, read_plan
from pytest_gitbench.outcome import Outcome
from pytest_gitbench.runner import NOT_GRANTED, Runner
from pytest_gitbench.suite_runner import SuiteRunner

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

    from gitbench.run.executor import ClusterExecutor


class GitbenchSession:
    """Registered only when ``--gitbench`` is given.

    Raises:
        pytest.UsageError: options that cannot be used, before anything runs.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._pytest_config = config
        self._worker = hasattr(config, "workerinput")
        if getattr(config.option, "gitbench_chosen", None) is None:
            config.option.gitbench_chosen = [arg for arg in config.args if arg.startswith(f"{RUN_ID}::")]
        config.args = []  # only the matrix is collected
        try:
            plan = read_plan(config)
            self.config = plan.config if plan else read_config(config, costs=True)
            check_executor(config, self.config)
            self.cells = shaped(config, self.config, plan.cells() if plan else make_cells(self.config))
            self._baseline = load_baseline(self.config.baseline) if self.config.baseline else None
            self._check_baseline()
        except GitbenchError as error:
            raise pytest.UsageError(f"gitbench: {error}") from None
        self.store = Store(self.config.results)
        self._suite = SuiteRunner(plan, self.store) if plan else None
        self._runner: Runner | None = None
        self._cluster: ClusterExecutor | None = None
        self._cells = {node_id(cell): cell for cell in self.cells}
        self._selected: list[Cell] = []
        self._outcomes: dict[str, Outcome] = {}  # by node id, of the cells that are through
        self._durations: dict[str, list[float]] = {}
        self._last_written = 0.0
        self._pace = lines.Pace()

    def _check_baseline(self) -> None:
        """A baseline that this run would overwrite, or that has nothing to do with it, would pass everything."""
        if self._baseline is None or self.config.baseline is None:
            return
        if self.config.baseline.resolve() == self.config.results.resolve():
            raise ConfigError(
                f"The baseline {self.config.baseline} is the folder of this run's results, which would be compared with themselves. "
                f"Keep it first: gitbench baseline {self.config.baseline} --out gitbench-baseline.json"
            )
        here = {key_of(cell.cases[0]) for cell in self.cells if not cell.is_control}
        there = {key for key in self._baseline if key.defense != UNDEFENDED}
        if here and not here & there:
            raise ConfigError(
                f"Expected the baseline {self.config.baseline} to have a defended cell of this run, for example {min(here)}; "
                f"it has {min(there or self._baseline)}, for example. Write it again, or run without --gitbench-baseline."
            )

    # ---------------------------------------------------------------- collection

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, session: pytest.Session, items: list[pytest.Item]) -> None:
        matrix = Matrix.from_parent(session, name=RUN_ID, nodeid=RUN_ID)
        matrix.cells, matrix.run_cell = self.cells, self._run
        collected = matrix.ihook.pytest_make_collect_report(collector=matrix)
        matrix.ihook.pytest_collectreport(report=collected)  # so that pytest counts what it has collected
        found = [item for item in collected.result if isinstance(item, CellItem)]
        chosen = self._pytest_config.option.gitbench_chosen
        unknown = sorted(set(chosen) - {item.nodeid for item in found})
        if unknown:
            raise pytest.UsageError(f"gitbench: no cell {unknown[0]!r} in the matrix. pytest --gitbench --collect-only -q lists them.")
        items[:] = [item for item in found if not chosen or item.nodeid in chosen]

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._selected = [item.cell for item in session.items if isinstance(item, CellItem)]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> None:
        """Build every attack and defense once before anything runs: a bad value is a usage error."""
        if session.config.option.collectonly or self._worker:
            return
        new = [cell for cell in self._expected() if not all(self.store.case_path(case.case_id).exists() for case in cell.cases)]
        try:
            if new:  # what is measured already needs no torch
                Runner.check(new, self.config)
            if self._suite is not None:
                self._suite.start(look=bool(new))
            if self.config.on_cluster:
                self._open_cluster()
        except GitbenchError as error:
            raise pytest.UsageError(f"gitbench: {error}") from None

    # ---------------------------------------------------------------- running

    def _open_cluster(self) -> None:
        """Have all that is missing measured at once. The items wait for their own in their order, as if they had measured it."""
        from gitbench.run.ray_cluster import ray_executor

        registered = self._pytest_config.stash.get(REGISTERED, [])
        self._cluster = ray_executor(self.config, self._selected, store=self.store, registered=registered, progress=self._tell)
        self._runner = self._made_runner()

    def _made_runner(self) -> Runner:
        started, cluster = self._pytest_config.option.gitbench_started, self._cluster
        return Runner(
            self.config, self.store, selected=self._selected, baseline=self._baseline, started=started, progress=self._tell, cluster=cluster
        )

    def _run(self, cell: Cell) -> Outcome:
        if self._runner is None:
            self._runner = self._made_runner()
        return self._runner.run(cell)

    def pytest_sessionfinish(self) -> None:
        """Whatever ended the run: what the cluster has measured is kept, and the rest is cancelled."""
        if self._cluster is not None:
            with contextlib.suppress(GitbenchError):  # what cannot be written has failed the cells that waited for it
                self._cluster.close()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Around all others: a plugin that runs a cell again does so in its own, and the last outcome counts."""
        report = yield
        if isinstance(item, CellItem) and call.when == "call" and item.outcome is not None:
            item.outcome.attach(report)
        return report

    # ---------------------------------------------------------------- telling

    @property
    def _terminal(self) -> TerminalReporter | None:
        found: TerminalReporter | None = self._pytest_config.pluginmanager.get_plugin("terminalreporter")
        return None if self._worker else found

    def _tell(self, what: str, done: int, total: int) -> None:
        """Show on a terminal what is running; at most ten times a second."""
        terminal, now = self._terminal, time.monotonic()
        left = self._pace.left(what, done, total, now=now)  # of every step, not only of those that are shown
        if terminal is None or not terminal.isatty or terminal.verbosity < 0 or now - self._last_written < 0.1:
            return
        self._last_written = now
        terminal.rewrite(lines.running_line(what, done, total, left)[: max(20, terminal._tw.fullwidth - 1)], erase=True)

    def pytest_sessionstart(self) -> None:
        terminal = self._terminal
        if terminal is not None and terminal.verbosity == 0:
            # Our own lines say more than the path of no file and a percentage.
            terminal.showfspath = False
            terminal._show_progress_info = False

    def pytest_report_header(self) -> list[str]:
        config = self.config
        sizes = ", ".join(map(str, config.batch_size))
        suite = f"suite {config.suite}, " if config.suite else ""
        sizes += "" if config.rounds == (1,) else f", rounds {', '.join(map(str, config.rounds))}"
        return [
            (
                f"gitbench: {suite}{len(self.cells)} cells, profile {config.profile}, threat {config.threat}, "
                f"{config.number_of_victims} victims of {sizes}, {config.seeds} seed(s); results in {config.results}"
            )
        ]

    @pytest.hookimpl(tryfirst=True)
    def pytest_report_teststatus(self, report: pytest.CollectReport | pytest.TestReport) -> tuple[str, str, str] | None:
        outcome = self._outcome_of(report)
        if outcome is None:
            return None
        status, terminal = outcome.status, self._terminal
        if terminal is not None and terminal.verbosity == 0:
            return status, "", status.upper()  # pytest_runtest_logreport below writes the line
        letters = {"passed": ".", "failed": "F", "skipped": "s", "xfailed": "x"}
        return status, letters[status], f"{status.upper()} {outcome.word} {lines.figures(outcome.figures)}".rstrip()

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = None if self._worker else self._outcome_of(report)
        if outcome is None:
            return
        self._outcomes[report.nodeid] = outcome
        hook = self._pytest_config.hook.pytest_gitbench_result
        if hook.get_hookimpls():
            results = tuple(self._stored(outcome))
            hook(config=self._pytest_config, cell=self._cells[report.nodeid], outcome=outcome.status, results=results)
        terminal = self._terminal
        if terminal is None:
            return
        self._durations.setdefault(outcome.cell.attack, []).append(outcome.seconds)
        if terminal.verbosity == 0:
            self._write_progress(terminal, outcome)

    def _write_progress(self, terminal: TerminalReporter, outcome: Outcome) -> None:
        expected = self._expected()
        waiting = [cell.attack.label for cell in expected if node_id(cell) not in self._outcomes]
        workers = max(1, int(getattr(self._pytest_config.option, "numprocesses", None) or 1))
        left = lines.remaining(self._durations, waiting, workers)
        if terminal.isatty:
            terminal.rewrite("", erase=True)
        elif terminal._tw.width_of_current_line:
            terminal.line("")  # another plugin has written its letter, for a cell that it runs again
        terminal.write_line(lines.progress_line(outcome, len(self._outcomes), len(expected), left))

    def _stored(self, outcome: Outcome) -> list[Result]:
        """The results behind an outcome, from the store: with xdist another process has measured them."""
        found = [self.store.load(case_id) for case_id in outcome.case_ids]
        return [result for result in found if result is not None]

    def _expected(self) -> Sequence[Cell]:
        return self._selected or self.cells  # the controller of xdist collects nothing itself

    def _outcome_of(self, report: pytest.CollectReport | pytest.TestReport) -> Outcome | None:
        """How a cell ended; None of a report that does not say so, and of one that is another plugin's to tell."""
        cell = self._cells.get(report.nodeid)
        if cell is None or not isinstance(report, pytest.TestReport):
            return None
        final = report.when == "call" or report.failed or (report.when == "setup" and report.skipped)
        return Outcome.of(report, cell) if final else None

    # ---------------------------------------------------------------- the end

    @pytest.hookimpl(wrapper=True)
    def pytest_terminal_summary(self, terminalreporter: TerminalReporter) -> Generator[None, Any, Any]:
        if self._outcomes:
            ordered = [self._outcomes[key] for key in self._cells if key in self._outcomes]
            terminalreporter.section("gitbench")
            columns, added = self._extended(ordered)
            told = (*lines.flag_lines({str(outcome.cell): outcome.flags for outcome in ordered}), *self._compared(ordered))
            legend = lines.legend(next(iter(self.config.threshold)))
            for line in (*lines.matrix_lines(ordered, columns), *added, *legend, "", *told, *self._publish(columns)):
                terminalreporter.write_line(line)
        return (yield)

    def _extended(self, outcomes: Sequence[Outcome]) -> tuple[dict[lines.Row, dict[str, str]], list[str]]:
        """Columns and lines that other plugins add to the summary."""
        hook = self._pytest_config.hook
        if not (hook.pytest_gitbench_columns.get_hookimpls() or hook.pytest_gitbench_summary.get_hookimpls()):
            return {}, []
        done = [result for outcome in outcomes for result in self._stored(outcome) if result.status == "done"]
        try:
            added = added_lines(self._pytest_config, done)
            return added_columns(self._pytest_config, done), [*added, ""] if added else []
        except GitbenchError as error:  # the verdicts stand; only what was to be added is missing
            return {}, [f"gitbench: {error}", ""]

    def _compared(self, outcomes: Sequence[Outcome]) -> list[str]:
        if self._baseline is None:
            return []
        run = {key_of(self._cells[key].cases[0]) for key in self._outcomes}
        return lines.baseline_lines(outcomes, [str(key) for key in sorted(self._baseline) if key not in run], str(self.config.baseline))

    def _publish(self, columns: Mapping[lines.Row, Mapping[str, str]]) -> list[str]:
        """Write the leaderboards that are complete; say what the others lack, and what to type next."""
        told = [] if self._suite is None else self._suite.told(self.config.leaderboard)
        if self._suite is None and self.config.leaderboard is not None:
            for setting in dict.fromkeys(cell.setting for cell in self.cells):
                told.append(self._publish_one(setting, self.config.leaderboard, columns))
        if self.config.report is not None:
            told.append(self._write_report(self.config.report))
        told.append(f"pictures: {self.config.results / 'pictures'}")
        worst = next((key for key, outcome in self._outcomes.items() if outcome.status == "failed"), None)
        if worst is not None:
            options = [arg for arg in self._pytest_config.invocation_params.args if not str(arg).startswith(f"{RUN_ID}::")]
            command = shlex.join(["pytest", *map(str, options)])
            told.append(f"next: {command} --lf   or one cell: {command} {shlex.quote(worst)}")
        else:
            told.append("next: test your own defense: pytest --gitbench --gitbench-defense path/to/file.py:Name")
        return told

    def _publish_one(self, setting: Setting, folder: Path, columns: Mapping[lines.Row, Mapping[str, str]]) -> str:
        try:
            results, skipped, expected = self._results_of(setting)
            if not results:
                return f"leaderboard {setting}: not written, nothing was measured"
            added = {defense: texts for (where, defense), texts in columns.items() if where == setting}
            table = table_of(self.config, setting, results, skipped, columns=added)
            path, refused = leaderboard.write(table, folder, expected)
        except GitbenchError as error:
            return f"leaderboard {setting}: not written, {error}"
        return f"leaderboard {path}: not written, {refused}" if refused else f"leaderboard: {path}"

    def _write_report(self, folder: Path) -> str:
        """The HTML page of this run. What it did not get to is on it too: nothing that was asked for vanishes."""
        from gitbench.publish.report.build import build_report
        from gitbench.publish.report.cells import NOT_MEASURED

        found = []
        outcomes = self._outcomes.values()
        reasons = {(one.cell.setting, one.cell.defense, one.cell.attack): one.reason or one.word for one in outcomes}
        try:
            for setting in dict.fromkeys(cell.setting for cell in self.cells):
                results, skipped, expected = self._results_of(setting)
                table = table_of(self.config, setting, results, skipped, columns={})
                left = [key for key in expected if key not in results and key not in skipped]
                missing = {key: reasons.get((setting, *key)) or NOT_MEASURED for key in left}
                found.append(replace(table, errors=missing))
            command = shlex.join(["pytest", *map(str, self._pytest_config.invocation_params.args)])
            return f"report: {build_report(found, store=self.store, command=command).write(folder)}"
        except GitbenchError as error:
            return f"report: not written, {error}"

    def _results_of(
        self, setting: Setting
    ) -> tuple[dict[tuple[str, str], list[Result]], dict[tuple[str, str], str], list[tuple[str, str]]]:
        results: dict[tuple[str, str], list[Result]] = {}
        skipped: dict[tuple[str, str], str] = {}
        expected = []
        for cell in (cell for cell in self.cells if cell.setting == setting):
            key = (cell.defense.label, cell.attack.label)
            expected.append(key)
            outcome = self._outcomes.get(node_id(cell))
            if outcome is not None and outcome.word == NOT_GRANTED:
                skipped[key] = outcome.reason
                continue
            # The cases that the verdict was made of: of as many victims as it took, where that was left open.
            ran = outcome.case_ids if outcome is not None else ()
            found = [self.store.load(case_id) for case_id in ran or [case.case_id for case in cell.cases]]
            if all(result is not None for result in found):
                results[key] = [result for result in found if result is not None]
        return results, skipped, expected
