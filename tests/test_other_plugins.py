"""Other plugins beside ours: they rerun, reorder, stop and skip cells, and give them outcomes that we do not know."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence

import pytest

from gitbench.run.config import make_config
from gitbench.run.matrix import make_cell
from helpers import ALONE, run_matrix
from pytest_gitbench.outcome import AgainstBaseline, Figures, Outcome

pytestmark = pytest.mark.usefixtures("warm")

MINE = ("--gitbench-defense=none", "--gitbench-defense=gaussian_noise(std=1.0)", "--gitbench-defense=defenses.py:Mine")

RERUN = """
import pytest
from _pytest.runner import runtestprotocol

def pytest_collection_modifyitems(items):
    items.reverse()

def pytest_runtest_protocol(item, nextitem):
    for attempt in range(2):
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        again = attempt == 0 and any(report.failed for report in reports)
        for report in reports:
            if again and report.failed:
                report.outcome = "rerun"
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        if not again:
            break
    return True

def pytest_report_teststatus(report):
    if report.outcome == "rerun":
        return "rerun", "R", "RERUN"
"""

HANDED_OUT = """
import pytest

@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(item, call):
    # Runs the cell again by itself, and hands out the first report with what came out at last.
    report = yield
    if call.when == "call" and report.failed:
        item._initrequest()
        again = pytest.CallInfo.from_call(lambda: item.ihook.pytest_runtest_call(item=item), when="call")
        last = pytest.TestReport.from_item_and_call(item, again)
        report.outcome, report.longrepr = last.outcome, last.longrepr
    return report
"""

FLAKY = """
from pathlib import Path

class Flaky(Noise):
    def protect(self, update, *, generator):
        if not Path("tried").exists():
            Path("tried").touch()
            raise RuntimeError("not the first time")
        return super().protect(update, generator=generator)
"""

STOPPED = """
import pytest

def pytest_collection_modifyitems(items):
    items[0].add_marker(pytest.mark.skip(reason="not today"))

@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item):
    if "Mine" in item.name:
        pytest.fail("Timeout (>1.0s)", pytrace=False)
"""


def in_order(lines: Sequence[str], *starts: str) -> None:
    """Each begins a line of the matrix, in this order."""
    first = next(number for number, line in enumerate(lines) if line.startswith("npz(") and line.endswith("ridge"))
    for line, start in zip(lines[first + 1 :], starts, strict=False):
        assert " ".join(line.split()).startswith(start), (start, line)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("-q",), ("-v",), ("-n", "2", "--dist=loadfile")], ids=["plain", "q", "v", "n2"])
def test_an_outcome_of_another_plugin_is_passed_on(bench: pytest.Pytester, extra: tuple[str, ...]) -> None:
    bench.makeconftest(RERUN)
    result = run_matrix(bench, *MINE, *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.parseoutcomes() == {"passed": 2, "failed": 1, "rerun": 1}
    # The order of the run is the other plugin's; that of the table is the matrix's.
    in_order(result.outlines, "none ok leaks", "gaussian_noise(std=1.0) ok holds", "defenses.py:Mine F leaks")
    if not extra:
        lines = result.outlines
        assert lines.index("R") + 1 == next(number for number, line in enumerate(lines) if line.startswith("[1/3] F  npz("))


def test_what_a_cell_came_to_at_last_is_what_counts(bench: pytest.Pytester) -> None:
    bench.makeconftest(HANDED_OUT)
    with (bench.path / "defenses.py").open("a") as file:
        file.write(FLAKY)
    result = run_matrix(bench, "--gitbench-defense=none", "--gitbench-defense=defenses.py:Flaky")
    result.assert_outcomes(passed=2)
    in_order(result.outlines, "none ok leaks", "defenses.py:Flaky ok holds")


def test_a_cell_that_another_plugin_stopped_or_skipped_is_shown_without_figures(bench: pytest.Pytester) -> None:
    bench.makeconftest(STOPPED)
    result = run_matrix(bench, *MINE)
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    in_order(result.outlines, "none s not measured", "gaussian_noise(std=1.0) ok holds", "defenses.py:Mine F error")
    result.stdout.fnmatch_lines(["*Timeout (>1.0s)*", "leaderboard *not written, not measured yet: defenses.py:Mine/ridge*"])


def test_an_outcome_travels_as_json() -> None:
    cell = make_cell(make_config({}, {}), dataset="npz(path='a/b.npz')", model="mlp", defense="pruning(rate=0.5) | none", attack="ridge+ig")
    sent = Outcome(
        cell=cell.labels,
        status="xfailed",
        word="leaks",
        reason="a: b\n\x1b[31m",
        figures=Figures(metric="psnr_gain", mean=4.0, low=3.5, high=4.5),
        case_ids=("ab", "cd"),
        flags=("raw-update",),
        baseline=AgainstBaseline(kind="unpaired", reason="no seed in common: 0 before, 1 now"),
    )
    report = pytest.TestReport("gitbench::x", ("", None, ""), {}, "skipped", None, "call", duration=2.5)
    report.wasxfail = "reason: leaks"
    sent.attach(report)
    carried = pytest.TestReport._from_json(json.loads(json.dumps(report._to_json())))
    found = Outcome.of(carried, cell)
    assert found == sent.model_copy(update={"seconds": 2.5})
    assert found.cell.dataset == "npz(path='a/b.npz')"
    assert found.reason == "a: b\n\\x1b[31m"  # nothing that a terminal obeys
    carried.outcome = "rerun"
    assert Outcome.of(carried, cell) is None


REAL = {
    "pytest_benchmark": (),
    "pytest_cov": ("--cov=.",),
    "pytest_html": ("--html=out.html",),
    "pytest_randomly": (),
    "random_order": ("--random-order",),
    "pytest_rerunfailures": ("--reruns=1",),
    "pytest_retry": ("--retries=1",),
    "pytest_sugar": ("--force-sugar",),
    "pytest_timeout": ("--timeout=300",),
}


@pytest.mark.parametrize("extra", [("-p", "no:xdist"), ("-n", "2")], ids=["plain", "n2"])
@pytest.mark.parametrize("module", REAL)
def test_beside_what_people_install(bench: pytest.Pytester, module: str, extra: tuple[str, ...]) -> None:
    """Where it is installed: the development tools bring none of them, as some change every run that they are loaded in."""
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    result = bench.runpytest_subprocess(*ALONE, "--gitbench", *MINE, *REAL[module], *extra)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    in_order(result.outlines, "none ok leaks", "gaussian_noise(std=1.0) ok holds", "defenses.py:Mine F leaks")
    again = "retried" if module == "pytest_retry" else "rerun"
    if module in ("pytest_retry", "pytest_rerunfailures"):
        assert result.parseoutcomes()[again] == 1
