"""A suite as people run it: plain, with xdist, and without xdist installed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gitbench.cli import main
from helpers import run_matrix, stored_cases
from results import rows
from suites import TINY, write_suite

pytestmark = pytest.mark.usefixtures("warm")
PAGE = "leaderboards/suites/tiny.md"


@pytest.fixture
def suite(bench: pytest.Pytester, tiny_npz: Path) -> tuple[str, ...]:
    """The options of a run of the small suite, in a project that has a matrix of its own."""
    write_suite(bench.path)
    return "--gitbench-suite=tiny.toml", f"--gitbench-dataset=npz(path={str(tiny_npz)!r})"


def told(run: pytest.RunResult) -> None:
    run.assert_outcomes(passed=3)
    run.stdout.fnmatch_lines([
        "gitbench: suite tiny.toml, 3 cells, profile quick*",
        "suite tiny: A paper, Table 1: noise on a small network",
        "REDUCED: profile quick instead of paper, 8 victims a seed instead of 12, 1 seed instead of 2, 96 public images of tiny instead of 100",
        "Partial: 3 of 4 lines are measured",
        "std*attack*metric*published*ours, reduced [[]95 %]*difference",
        "0 *RIDGE*MSE*0.010*[[]*]*0.0*",
        "97 images *not compared: 96 of 97 public images",
        "note: Network: theirs is wider.",
        "the paper contradicts itself: RIDGE is 0.010 here and 0.020 in Table 2.",
        "not available: there is no such attack: tiny, MLP (ORACLE at 0)",
        f"suite table: {PAGE}",
    ])  # fmt: skip


def test_published_and_ours_are_told_and_written(bench: pytest.Pytester, suite: tuple[str, ...]) -> None:
    told(run_matrix(bench, *suite))
    found = rows((bench.path / PAGE).read_text())
    assert [row[1] for row in found[2:]] == ["RIDGE"] * 4 + ["ORACLE"]
    assert not list((bench.path / "leaderboards").glob("*.md"))  # the suite's cells are no matrix of a leaderboard
    assert {case["case"]["model"] for case in stored_cases(bench.path).values()} == {"mlp(hidden=(24,))"}


@pytest.mark.slow
def test_with_xdist_and_then_without_it_the_table_is_the_same(bench: pytest.Pytester, suite: tuple[str, ...]) -> None:
    told(run_matrix(bench, *suite, "-n", "2"))
    before = (bench.path / PAGE).read_bytes()
    (bench.path / PAGE).unlink()
    told(run_matrix(bench, *suite, "-p", "no:xdist"))
    assert (bench.path / PAGE).read_bytes() == before


def test_again_or_rebuilt_it_is_the_same_and_nothing_is_measured(bench: pytest.Pytester, suite: tuple[str, ...]) -> None:
    run_matrix(bench, *suite)
    page, cases = bench.path / PAGE, stored_cases(bench.path)
    before = page.read_bytes()
    page.unlink()
    run_matrix(bench, *suite)
    assert page.read_bytes() == before
    page.unlink()
    assert main(["suite", "tiny.toml"]) == 0
    assert page.read_bytes() == before
    assert stored_cases(bench.path) == cases


def test_a_part_of_it_is_partial_and_never_takes_the_place_of_the_whole(bench: pytest.Pytester, suite: tuple[str, ...]) -> None:
    run = run_matrix(bench, *suite, "-k", "gaussian", "--gitbench-results=part")
    run.stdout.fnmatch_lines(["Partial: 2 of 4 lines are measured", "*not measured: tiny, MLP (RIDGE at 97 images)"])  # its control is one
    run_matrix(bench, *suite, "--gitbench-results=part")
    whole = (bench.path / PAGE).read_text()
    assert "Partial: 3 of 4" in whole
    narrowed = run_matrix(bench, *suite, "--gitbench-attack=ridge(limit=97)", "--gitbench-results=other")
    narrowed.assert_outcomes(passed=1)
    narrowed.stdout.fnmatch_lines([f"suite table {PAGE}: not written, it holds figures that are not measured here*"])
    smaller = run_matrix(bench, *suite, "--gitbench-victims=4")
    smaller.stdout.fnmatch_lines(
        ["REDUCED:*4 victims a seed instead of 12*", f"suite table {PAGE}: not written, it holds a run with other options*"]
    )
    assert (bench.path / PAGE).read_text() == whole


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (None, "*tiny: tiny images (3x8x8, 4 classes): --gitbench-dataset \"tiny=npz(path='tiny.npz')\""),
        ("npz(path='nowhere.npz')", "*nowhere.npz*"),
        ("photos", "*photos has images of 3x32x32 and 8 classes, and is another data set. The suite needs tiny: tiny images*"),
    ],
)
def test_without_its_data_it_says_what_is_needed_and_measures_nothing(bench: pytest.Pytester, dataset: str | None, message: str) -> None:
    write_suite(bench.path)
    run = run_matrix(bench, "--gitbench-suite=tiny.toml", *([f"--gitbench-dataset={dataset}"] if dataset else []))
    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines([message])
    assert not list((bench.path / ".gitbench").glob("*/*.json"))


def test_a_cell_that_breaks_is_an_error_and_no_figure(bench: pytest.Pytester, suite: tuple[str, ...]) -> None:
    write_suite(bench.path, TINY.replace('"gaussian_noise(std=1.0)"', '"parameter_drift(epochs=1, samples=5000)"'))
    run = run_matrix(bench, *suite)
    run.assert_outcomes(passed=2, failed=1)
    run.stdout.fnmatch_lines(["1 *RIDGE*MSE*0.05*error*", "error: tiny, MLP (RIDGE at 1)"])


def test_it_can_stand_in_the_projects_options(bench: pytest.Pytester, suite: tuple[str, ...], tiny_npz: Path) -> None:
    options = {"suite": "tiny.toml", "dataset": f"npz(path={str(tiny_npz)!r})", "leaderboard": "none"}
    bench.makepyprojecttoml("\n".join(["[tool.gitbench]", *(f"{key} = {json.dumps(value)}" for key, value in options.items())]))
    run = run_matrix(bench)
    run.assert_outcomes(passed=3)
    run.stdout.fnmatch_lines(["suite tiny: A paper, Table 1: noise on a small network"])
    run.stdout.no_fnmatch_line("suite table*")


def test_edited_data_are_looked_at_again(bench: pytest.Pytester, suite: tuple[str, ...], tiny_npz: Path) -> None:
    with np.load(tiny_npz) as archive:
        arrays = {name: archive[name][:90] for name in archive.files}
    data = bench.path / "mine.npz"
    data.write_bytes(tiny_npz.read_bytes())
    options = (suite[0], "--gitbench-dataset=npz(path='mine.npz')", "--gitbench-leaderboard=none")
    run_matrix(bench, *options)
    np.savez(data, **arrays)
    run_matrix(bench, *options).stdout.fnmatch_lines(["data: tiny = npz(path='mine.npz'), 90 public images"])
