"""A run that is compared with a baseline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gitbench import cli
from helpers import run_matrix

pytestmark = pytest.mark.usefixtures("warm")


def test_a_regression_against_a_baseline_fails(bench: pytest.Pytester) -> None:
    source = bench.path / "defenses.py"
    plain = source.read_text()
    weak = (
        "\nclass Known(gitbench.Defense):\n    def protect(self, update, *, generator):\n        return update.map(lambda n, t: t{noise})\n"
    )
    source.write_text(plain + weak.format(noise=" + gitbench.randn_like(t, generator)"))
    options = ("--gitbench-defense", "defenses.py:Known", "-rx")
    run_matrix(bench, *options, "--gitbench-results", "before").assert_outcomes(passed=1)
    source.write_text(plain + weak.format(noise=" * 1"))
    result = run_matrix(bench, *options, "--gitbench-baseline", "before")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*regression: psnr_gain leaks * more than the baseline*"])


def test_every_cell_of_either_side_of_a_comparison_is_named(bench: pytest.Pytester) -> None:
    run_matrix(bench, "--gitbench-results", "before")
    assert cli.main(["baseline", str(bench.path / "before"), "--out", str(bench.path / "base.json")]) == 0
    wanted = ("none", "gaussian_noise(std=1.0)", "defenses.py:Noise")
    options = (*(f"--gitbench-defense={one}" for one in wanted), "--gitbench-baseline", "base.json")
    for extra in ((), ("-n", "2")):
        result = run_matrix(bench, *options, *extra)
        result.assert_outcomes(passed=3)
        result.stdout.fnmatch_lines(
            [
                "baseline base.json: 2 cells compared, 0 regressed, 0 improved",
                "  not in the baseline: *defenses.py:Noise/ridge (server, quick)",
                "  in the baseline, not run: *clipping(max_norm=100.0)/ridge (server, quick)",
            ]
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--gitbench-baseline=before", "--gitbench-results=./before"), "*The baseline before is the folder of this run's results*"),
        (("--gitbench-baseline=before", "--gitbench-batch-size=2"), "*Expected the baseline before to have a defended cell of this run*"),
        (("--gitbench-baseline=before", "--gitbench-defense=defenses.py:Noise"), "*it has *clipping(max_norm=100.0)*run without*"),
    ],
)
def test_a_baseline_that_would_pass_everything_is_a_usage_error(bench: pytest.Pytester, options: tuple[str, ...], message: str) -> None:
    run_matrix(bench, "--gitbench-results", "before", "--gitbench-defense=none", "--gitbench-defense=clipping(max_norm=100.0)")
    result = run_matrix(bench, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_baseline_of_controls_alone_is_a_usage_error(bench: pytest.Pytester) -> None:
    run_matrix(bench, "--gitbench-results", "before", "--gitbench-defense=none")
    result = run_matrix(bench, "--gitbench-baseline=before")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*to have a defended cell of this run, for example *; it has */none/ridge (server, quick), for example.*"])


def test_another_dataset_under_the_same_name_is_not_paired(bench: pytest.Pytester, tiny_npz: Path) -> None:
    run_matrix(bench, "--gitbench-defense", "none", "--gitbench-results", "before")
    base = bench.path / "base.json"
    assert cli.main(["baseline", str(bench.path / "before"), "--out", str(base)]) == 0
    content = json.loads(base.read_text())
    content["cases"][0]["blind"][3] += 1
    base.write_text(json.dumps(content))
    result = run_matrix(bench, "--gitbench-defense", "none", "--gitbench-baseline", "base.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["baseline base.json: 0 cells compared*", "  not compared: *victim 3 of seed 0 is another image*"])
