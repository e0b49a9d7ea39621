"""Every code block of README.md and docs/ runs, or is checked as far as it can be. See `Block.reason` for those that cannot."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from doc_blocks import BLOCKS, PAGES, ROOT, Block, blocks, read
from doc_checks import FILES, QUICK, check, measure, run
from gitbench import cli
from gitbench.core.spec import parse_spec
from gitbench.identity.names import GROUPS
from gitbench.publish import inspection
from gitbench.publish.manifest import read_claim
from gitbench.publish.scaffold import OPTIONS_FILE, scaffold
from gitbench.run.config import make_config
from gitbench.run.matrix import make_cells
from gitbench.run.suite import read_suite
from gitbench.run.suite_files import GROUP as SUITES
from gitbench.store.folder import Store
from helpers import make_data, write, write_npz, write_project
from pytest_gitbench.outcome import Figures
from pytest_gitbench.report import figures
from pytest_gitbench.runner import Runner

pytestmark = pytest.mark.usefixtures("warm")
LANGUAGES = {"python", "sh", "console", "toml", "json", "yaml", "text"}
NOT_RUN = 8  # a diagram, a formula, what long runs print: raise it only for what cannot run
YOURS = """
from torch import nn

class YourModel(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(192, classes))

    def forward(self, inputs):
        return self.layers(inputs), inputs
"""
MODULES = {**FILES, "your_package.py": YOURS, "my_package/models.py": FILES["models.py"].replace("Small", "build")}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny ones, in place of every archive that a page names."""
    return write_npz(tmp_path_factory.mktemp("docs") / "images.npz", make_data(private=48))


@pytest.fixture
def folder(pytester: pytest.Pytester, images: Path) -> pytest.Pytester:
    """What somebody has who follows the pages: the files that they write, and a matrix of seconds in pyproject.toml."""
    scaffold(pytester.path)
    (pytester.path / OPTIONS_FILE).unlink()
    write_project(pytester, images, defense=["none", "mine.py:MyDefense"], known_leaks=["*"], victims=8, threads=1)
    for name, text in MODULES.items():
        write(pytester.path / name, text)
    for name in re.findall(r"\b\w+\.npz\b", "".join(block.text for block in BLOCKS)):
        if not (pytester.path / name).exists():
            (pytester.path / name).symlink_to(images)
    (pytester.path / "benchmarks").symlink_to(ROOT / "benchmarks")
    pytester.syspathinsert()
    return pytester


def of(*languages: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    found = blocks(*languages)
    return pytest.mark.parametrize("block", found, ids=map(str, found))


# ---------------------------------------------------------------- all blocks


def test_every_block_says_what_it_is_and_few_cannot_run() -> None:
    unknown = [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES]
    assert not unknown, f"name the language behind the fence, one of {sorted(LANGUAGES)}"
    fences = sum(len(re.findall(r"^ *```", read(page), flags=re.MULTILINE)) for page in PAGES)
    assert fences == 2 * len(BLOCKS), "a fence is indented or left open: its block would not be seen"
    assert len([block for block in BLOCKS if block.reason]) == NOT_RUN


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.reason], ids=str)
def test_a_block_that_cannot_run_says_why(block: Block) -> None:
    pytest.skip(block.reason)


# ---------------------------------------------------------------- commands


def runs(block: Block) -> bool:
    """Whether a project of tiny images can run it: it measures, and leaves data, model and attack to pyproject.toml."""
    measured = [set(words) for words in block.commands if words[:2] == ["pytest", "--gitbench"]]
    chosen = {f"--gitbench-{axis}" for axis in ("dataset", "model", "attack", "defense", "profile")}
    return bool(measured) and not any(chosen & words for words in measured)


@pytest.mark.parametrize("block", [block for block in blocks("sh", "console") if not runs(block)], ids=str)
def test_commands_are_understood(block: Block, folder: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    assert block.commands
    subprocess.run(["bash", "-n"], input="\n".join(map(shlex.join, block.commands)), text=True, check=True)
    for words in block.commands:
        with monkeypatch.context() as patched:
            check(words, folder, patched)


@pytest.mark.parametrize("block", [block for block in blocks("sh") if runs(block)], ids=str)
def test_commands_run_on_a_small_project(block: Block, folder: pytest.Pytester) -> None:
    folder.run("git", "init", "-q")
    if any("leaderboards/cases" in words for words in block.commands):
        (folder.path / "leaderboards").mkdir()
    for words in block.commands:
        run(words, folder)


def test_options_and_commands_within_sentences_exist(pytestconfig: pytest.Config) -> None:
    options = {name for option in pytestconfig._parser.getgroup("gitbench").options for name in option.names()}
    commands = next(action for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction)).choices
    for page in PAGES:
        text = read(page)
        assert set(re.findall(r"--gitbench(?:-[a-z]+)*", text)) <= options, page
        for command, rest in re.findall(r"`gitbench ([a-z]+)([^`]*)`", text):
            assert command in commands, f"{page}: gitbench {command}"
            known = {name for action in commands[command]._actions for name in action.option_strings}
            assert {word.partition("=")[0] for word in rest.split() if word.startswith("--")} <= known, f"{page}: gitbench {command}{rest}"


# ---------------------------------------------------------------- Python

HOOK = re.compile(r"^def pytest_", re.MULTILINE)
TEST = re.compile(r"^(def test_|class Test)", re.MULTILINE)


def of_page(page: str) -> list[Block]:
    return [block for block in blocks("python") if block.page == page and not HOOK.search(block.text) and not TEST.search(block.text)]


@pytest.mark.parametrize("page", sorted({block.page for block in blocks("python")}))
def test_python_runs_in_the_order_of_the_page(page: str, folder: pytest.Pytester, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it defines is measured: a component as it stands, a method in a defense."""
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    space = vars(module)
    for block in of_page(page):
        before = dict(space)
        code = "\n" * (block.line - 1) + block.text
        exec(compile(code, str(ROOT / page), "exec"), space)
        file = write(folder.path / f"block_{block.line}.py", block.text)
        for name, value in space.items():
            if before.get(name) is not value and getattr(value, "__module__", None) == "page":
                measure(name, value, file, images)


@pytest.mark.parametrize("block", [block for block in blocks("python") if TEST.search(block.text)], ids=str)
def test_a_test_runs(block: Block, folder: pytest.Pytester) -> None:
    folder.makepyfile(test_of_the_page=block.text.replace('"ig"', '"ig(iterations=10)"').replace("victims=32", "victims=8"))
    result = folder.runpytest_inprocess("test_of_the_page.py", *QUICK)
    counts = result.parseoutcomes()
    leaking = "import MyDefense" in block.text and "from mine" in block.text
    assert set(counts) == ({"failed"} if leaking else {"passed"}), result.stdout.str()
    if leaking:
        result.stdout.fnmatch_lines(["*verdict: leaks"])


@pytest.mark.parametrize("block", [block for block in blocks("python") if HOOK.search(block.text)], ids=str)
def test_a_hook_is_called(block: Block, folder: pytest.Pytester) -> None:
    calls = "\n".join(
        f"\n_{name} = {name}\ndef {name}({arguments}):\n    print('called', {name!r})\n    return _{name}({arguments})"
        for name, arguments in re.findall(r"^def (pytest_\w+)\((.*)\):", block.text, flags=re.MULTILINE)
    )
    folder.makeconftest(f"{block.text}\n{calls}")
    result = folder.runpytest_inprocess("--gitbench", "-s", *QUICK)
    assert result.ret == 0, result.stdout.str()
    for name in re.findall(r"^def (pytest_\w+)", block.text, flags=re.MULTILINE):
        result.stdout.fnmatch_lines([f"*called {name}*"])


# ---------------------------------------------------------------- data


@of("toml")
def test_options_are_options_and_entry_points_are_found(block: Block, folder: pytest.Pytester) -> None:
    found = tomllib.loads(block.text)
    if "settings" in found:
        assert read_suite(write(folder.path / "mine.toml", block.text)).title == found["title"]
        return
    if "tool" in found:
        config = make_config(found["tool"]["gitbench"], {})
        Runner.check(make_cells(config), config)
    for group, names in found.get("project", {}).get("entry-points", {}).items():
        kind = {where: kind for kind, where in GROUPS.items()}.get(group)
        assert kind is not None or group == SUITES
        for name, target in names.items():
            assert name.isidentifier()
            if kind is not None:
                parse_spec(kind, target)
    assert found.keys() <= {"tool", "project"}


def test_a_submission_is_made_and_scored_as_the_page_has_it(folder: pytest.Pytester) -> None:
    (claim,) = blocks("json")
    path = write(folder.path / "claim.json", claim.text)
    assert read_claim(path).name == json.loads(claim.text)["name"]
    (session,) = (block for block in blocks("sh") if "gitbench observe" in block.text)
    for words in session.commands:
        run(words, folder)
    assert (folder.path / "leaderboards" / "photos-lenet.md").is_file()


# ---------------------------------------------------------------- output


def of_text(page: str) -> Block:
    (found,) = (block for block in blocks("text") if block.page == page)
    return found


def test_every_output_is_checked() -> None:
    assert {block.page for block in blocks("text")} == {"README.md", "docs/inspect.md", "docs/leaderboards.md"}


def test_files_that_are_shown_exist() -> None:
    for name in of_text("docs/leaderboards.md").text.split():
        assert (ROOT / name).is_file()


def test_the_matrix_of_the_readme_is_what_the_committed_results_say() -> None:
    told = {}
    for result in Store(ROOT / "leaderboards").results():
        if result.case.dataset != "photos":  # others stand in docs/cost.md
            continue
        cell, gain = result.case.labels, result.metrics["psnr_gain"]
        told[str(cell)] = figures(Figures(metric="psnr_gain", mean=gain.mean, low=gain.low, high=gain.high))
    shown = {}
    for table in of_text("README.md").text.strip().split("\n\n"):
        (setting, *attacks), *rows = (re.split(r"  +", line) for line in table.splitlines())
        shown |= {f"{setting}/{defense}/{attack}": cell for defense, *cells in rows for attack, cell in zip(attacks, cells, strict=True)}
    assert {name: re.sub(r"^(ok|x|F|s) [a-z]+ ", "", cell) for name, cell in shown.items()} == told


def test_figures_of_the_answers_stand_in_the_pages_that_have_their_commands() -> None:
    answers = {f"docs/{name}.md" for name in ("faq", "start", "verdicts")}
    told = " ".join(" ".join(read(page).split()) for page in PAGES if page not in answers)
    for page in ("docs/faq.md", "docs/verdicts.md"):
        for figure in re.findall(r"(?<![\d.=])[+-]?\d+\.\d+(?= dB| after)|\d+ of (?:its )?\d+|\d+ min \d+ s", read(page)):
            assert figure in told, f"{page}: {figure}"


def test_inspecting_prints_what_is_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LARGEST", 0)  # ranks take seconds, and tests of their own
    assert cli.main(["inspect", "lenet"]) == 0
    printed, shown = capsys.readouterr().out.splitlines(), of_text("docs/inspect.md").text.splitlines()
    told = [[re.split(r"  +", line)[:6] for line in lines] for lines in (printed[2 : len(shown)], shown[2:])]
    assert told[0] == told[1]
