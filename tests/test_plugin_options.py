"""Options of a run: what is refused before anything runs, and what is told of them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from helpers import run_matrix, run_project

pytestmark = pytest.mark.usefixtures("warm")


def test_results_elsewhere_do_not_lose_the_projects_options(bench: pytest.Pytester, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()  # pytest takes a path that exists for one to collect from, and its root is another then
    result = run_project(bench, "--gitbench", "--gitbench-results", str(elsewhere), "--collect-only", "-q")
    assert "gaussian_noise(std=1.0)/ridge" in result.stdout.str()
    assert "git" not in [line.rpartition("/")[2] for line in result.stdout.lines]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--gitbench-attack", "rigde"), "Unknown attack 'rigde'.*Did you mean 'ridge'"),
        (("--gitbench-defense", "prunning(rate=0.9)"), "Did you mean 'pruning'"),
        (("--gitbench-defense", "pruning(rat=0.9)"), "takes no option 'rat'.*Did you mean 'rate'"),
        (("--gitbench-defense", "pruning"), "needs rate"),
        (("--gitbench-defense", "pruning(rate=7)"), r"expected rate in \[0, 1\], got 7"),
        (("--gitbench-defense", "pruning(rate=__import__('os'))"), "must be a literal"),
        (("--gitbench-defense", "nowhere.py:Mine"), "names the file nowhere.py, which does not exist"),
        (("--gitbench-defense", "defenses.py:Mien"), "has no 'Mien'.*Did you mean 'Mine'"),
        (("--gitbench-model", "lenett"), "Did you mean 'lenet'"),
        (("--gitbench-dataset", "foto"), "Did you mean 'photos'"),
        (("--gitbench-profile", "quik"), "Did you mean 'quick'"),
        (("--gitbench-threat", "sever"), "Did you mean 'server'"),
        (("--gitbench-threshold", "psnr=high"), "Expected a number"),
        (("--gitbench-threshold", "pnsr=3"), "Did you mean 'psnr'"),
        (("--gitbench-victims", "0"), "victims"),
        (("--gitbench-seeds", "many"), "seeds"),
        (("--gitbench-device", "gpu"), "device"),
        (("--gitbench-executor", "slurm"), "expected local, ray or ray=ADDRESS"),
        (("--gitbench-memory", "0"), "greater than 0"),
        (("--gitbench-gpus", "-1"), "greater than 0"),
        (("--gitbench-baseline", "nowhere"), "Expected a baseline at nowhere"),
    ],
)
def test_bad_options_are_usage_errors_before_anything_runs(bench: pytest.Pytester, arguments: tuple[str, ...], message: str) -> None:
    result = run_matrix(bench, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, "\n".join(result.errlines)), result.errlines
    assert not (bench.path / ".gitbench").exists()


def test_unknown_keys_in_pyproject_are_usage_errors(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("[tool.gitbench]\nvictim = 3")
    result = pytester.runpytest_inprocess("--gitbench")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Did you mean 'victims'*"])


@pytest.mark.parametrize(
    "option",
    [
        "--gitbench-defense=defenses.py:Mine",
        "--gitbench-baseline=missing",
        "--gitbench-report=out",
        "--gitbench-suite=git-table4",
        "--gitbench-executor=ray",
    ],
)
def test_what_does_nothing_without_gitbench_is_a_usage_error(bench: pytest.Pytester, option: str) -> None:
    result = run_project(bench, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option.partition('=')[0]} does nothing without --gitbench: add it, or take the option away."])


def test_help_names_every_option_of_the_contract(pytester: pytest.Pytester) -> None:
    text = "\n".join(pytester.runpytest_inprocess("--help").outlines)
    for option in (
        "", "-profile", "-attack", "-defense", "-model", "-dataset", "-seeds", "-victims", "-batch-size", "-device", "-threat",
        "-threshold", "-results", "-leaderboard", "-fresh", "-baseline", "-report", "-suite", "-executor", "-memory", "-gpus",
    ):  # fmt: skip
        assert f"--gitbench{option}" in text
