"""How the cells of a run end, and what is said of them: red, green, skipped, undecided."""

from __future__ import annotations

import pytest

from helpers import run_matrix, stored_cases

pytestmark = pytest.mark.usefixtures("warm")


def test_a_leaking_defense_of_the_users_own_is_red(bench: pytest.Pytester) -> None:
    result = run_matrix(bench, "--gitbench-defense", "defenses.py:Mine(scale=0.5)")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*psnr_gain * is past the threshold of 3 dB*", "next: pytest --gitbench *--lf *or one cell: *"])


def test_a_defense_that_fails_is_named_and_the_run_goes_on(bench: pytest.Pytester) -> None:
    result = run_matrix(bench, *(f"--gitbench-defense=defenses.py:{name}" for name in ("Broken", "Nan", "Noise")))
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(
        ["*The defense defenses.py:Broken raised RuntimeError: my bad*", "*The defense defenses.py:Nan returned * NaN*"]
    )
    by_defense = {case["case"]["defense"]: case for case in stored_cases(bench.path).values()}
    assert by_defense["defenses.py:Broken"]["status"] == "error"
    assert "my bad" in by_defense["defenses.py:Broken"]["error"]
    assert by_defense["defenses.py:Noise"]["verdict"] == "holds"


def test_fails_closed_when_no_attack_passes_its_control(bench: pytest.Pytester) -> None:
    result = run_matrix(
        bench, "--gitbench-attack", "ig(iterations=1)", "--gitbench-defense", "none", "--gitbench-defense", "gaussian_noise(std=1.0)"
    )
    result.assert_outcomes(skipped=1, failed=1)
    result.stdout.fnmatch_lines(["*control does not leak*no other attack of this run passed its control*"])


def test_an_attack_without_control_is_skipped_where_another_has_one(bench: pytest.Pytester) -> None:
    result = run_matrix(
        bench, "--gitbench-attack", "ridge", "--gitbench-attack", "ig(iterations=1)", "--gitbench-defense", "gaussian_noise(std=1.0)", "-rs"
    )
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*this attack proves nothing here*"])


def test_an_attack_that_is_granted_too_little_is_skipped(bench: pytest.Pytester) -> None:
    result = run_matrix(
        bench,
        "--gitbench-threat",
        "eavesdropper",
        "--gitbench-attack",
        "ridge",
        "--gitbench-attack",
        "ig",
        "--gitbench-defense",
        "none",
        "-rs",
    )
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*ig needs parameters, which the threat model eavesdropper does not grant*"])


def test_seeds_are_pooled_in_one_cell(bench: pytest.Pytester) -> None:
    # Of two seeds with six victims each the interval of noise is wide, and 3 dB lie within it.
    options = "--gitbench-seeds=2", "--gitbench-victims=6", "--gitbench-threshold=psnr_gain=6"
    run_matrix(bench, *options).assert_outcomes(passed=2, xfailed=1)
    assert sorted(case["case"]["seed"] for case in stored_cases(bench.path).values()) == [0, 0, 0, 1, 1, 1]


def test_an_undecided_cell_fails_and_says_what_to_do(bench: pytest.Pytester) -> None:
    options = ("--gitbench-attack", "ridge(adapt=False)", "--gitbench-defense", "defenses.py:Half")
    run_matrix(bench, *options)
    (half,) = (case for case in stored_cases(bench.path).values() if case["case"]["defense"] != "none")
    # A threshold at the cell's own mean: its interval straddles it, and the control is well past it.
    result = run_matrix(bench, *options, "--gitbench-threshold", f"psnr_gain={half['metrics']['psnr_gain']['mean']}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*undecided at 12 victims: raise --gitbench-victims*straddles*"])


def test_known_leaks_fail_where_pytest_is_told_to_run_them_as_if_they_were_not(bench: pytest.Pytester) -> None:
    run_matrix(bench, "--gitbench-defense=clipping(max_norm=100.0)", "--runxfail").assert_outcomes(failed=1)


def test_an_attack_that_works_by_one_metric_excuses_none(bench: pytest.Pytester) -> None:
    gate = ("--gitbench-threshold=psnr_gain=3", "--gitbench-threshold=ssim=0.9999")
    result = run_matrix(bench, *gate, "--gitbench-defense=gaussian_noise(std=1.0)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no other attack of this run passed its control either*"])


def test_auto_adds_victims_to_undecided_cells_only(bench: pytest.Pytester) -> None:
    for extra in ((), ("-n", "2")):
        result = run_matrix(
            bench, "--gitbench-victims", "auto", "--gitbench-defense", "none", "--gitbench-defense", "defenses.py:Half", *extra
        )
        result.stdout.fnmatch_lines(["*auto victims of 1*", "leaderboard: leaderboards/*victims=auto*.md"])
    by_defense: dict[str, list[int]] = {}
    for case in stored_cases(bench.path).values():
        by_defense.setdefault(case["case"]["defense"], []).append(case["case"]["victims"])
    assert min(by_defense["none"]) == 8
    assert all(victims in (8, 16, 32, 64) for victims in by_defense["defenses.py:Half"])
    # Victims of a smaller look are the first of the larger one: the blind guess scores them alike.
    control = sorted(stored_cases(bench.path).values(), key=lambda case: case["case"]["victims"])
    blind = [
        [a - b for a, b in zip(case["metrics"]["psnr"]["values"], case["metrics"]["psnr_gain"]["values"], strict=True)]
        for case in control
        if case["status"] == "done"
    ]
    assert all(one[:8] == pytest.approx(blind[0][:8], abs=1e-3) for one in blind)


def test_the_worst_victim_is_named_where_a_cell_fails(bench: pytest.Pytester) -> None:
    result = run_matrix(bench, "--gitbench-defense", "defenses.py:Mine(scale=0.5)")
    result.stdout.fnmatch_lines(
        ["*past the threshold of 3 dB; * of 12 victims are past it (*), the worst is victim * of seed 0 with * dB*"]
    )
    (case,) = (case for case in stored_cases(bench.path).values() if case["case"]["defense"] != "none")
    assert case["exposure"]["psnr_gain"]["victims"] == 12
    assert case["exposure"]["psnr_gain"]["worst"] == max(case["metrics"]["psnr_gain"]["values"])
