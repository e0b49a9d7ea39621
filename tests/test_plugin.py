"""The plugin as people use it: plain, with xdist, and without xdist installed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gitbench import cli
from gitbench.clients.data import Data
from helpers import run_project, write_npz, write_project

pytestmark = pytest.mark.usefixtures("warm")

DEFENSES = """
import gitbench
from gitbench import cli

class Mine(gitbench.Defense):
    def __init__(self, *, scale: float = 0.1):
        self.scale = scale

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * self.scale)

class Noise(gitbench.Defense):
    # strong, and yet unbiased: the updates still point the right way on average
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor + gitbench.randn_like(tensor, generator))

class Half(gitbench.Defense):
    # hides every other victim
    def protect(self, update, *, generator):
        def hide(name, tensor):
            tensor = tensor.clone()
            tensor[::2] = 0
            return tensor
        return update.map(hide)

class Broken(gitbench.Defense):
    def protect(self, update, *, generator):
        raise RuntimeError("my bad")

class Nan(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * float("nan"))
"""


@pytest.fixture
def bench(pytester: pytest.Pytester, tiny_npz: Path):
    """A folder whose [tool.gitbench] makes a matrix of seconds: 8x8 images, mlp, ridge."""
    write_project(
        pytester,
        tiny_npz,
        defense=["none", "clipping(max_norm=100.0)", "gaussian_noise(std=1.0)"],
        known_leaks=["*/clipping(max_norm=100.0)/*", "*/defenses.py:Known/*"],
        threads=1,
    )
    pytester.makepyfile(defenses=DEFENSES)
    pytester.makepyfile(test_other="def test_other(): raise AssertionError('not mine to run')")
    return pytester


def name(defense: str, attack: str = "ridge") -> str:
    return f"*/mlp(hidden=(24,))/{defense}/{attack}"


def run(bench: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return run_project(bench, "--gitbench", *arguments)


def cases(folder: Path) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / ".gitbench" / "cases").glob("*.json"))}


def stable(found: dict[str, dict]) -> dict[str, dict]:
    """Results without what no two runs share: times and memory."""
    return {key: {name: value for name, value in case.items() if name not in ("cost", "finished_at")} for key, case in found.items()}


def test_results_elsewhere_do_not_lose_the_projects_options(bench, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()  # pytest takes a path that exists for one to collect from, and its root is another then
    result = run_project(bench, "--gitbench", "--gitbench-results", str(elsewhere), "--collect-only", "-q")
    assert "gaussian_noise(std=1.0)/ridge" in result.stdout.str()
    assert "git" not in [line.rpartition("/")[2] for line in result.stdout.lines]


@pytest.mark.parametrize("extra", [(), ("-n", "2"), ("-p", "no:xdist")], ids=["plain", "n2", "no-xdist"])
def test_the_matrix_runs_and_only_it(bench: pytest.Pytester, extra: tuple[str, ...]) -> None:
    result = run(bench, *extra, "--junit-xml=out.xml")
    result.assert_outcomes(passed=2, xfailed=1)
    result.stdout.fnmatch_lines(["*gitbench: 3 cells, profile quick*", "*none/ridge*leaks*dB*", "npz(*mlp*ridge*", "*next:*"])
    result.stdout.no_fnmatch_line("*test_other*")
    result.stdout.fnmatch_lines(["leaderboard: leaderboards/*"])
    names = [case.get("name") for case in ET.parse(bench.path / "out.xml").iter("testcase")]
    assert len(names) == 3
    assert all(name.endswith("/ridge") for name in names)


def test_results_are_the_same_plain_with_xdist_and_without_it(bench: pytest.Pytester) -> None:
    """The matrix, and a suite that measures by the fixture: every file but its times and its memory."""
    bench.makepyfile(
        test_mine="""
        import pytest
        from defenses import Mine, Noise

        @pytest.mark.gitbench(attacks=["ridge", "ig(iterations=20)"], victims=9)
        @pytest.mark.parametrize("defense", [Mine(scale=0.5), Noise()], ids=repr)
        def test_it(gitbench_evaluate, defense):
            assert gitbench_evaluate(defense).verdict in ("leaks", "holds")
        """
    )
    found = []
    for extra in ((), ("-n", "2"), ("-p", "no:xdist")):
        run(bench, *extra, "--gitbench-attack", "ridge", "--gitbench-attack", "ig(iterations=20)")
        run_project(bench, "test_mine.py", *extra).assert_outcomes(passed=2)
        pictures = {path.name: path.read_bytes() for path in (bench.path / ".gitbench" / "pictures").iterdir()}
        found.append((stable(cases(bench.path)), pictures))
        (bench.path / ".gitbench").rename(bench.path / f"results{len(found)}")
    assert found[0] == found[1]
    assert found[0] == found[2]
    assert len(found[0][0]) == len(found[0][1]) == 6 + 4 + 2  # the matrix, the suite, the suite's controls


def test_a_second_run_measures_nothing(bench: pytest.Pytester) -> None:
    run(bench)
    before = {path: path.stat().st_mtime_ns for path in (bench.path / ".gitbench" / "cases").iterdir()}
    run(bench).assert_outcomes(passed=2, xfailed=1)
    assert {path: path.stat().st_mtime_ns for path in (bench.path / ".gitbench" / "cases").iterdir()} == before
    run(bench, "--gitbench-fresh")
    after = {path: path.stat().st_mtime_ns for path in (bench.path / ".gitbench" / "cases").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)


def test_result_files_follow_the_contract(bench: pytest.Pytester) -> None:
    run(bench)
    for case_id, case in cases(bench.path).items():
        assert case["schema"] == 1
        assert case["case_id"] == case_id
        assert case["status"] == "done"
        assert {"dataset", "model", "defense", "attack", "knowledge", "victims", "batch_size", "seed"} <= set(case["case"])
        assert set(case["metrics"]) == {"mse", "psnr", "psnr_gain", "ssim", "lpips", "identification"}
        for measure in case["metrics"].values():
            assert measure["low"] <= measure["mean"] <= measure["high"]
            assert len(measure["values"]) == 12
        assert set(case["cost"]) == {"fit_seconds", "attack_seconds", "peak_memory_mb"}
        assert {"gitbench", "torch", "python", "device"} <= set(case["environment"])
        assert (bench.path / ".gitbench" / "pictures" / f"{case_id}.png").read_bytes().startswith(b"\x89PNG")


def test_collect_only_lists_ids_and_imports_no_torch(bench: pytest.Pytester) -> None:
    bench.makeconftest("import sys\ndef pytest_unconfigure():\n    print('torch' in sys.modules, 'numpy' in sys.modules)")
    result = bench.runpytest_subprocess("--gitbench", "--collect-only", "-q")
    result.stdout.fnmatch_lines(["gitbench::npz(*)/mlp(hidden=(24,))/none/ridge", "3 tests collected*", "False False"])
    assert not (bench.path / ".gitbench").exists()


def test_k_selects_and_a_partial_run_keeps_the_complete_table(bench: pytest.Pytester) -> None:
    run(bench)
    (board,) = (bench.path / "leaderboards").iterdir()
    complete = board.read_text()
    result = run(bench, "-k", "gaussian_noise", "--gitbench-results", "other")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["leaderboard *not written, not measured yet:*clipping*"])
    assert board.read_text() == complete


def test_a_run_of_other_cells_keeps_the_complete_table(bench: pytest.Pytester) -> None:
    run(bench)
    (board,) = (bench.path / "leaderboards").iterdir()
    complete = board.read_text()
    result = run(bench, "--gitbench-defense", "clipping(max_norm=7.0)")
    result.stdout.fnmatch_lines(["leaderboard *not written, it holds cells that this run did not measure*"])
    assert board.read_text() == complete


def test_one_cell_can_be_named_by_its_id(bench: pytest.Pytester) -> None:
    listed = run(bench, "--collect-only", "-q").outlines
    (one,) = [line for line in listed if "gaussian_noise" in line]
    run(bench, one).assert_outcomes(passed=1)
    result = run(bench, one.replace("ridge", "rigde"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no cell *rigde*--collect-only*"])


def test_a_leaking_defense_of_the_users_own_is_red(bench: pytest.Pytester) -> None:
    result = run(bench, "--gitbench-defense", "defenses.py:Mine(scale=0.5)")
    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*psnr_gain * is past the threshold of 3 dB*", "next: pytest --gitbench *--lf *or one cell: *"])


def test_lf_and_x(bench: pytest.Pytester) -> None:
    axis = (
        "--gitbench-defense",
        "defenses.py:Mine",
        "--gitbench-defense",
        "defenses.py:Noise",
        "--gitbench-defense",
        "defenses.py:Mine(scale=2.0)",
    )
    run(bench, *axis).assert_outcomes(passed=1, failed=2)
    run(bench, "--lf", *axis).assert_outcomes(failed=2, deselected=1)
    run(bench, "-x", *axis).assert_outcomes(failed=1)


def test_a_defense_that_fails_is_named_and_the_run_goes_on(bench: pytest.Pytester) -> None:
    result = run(bench, *(f"--gitbench-defense=defenses.py:{name}" for name in ("Broken", "Nan", "Noise")))
    result.assert_outcomes(failed=2, passed=1)
    result.stdout.fnmatch_lines(
        ["*The defense defenses.py:Broken raised RuntimeError: my bad*", "*The defense defenses.py:Nan returned * NaN*"]
    )
    by_defense = {case["case"]["defense"]: case for case in cases(bench.path).values()}
    assert by_defense["defenses.py:Broken"]["status"] == "error"
    assert "my bad" in by_defense["defenses.py:Broken"]["error"]
    assert by_defense["defenses.py:Noise"]["verdict"] == "holds"


def test_an_edited_defense_is_measured_again(bench: pytest.Pytester) -> None:
    run(bench, "--gitbench-defense", "defenses.py:Mine")
    first = set(cases(bench.path))
    source = bench.path / "defenses.py"
    source.write_text(source.read_text().replace("tensor * self.scale", "tensor + gitbench.randn_like(tensor, generator)"))
    run(bench, "--gitbench-defense", "defenses.py:Mine").assert_outcomes(passed=1)
    assert len(set(cases(bench.path)) - first) == 1


def test_a_defense_whose_neighbour_was_edited_and_images_that_changed_are_measured_again(bench: pytest.Pytester, data: Data) -> None:
    bench.makepyfile(helper="SCALE = 0.1", mine="import gitbench, helper\n" + MINE)
    options = f"--gitbench-dataset=npz(path={str(write_npz(bench.path / 'own.npz', data))!r})", "--gitbench-defense=mine.py:Mine"
    seen = [set(cases(bench.path))]
    for change in (
        lambda: None,
        lambda: bench.makepyfile(helper="SCALE = 0.2"),
        lambda: write_npz(bench.path / "own.npz", dataclasses.replace(data, private=data.public)),
    ):
        change()
        run(bench, *options).assert_outcomes(failed=1)
        seen.append(set(cases(bench.path)))
        run(bench, *options).assert_outcomes(failed=1)
        assert set(cases(bench.path)) == seen[-1]
    # The defended cell and its control; the defended cell alone; both.
    assert [len(after) - len(before) for before, after in itertools.pairwise(seen)] == [2, 1, 2]


MINE = """
class Mine(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * helper.SCALE)
"""


def test_fails_closed_when_no_attack_passes_its_control(bench: pytest.Pytester) -> None:
    result = run(
        bench, "--gitbench-attack", "ig(iterations=1)", "--gitbench-defense", "none", "--gitbench-defense", "gaussian_noise(std=1.0)"
    )
    result.assert_outcomes(skipped=1, failed=1)
    result.stdout.fnmatch_lines(["*control does not leak*no other attack of this run passed its control*"])


def test_an_attack_without_control_is_skipped_where_another_has_one(bench: pytest.Pytester) -> None:
    result = run(
        bench, "--gitbench-attack", "ridge", "--gitbench-attack", "ig(iterations=1)", "--gitbench-defense", "gaussian_noise(std=1.0)", "-rs"
    )
    result.assert_outcomes(passed=1, skipped=1)
    result.stdout.fnmatch_lines(["*this attack proves nothing here*"])


def test_an_attack_that_is_granted_too_little_is_skipped(bench: pytest.Pytester) -> None:
    result = run(
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
    run(bench, "--gitbench-seeds", "2", "--gitbench-victims", "6").assert_outcomes(passed=2, xfailed=1)
    assert sorted(case["case"]["seed"] for case in cases(bench.path).values()) == [0, 0, 0, 1, 1, 1]


def test_an_undecided_cell_fails_and_says_what_to_do(bench: pytest.Pytester) -> None:
    options = ("--gitbench-attack", "ridge(adapt=False)", "--gitbench-defense", "defenses.py:Half")
    run(bench, *options)
    (half,) = (case for case in cases(bench.path).values() if case["case"]["defense"] != "none")
    # A threshold at the cell's own mean: its interval straddles it, and the control is well past it.
    result = run(bench, *options, "--gitbench-threshold", f"psnr_gain={half['metrics']['psnr_gain']['mean']}")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*undecided at 12 victims: raise --gitbench-victims*straddles*"])


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
        (("--gitbench-baseline", "nowhere"), "Expected a baseline at nowhere"),
    ],
)
def test_bad_options_are_usage_errors_before_anything_runs(bench: pytest.Pytester, arguments: tuple[str, ...], message: str) -> None:
    result = run(bench, *arguments)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, "\n".join(result.errlines)), result.errlines
    assert not (bench.path / ".gitbench").exists()


def test_unknown_keys_in_pyproject_are_usage_errors(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("[tool.gitbench]\nvictim = 3")
    result = pytester.runpytest_inprocess("--gitbench")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Did you mean 'victims'*"])


def test_a_regression_against_a_baseline_fails(bench: pytest.Pytester) -> None:
    source = bench.path / "defenses.py"
    plain = source.read_text()
    weak = (
        "\nclass Known(gitbench.Defense):\n    def protect(self, update, *, generator):\n        return update.map(lambda n, t: t{noise})\n"
    )
    source.write_text(plain + weak.format(noise=" + gitbench.randn_like(t, generator)"))
    options = ("--gitbench-defense", "defenses.py:Known", "-rx")
    run(bench, *options, "--gitbench-results", "before").assert_outcomes(passed=1)
    source.write_text(plain + weak.format(noise=" * 1"))
    result = run(bench, *options, "--gitbench-baseline", "before")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*regression: psnr_gain leaks * more than the baseline*"])


def test_every_cell_of_either_side_of_a_comparison_is_named(bench: pytest.Pytester) -> None:
    run(bench, "--gitbench-results", "before")
    assert cli.main(["baseline", str(bench.path / "before"), "--out", str(bench.path / "base.json")]) == 0
    wanted = ("none", "gaussian_noise(std=1.0)", "defenses.py:Noise")
    options = (*(f"--gitbench-defense={one}" for one in wanted), "--gitbench-baseline", "base.json")
    for extra in ((), ("-n", "2")):
        result = run(bench, *options, *extra)
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
    run(bench, "--gitbench-results", "before", "--gitbench-defense=none", "--gitbench-defense=clipping(max_norm=100.0)")
    result = run(bench, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_baseline_of_controls_alone_is_a_usage_error(bench: pytest.Pytester) -> None:
    run(bench, "--gitbench-results", "before", "--gitbench-defense=none")
    result = run(bench, "--gitbench-baseline=before")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*to have a defended cell of this run, for example *; it has */none/ridge (server, quick), for example.*"])


@pytest.mark.parametrize("option", ["--gitbench-defense=defenses.py:Mine", "--gitbench-baseline=missing"])
def test_what_does_nothing_without_gitbench_is_a_usage_error(bench: pytest.Pytester, option: str) -> None:
    result = run_project(bench, option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{option.partition('=')[0]} does nothing without --gitbench: add it, or take the option away."])


def test_known_leaks_fail_where_pytest_is_told_to_run_them_as_if_they_were_not(bench: pytest.Pytester) -> None:
    run(bench, "--gitbench-defense=clipping(max_norm=100.0)", "--runxfail").assert_outcomes(failed=1)


def test_an_attack_that_works_by_one_metric_excuses_none(bench: pytest.Pytester) -> None:
    gate = ("--gitbench-threshold=psnr_gain=3", "--gitbench-threshold=ssim=0.9999")
    result = run(bench, *gate, "--gitbench-defense=gaussian_noise(std=1.0)")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*no other attack of this run passed its control either*"])


def test_another_dataset_under_the_same_name_is_not_paired(bench: pytest.Pytester, tiny_npz: Path) -> None:
    run(bench, "--gitbench-defense", "none", "--gitbench-results", "before")
    base = bench.path / "base.json"
    assert cli.main(["baseline", str(bench.path / "before"), "--out", str(base)]) == 0
    content = json.loads(base.read_text())
    content["cases"][0]["blind"][3] += 1
    base.write_text(json.dumps(content))
    result = run(bench, "--gitbench-defense", "none", "--gitbench-baseline", "base.json")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["baseline base.json: 0 cells compared*", "  not compared: *victim 3 of seed 0 is another image*"])


def test_auto_adds_victims_to_undecided_cells_only(bench: pytest.Pytester) -> None:
    for extra in ((), ("-n", "2")):
        result = run(bench, "--gitbench-victims", "auto", "--gitbench-defense", "none", "--gitbench-defense", "defenses.py:Half", *extra)
        result.stdout.fnmatch_lines(["*auto victims of 1*", "leaderboard: leaderboards/*victims=auto*.md"])
    by_defense: dict[str, list[int]] = {}
    for case in cases(bench.path).values():
        by_defense.setdefault(case["case"]["defense"], []).append(case["case"]["victims"])
    assert min(by_defense["none"]) == 8
    assert all(victims in (8, 16, 32, 64) for victims in by_defense["defenses.py:Half"])
    # Victims of a smaller look are the first of the larger one: the blind guess scores them alike.
    control = sorted(cases(bench.path).values(), key=lambda case: case["case"]["victims"])
    blind = [
        [a - b for a, b in zip(case["metrics"]["psnr"]["values"], case["metrics"]["psnr_gain"]["values"], strict=True)]
        for case in control
        if case["status"] == "done"
    ]
    assert all(one[:8] == pytest.approx(blind[0][:8], abs=1e-3) for one in blind)


def test_the_worst_victim_is_named_where_a_cell_fails(bench: pytest.Pytester) -> None:
    result = run(bench, "--gitbench-defense", "defenses.py:Mine(scale=0.5)")
    result.stdout.fnmatch_lines(
        ["*past the threshold of 3 dB; * of 12 victims are past it (*), the worst is victim * of seed 0 with * dB*"]
    )
    (case,) = (case for case in cases(bench.path).values() if case["case"]["defense"] != "none")
    assert case["exposure"]["psnr_gain"]["victims"] == 12
    assert case["exposure"]["psnr_gain"]["worst"] == max(case["metrics"]["psnr_gain"]["values"])


def test_help_names_every_option_of_the_contract(pytester: pytest.Pytester) -> None:
    text = "\n".join(pytester.runpytest_inprocess("--help").outlines)
    for option in (
        "", "-profile", "-attack", "-defense", "-model", "-dataset", "-seeds", "-victims", "-batch-size", "-device", "-threat",
        "-threshold", "-results", "-leaderboard", "-fresh", "-baseline",
    ):  # fmt: skip
        assert f"--gitbench{option}" in text


@pytest.mark.parametrize("enabled", [False, True])
def test_the_fixture_reports_on_a_defense(bench: pytest.Pytester, enabled: bool) -> None:
    bench.makepyfile(
        test_mine="""
        import pytest
        from defenses import Mine, Noise

        @pytest.mark.gitbench(attacks=["ridge"])
        def test_noise_holds(gitbench_evaluate):
            report = gitbench_evaluate(Noise())
            assert report.verdict == "holds", report

        @pytest.mark.gitbench(attacks=["ridge"])
        def test_mine_holds(gitbench_evaluate):
            report = gitbench_evaluate(Mine(scale=0.5))
            assert report.verdict == "holds", report
        """
    )
    result = bench.runpytest_inprocess("test_mine.py", *(["--gitbench"] if enabled else []), "-p", "no:cacheprovider")
    if enabled:
        result.assert_outcomes(passed=2, xfailed=1)
        return
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*verdict: leaks*", "*picture: *.png*"])


def test_plugin_costs_nothing_when_it_is_not_enabled() -> None:
    code = (
        "import sys, pytest_gitbench.plugin as plugin\n"
        "heavy = {'torch', 'numpy', 'pandas', 'pydantic', 'scipy', 'gitbench'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    found = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pytest", "--version"], capture_output=True, text=True, check=True
    ).stderr
    assert not re.search(r"\| +(torch|numpy|pandas|pydantic|gitbench)$", found, flags=re.MULTILINE)
