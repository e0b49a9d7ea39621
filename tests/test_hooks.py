"""The hooks for other plugins: registering, changing the matrix, seeing results, adding to the summary."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gitbench.core.errors import SpecError
from gitbench.core.spec import parse_spec
from gitbench.identity.loading import check_spec
from helpers import run_project, write_project

pytestmark = pytest.mark.usefixtures("warm")


@pytest.fixture
def project(pytester: pytest.Pytester, tiny_npz: Path) -> pytest.Pytester:
    write_project(pytester, tiny_npz, defense=["none", "gaussian_noise(std=1.0)"])
    pytester.makepyfile(
        mine="""
        import gitbench

        class Noise(gitbench.Defense):
            name = "noise"
            def __init__(self, *, scale: float = 1.0):
                self.scale = scale
            def protect(self, update, *, generator):
                return update.map(lambda name, tensor: tensor + self.scale * gitbench.randn_like(tensor, generator))
        """
    )
    return pytester


def run(project: pytest.Pytester, conftest: str, *arguments: str) -> pytest.RunResult:
    project.makeconftest(conftest)
    return run_project(project, *arguments)


REGISTER = """
def pytest_gitbench_register(config):
    return {"defense": {"noise": "mine.py:Noise"}}
"""


def test_a_registered_defense_goes_by_its_name(project: pytest.Pytester) -> None:
    result = run(project, REGISTER, "--gitbench", "--gitbench-defense", "noise(scale=1.0)")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["noise(scale=1.0) *ok holds*"])
    with pytest.raises(SpecError, match="Unknown defense 'noise'"):  # forgotten with its run
        check_spec(parse_spec("defense", "noise"))


def test_registered_names_are_known_without_gitbench_too(project: pytest.Pytester) -> None:
    project.makepyfile(test_it="def test_it(gitbench_evaluate):\n    assert gitbench_evaluate('noise').verdict == 'holds'")
    run(project, REGISTER).assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("{'defence': {}}", r"Cannot register the kind 'defence'\. Did you mean 'defense'"),
        (
            "{'defense': {'none': 'mine:Noise'}}",
            "Cannot register the defense 'none' as mine:Noise: it is gitbench_defenses.none:Undefended already",
        ),
        ("{'defense': {'a b': 'mine:Noise'}}", "expected a name and module:Name or file.py:Name"),
        ("{'defense': {'noise': 'mine'}}", "expected a name and module:Name or file.py:Name"),
        ("{'defense': {'noise': 3}}", "expected a name and module:Name or file.py:Name"),
        ("{'defense': {'noise': 'mine py:Noise'}}", "Cannot read the defense"),
        ("['noise']", r"A pytest_gitbench_register hook returned \['noise'\], expected"),
        ("{'defense': ['noise']}", r"A pytest_gitbench_register hook returned \['noise'\], expected"),
    ],
)
def test_what_cannot_be_registered_is_a_usage_error(project: pytest.Pytester, returned: str, message: str) -> None:
    result = run(project, f"def pytest_gitbench_register(config):\n    return {returned}", "--gitbench")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, "\n".join(result.errlines)), result.errlines


MATRIX = """
from gitbench.run.config import make_cell

def pytest_gitbench_matrix(config, options, cells):
    cells[:] = [cell for cell in cells if not cell.is_control]
    cells.insert(0, make_cell(options, dataset=options.dataset[0], model="mlp", defense="gaussian_noise(std=2.0)", attack="ridge"))
"""


def test_cells_can_be_dropped_added_and_reordered(project: pytest.Pytester) -> None:
    run(project, MATRIX, "--gitbench").assert_outcomes(passed=2)
    listed = run(project, MATRIX, "--gitbench", "--collect-only", "-q").outlines
    assert [line.split("/")[-2] for line in listed if line.startswith("gitbench::")] == [
        "gaussian_noise(std=2.0)",
        "gaussian_noise(std=1.0)",
    ]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("cells.append(cells[0])", "put the cell npz.* into the matrix twice"),
        ("cells.append('none')", "put 'none' into the matrix. Build cells with gitbench.make_cell"),
        ("make_cell(options, dataset='foto', model='mlp', defense='none', attack='ridge')", "Did you mean 'photos'"),
    ],
)
def test_a_matrix_that_cannot_be_is_a_usage_error(project: pytest.Pytester, body: str, message: str) -> None:
    conftest = f"from gitbench.run.config import make_cell\ndef pytest_gitbench_matrix(config, options, cells):\n    {body}"
    result = run(project, conftest, "--gitbench")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(message, "\n".join(result.errlines)), result.errlines


SEEN = """
seen = []

def pytest_gitbench_result(config, cell, outcome, results):
    seen.append(f"{cell.defense.label} {outcome} {len(results)} {len(results[0].metrics['psnr'].values)}")

def pytest_unconfigure(config):
    if not hasattr(config, "workerinput"):
        print("seen:", *sorted(seen), sep="\\n")
"""


@pytest.mark.parametrize("extra", [(), ("-p", "no:terminal")], ids=["plain", "no terminal"])
def test_each_result_is_seen_once(project: pytest.Pytester, extra: tuple[str, ...]) -> None:
    for _ in range(2):  # measured, and taken from the store
        result = run(
            project, SEEN, "--gitbench", "--gitbench-seeds", "2", "--gitbench-victims", "6", "--gitbench-threshold", "psnr_gain=6", *extra
        )
        told = result.outlines
        assert told[told.index("seen:") + 1 :] == ["gaussian_noise(std=1.0) passed 2 6", "none passed 2 6"]


SUMMARY = """
def pytest_gitbench_columns(config, dataset, model, defense, results):
    assert model == "mlp(hidden=(24,))"
    if defense == "none":
        return None
    return {"worst | ssim": format(max(result.metrics["ssim"].mean for result in results), ".3f"), "cells": str(len(results)) + "\\n!"}

def pytest_gitbench_summary(config, results):
    return [f"measured {len(results)}\\nresults"]
"""


def test_columns_and_lines_are_added_to_the_summary_and_the_leaderboard(project: pytest.Pytester) -> None:
    result = run(project, SUMMARY, "--gitbench")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["npz*ridge *worst | ssim  cells", "none *leaks*[]]", "gaussian_noise*  [0-9-]*.[0-9][0-9][0-9] *1 !", "measured 2 results"]
    )
    (board,) = (project.path / "leaderboards").glob("*.md")
    header, _, *rows = [line for line in board.read_text().partition("## Every attack")[2].splitlines() if line.startswith("|")][:4]
    assert [cell.strip() for cell in re.split(r"(?<!\\)\|", header)][-3:] == [r"worst \| ssim", "cells", ""]
    assert rows[0].rstrip("| ").endswith("1 !")
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in (header, *rows)}) == 1


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        ("def pytest_gitbench_columns(config): return 3", "A pytest_gitbench_columns hook returned 3, expected {heading: text}"),
        (
            "def pytest_gitbench_summary(config): return 'text'",
            "A pytest_gitbench_summary hook returned the text 'text', expected a list of lines",
        ),
    ],
)
def test_a_malformed_answer_costs_the_addition_and_not_the_run(project: pytest.Pytester, hook: str, message: str) -> None:
    result = run(project, hook, "--gitbench")
    result.assert_outcomes(passed=2)
    assert f"gitbench: {message}" in str(result.stdout)


def test_a_misspelt_hook_is_refused_by_pytest(project: pytest.Pytester) -> None:
    result = run(project, "def pytest_gitbench_colums(config): ...", "--gitbench")
    assert "unknown hook 'pytest_gitbench_colums'" in str(result.stderr) + str(result.stdout)


def test_every_hook_is_documented_with_a_recipe() -> None:
    from pytest_gitbench import hooks

    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text().partition("## Hooks")[2]
    names = [name for name in vars(hooks) if name.startswith("pytest_gitbench_")]
    assert len(names) == 5
    for name in names:
        assert "Recipe::" in getattr(hooks, name).__doc__
        assert f"def {name}(" in page


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("-n", "2")], ids=["plain", "n2"])
def test_the_examples_of_the_documentation_work_as_they_stand(project: pytest.Pytester, extra: tuple[str, ...]) -> None:
    page = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text().partition("## Hooks")[2]
    examples = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert len(examples) == 4
    project.makepyfile(my_defense=(project.path / "mine.py").read_text().replace("Noise", "MyDefense"))
    result = run(project, "\n".join(examples), "--gitbench", "--gitbench-defense", "none", "--gitbench-defense", "noise", *extra)
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*ridge *worst ssim", "noise *ok holds * 0.[0-9]*", "36 victims attacked"])
    assert len((project.path / "seen.txt").read_text().splitlines()) == 3
