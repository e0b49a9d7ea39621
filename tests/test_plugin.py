"""The plugin as people use it: plain, with xdist, and without xdist installed."""

from __future__ import annotations

import dataclasses
import itertools
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from gitbench.clients.data import Data
from helpers import run_matrix, run_project, stored_cases, write_npz

pytestmark = pytest.mark.usefixtures("warm")


def stable(found: dict[str, dict]) -> dict[str, dict]:
    """Results without what no two runs share: times and memory."""
    return {key: {name: value for name, value in case.items() if name not in ("cost", "finished_at")} for key, case in found.items()}


@pytest.mark.parametrize("extra", [(), ("-n", "2"), ("-p", "no:xdist")], ids=["plain", "n2", "no-xdist"])
def test_the_matrix_runs_and_only_it(bench: pytest.Pytester, extra: tuple[str, ...]) -> None:
    result = run_matrix(bench, *extra, "--junit-xml=out.xml")
    result.assert_outcomes(passed=2, xfailed=1)
    result.stdout.fnmatch_lines(["*gitbench: 3 cells, profile quick*", "*none/ridge*leaks*dB*", "npz(*mlp*ridge*", "*next:*"])
    result.stdout.no_fnmatch_line("*test_other*")
    result.stdout.fnmatch_lines(["leaderboard: leaderboards/*"])
    told = list(ET.parse(bench.path / "out.xml").iter("testcase"))
    assert len(told) == 3
    for case in told:
        assert case.get("name").endswith("/ridge")
        properties = [(one.get("name"), one.get("value")) for one in case.iter("property")]
        names = ["gitbench", "metric", "mean", "low", "high", "case_ids", "reason", "flags", "baseline"]
        assert [name for name, _ in properties] == names  # users may rely on them
        found = dict(properties)
        assert float(found["low"]) <= float(found["mean"]) <= float(found["high"])
        assert found["case_ids"] in stored_cases(bench.path)


@pytest.mark.slow
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
        run_matrix(bench, *extra, "--gitbench-attack", "ridge", "--gitbench-attack", "ig(iterations=20)")
        run_project(bench, "test_mine.py", *extra).assert_outcomes(passed=2)
        pictures = {path.name: path.read_bytes() for path in (bench.path / ".gitbench" / "pictures").iterdir()}
        found.append((stable(stored_cases(bench.path)), pictures))
        (bench.path / ".gitbench").rename(bench.path / f"results{len(found)}")
    assert found[0] == found[1]
    assert found[0] == found[2]
    assert len(found[0][0]) == len(found[0][1]) == 6 + 4 + 2  # the matrix, the suite, the suite's controls


def test_a_second_run_measures_nothing(bench: pytest.Pytester) -> None:
    run_matrix(bench)
    before = {path: path.stat().st_mtime_ns for path in (bench.path / ".gitbench" / "cases").iterdir()}
    run_matrix(bench).assert_outcomes(passed=2, xfailed=1)
    assert {path: path.stat().st_mtime_ns for path in (bench.path / ".gitbench" / "cases").iterdir()} == before
    run_matrix(bench, "--gitbench-fresh")
    after = {path: path.stat().st_mtime_ns for path in (bench.path / ".gitbench" / "cases").iterdir()}
    assert after.keys() == before.keys()
    assert all(after[path] > before[path] for path in before)


def test_result_files_follow_the_contract(bench: pytest.Pytester) -> None:
    run_matrix(bench)
    for case_id, case in stored_cases(bench.path).items():
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


def test_ids_that_v_prints_can_be_given_back(bench: pytest.Pytester) -> None:
    options = ("--gitbench-defense", "pruning(rate=0.5)", "--gitbench-attack", "ridge")
    listed = bench.runpytest_inprocess("--gitbench", *options, "--collect-only", "-q").outlines
    ids = [line for line in listed if line.startswith("gitbench::")]
    assert len(ids) == 1
    for extra in ((), ("-p", "no:xdist")):
        told = run_matrix(bench, *options, "-v", *extra).outlines
        for one in ids:
            assert any(line.startswith(f"{one} ") for line in told), one
    assert any(one in line for one in ids for line in run_matrix(bench, *options, "-v", "-n", "2").outlines)


def test_k_selects_and_a_partial_run_keeps_the_complete_table(bench: pytest.Pytester) -> None:
    run_matrix(bench)
    (board,) = (bench.path / "leaderboards").glob("*.md")
    complete = board.read_text()
    result = run_matrix(bench, "-k", "gaussian_noise", "--gitbench-results", "other")
    result.assert_outcomes(passed=1, deselected=2)
    result.stdout.fnmatch_lines(["leaderboard *not written, not measured yet:*clipping*"])
    assert board.read_text() == complete


def test_a_run_of_other_cells_keeps_the_complete_table(bench: pytest.Pytester) -> None:
    run_matrix(bench)
    (board,) = (bench.path / "leaderboards").glob("*.md")
    complete = board.read_text()
    result = run_matrix(bench, "--gitbench-defense", "clipping(max_norm=7.0)")
    result.stdout.fnmatch_lines(["leaderboard *not written, it holds cells that this run did not measure*"])
    assert board.read_text() == complete


def test_one_cell_can_be_named_by_its_id(bench: pytest.Pytester) -> None:
    listed = run_matrix(bench, "--collect-only", "-q").outlines
    (one,) = [line for line in listed if "gaussian_noise" in line]
    run_matrix(bench, one).assert_outcomes(passed=1)
    result = run_matrix(bench, one.replace("ridge", "rigde"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*no cell *rigde*--collect-only*"])


def test_lf_and_x(bench: pytest.Pytester) -> None:
    axis = (
        "--gitbench-defense",
        "defenses.py:Mine",
        "--gitbench-defense",
        "defenses.py:Noise",
        "--gitbench-defense",
        "defenses.py:Mine(scale=2.0)",
    )
    run_matrix(bench, *axis).assert_outcomes(passed=1, failed=2)
    run_matrix(bench, "--lf", *axis).assert_outcomes(failed=2, deselected=1)
    run_matrix(bench, "-x", *axis).assert_outcomes(failed=1)


def test_an_edited_defense_is_measured_again(bench: pytest.Pytester) -> None:
    run_matrix(bench, "--gitbench-defense", "defenses.py:Mine")
    first = set(stored_cases(bench.path))
    source = bench.path / "defenses.py"
    source.write_text(source.read_text().replace("tensor * self.scale", "tensor + gitbench.randn_like(tensor, generator)"))
    run_matrix(bench, "--gitbench-defense", "defenses.py:Mine").assert_outcomes(passed=1)
    assert len(set(stored_cases(bench.path)) - first) == 1


def test_a_defense_whose_neighbour_was_edited_and_images_that_changed_are_measured_again(bench: pytest.Pytester, data: Data) -> None:
    bench.makepyfile(helper="SCALE = 0.1", mine="import gitbench, helper\n" + MINE)
    options = f"--gitbench-dataset=npz(path={str(write_npz(bench.path / 'own.npz', data))!r})", "--gitbench-defense=mine.py:Mine"
    seen = [set(stored_cases(bench.path))]
    for change in (
        lambda: None,
        lambda: bench.makepyfile(helper="SCALE = 0.2"),
        lambda: write_npz(bench.path / "own.npz", dataclasses.replace(data, private=data.public)),
    ):
        change()
        run_matrix(bench, *options).assert_outcomes(failed=1)
        seen.append(set(stored_cases(bench.path)))
        run_matrix(bench, *options).assert_outcomes(failed=1)
        assert set(stored_cases(bench.path)) == seen[-1]
    # The defended cell and its control; the defended cell alone; both.
    assert [len(after) - len(before) for before, after in itertools.pairwise(seen)] == [2, 1, 2]


MINE = """
class Mine(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * helper.SCALE)
"""


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
