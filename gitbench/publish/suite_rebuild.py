"""``gitbench suite``: which suites there are, and the table of one from stored results, without measuring."""

from __future__ import annotations

import shlex
from pathlib import Path

from gitbench.core.errors import ConfigError, StoreError
from gitbench.publish import suite_page
from gitbench.publish.board_check import read_strictly, text_differs
from gitbench.publish.suite_table import suite_table
from gitbench.run.suite import read_suite
from gitbench.run.suite_files import find_suite, suite_files
from gitbench.run.suite_plan import how_to_give
from gitbench.run.suite_record import load_run
from gitbench.store.folder import Store


def listed() -> list[str]:
    """Every installed suite, and the data that it needs. One that cannot be read says so."""
    lines = []
    for name, path in sorted(suite_files().items()):
        try:
            suite = read_suite(path)
        except ConfigError as error:
            lines.append(f"{name}: {error}")
            continue
        lines.append(f"{name}: {suite.source.paper}, {suite.source.table}: {suite.title}")
        lines += [f"    needs {how_to_give(need)}" for need in suite.data]
    return [*lines, "pytest --gitbench --gitbench-suite NAME runs one (docs/suites.md)"]


def rebuilt(given: str, results: Path, out: Path) -> list[str]:
    """Write the table of the last run that a results folder holds, and tell it.

    Raises:
        ConfigError: no such suite.
        StoreError: the folder holds no run of it.
    """
    name, suite = find_suite(given)
    store = Store(results)
    run = load_run(store, name)
    if run is None:
        raise StoreError(
            f"{results} holds no run of the suite {name}. Run it first: pytest --gitbench --gitbench-suite {shlex.quote(given)} "
            f"--gitbench-results {shlex.quote(str(results))} --gitbench-dataset ..."
        )
    table = suite_table(suite, run, store.results())
    path, refused = suite_page.write(table, out)
    return [*suite_page.terminal_lines(table), "", f"{path}: not written, {refused}" if refused else f"wrote {path}"]


def checked(given: str, results: Path, out: Path) -> tuple[list[str], bool]:
    """Whether a committed table follows from results: what is told, and whether it does not. The table says of which run it is.

    Raises:
        ConfigError: no such suite.
        StoreError: there is no table, or a file of results is none.
    """
    name, suite = find_suite(given)
    path = suite_page.page_path(out, name)
    written = suite_page.read_written(path)
    if written is None:
        raise StoreError(f"Expected the table of the suite {name} at {path}, found none. Write it: gitbench suite {shlex.quote(given)}")
    differ = text_differs(path, suite_page.render(suite_table(suite, written.run, read_strictly(results))))
    if not differ:
        return [f"{path} follows from the results"], False
    return [*differ, "", "If the table is right, commit the results that it was made of; if not, run the suite again."], True
