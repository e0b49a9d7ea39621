"""The GitHub Action: its steps run here as they stand in action.yml, in a shell, with a stand-in for what GitHub provides."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from doc_blocks import blocks
from gitbench import cli
from helpers import run_matrix, write_project

ACTION = Path(__file__).parents[1] / "action.yml"
FOUND = yaml.safe_load(ACTION.read_text(encoding="utf-8"))
STEPS = {step["name"]: step for step in FOUND["runs"]["steps"]}
EXPRESSION = re.compile(r"\$\{\{ ([\w.-]+) \}\}")
MINE = """
import gitbench

class Mine(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor + {noise} * gitbench.randn_like(tensor, generator))
"""
PYTHON = """#!/usr/bin/env bash
if [ "$1 $2" = '-m pip' ]; then echo "$@" >> "$STAND_IN/pip"; else exec {python} "$@"; fi
"""
GITBENCH = '#!/usr/bin/env bash\nexec {python} -c "from gitbench.cli import main; raise SystemExit(main())" "$@"\n'
GH = """#!/usr/bin/env bash
test "$GH_TOKEN" = secret || exit 4
echo "$@" >> "$STAND_IN/gh"
for word in "$@"; do
    case $word in
        body=@*) test ! -e "$STAND_IN/refuses" || exit 1; cp "${{word#body=@}}" "$STAND_IN/body"; touch "$STAND_IN/commented"; exit ;;
    esac
done
if [ -e "$STAND_IN/commented" ]; then printf '17\\n18\\n'; fi
"""


class Runner:
    """What runs an action: contexts, a file of outputs, a summary. ``gh`` and ``pip`` are stand-ins that keep what they were asked for."""

    def __init__(self, folder: Path, project: Path) -> None:
        self.folder, self.project, self.log = folder, project, ""
        for name, text in (("python", PYTHON), ("gitbench", GITBENCH), ("gh", GH)):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text.format(python=sys.executable))
            program.chmod(0o755)

    def start(self, inputs: Mapping[str, str], *, fork: bool = False) -> None:
        self.known = {
            "github.action_path": "/action", "github.token": "secret", "github.repository": "us/them", "github.event_name": "pull_request",
            "github.event.pull_request.number": "7", "github.event.pull_request.head.repo.full_name": "fork/them" if fork else "us/them",
        }  # fmt: skip
        (self.folder / "summary").write_text("")
        for name, one in FOUND["inputs"].items():
            self.known[f"inputs.{name}"] = inputs.get(name, filled(one["default"], self.known))

    def run(self, inputs: Mapping[str, str]) -> dict[str, int]:
        """The exit status of each step that ran."""
        self.start(inputs)
        found: dict[str, int] = {}
        for name in STEPS:
            if self.wanted(name) and not any(found.values()):
                found[name] = self.step(name)
        return found

    def wanted(self, name: str) -> bool:
        """Conditions are comparisons that are joined by ``&&``."""
        for one in filter(None, STEPS[name].get("if", "").split(" && ")):
            left, sign, right = one.split(" ")
            value = right.strip("'") if right.startswith("'") else self.known[right]
            if (self.known[left] == value) != (sign == "=="):
                return False
        return True

    def step(self, name: str) -> int:
        step = STEPS[name]
        if "uses" in step:  # what it uploads must be there
            return int(not Path(filled(step["with"]["path"], self.known)).is_dir())
        return self._shell(step, self.known)

    def _shell(self, step: Mapping, known: dict[str, str]) -> int:
        outputs = self.folder / "outputs"
        outputs.write_text("")
        script = self.folder / "script"
        script.write_text(step["run"])
        environment = {name: filled(value, known) for name, value in step.get("env", {}).items()}
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        github = {name: str(self.folder / name.lower()) for name in ("SUMMARY", "OUTPUTS")}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.project / filled(step.get("working-directory", "."), known), capture_output=True, text=True, check=False,
            env={
                **os.environ, "PATH": path, "RUNNER_TEMP": str(self.folder / "temp"), "GITHUB_OUTPUT": github["OUTPUTS"],
                "GITHUB_STEP_SUMMARY": github["SUMMARY"], "GITHUB_REPOSITORY": "us/them", "STAND_IN": str(self.folder), **environment,
            },
        )  # fmt: skip
        self.log += done.stdout + done.stderr
        for line in outputs.read_text().splitlines():
            name, _, value = line.partition("=")
            known[f"steps.{step['id']}.outputs.{name}"] = value
        return done.returncode

    def asked(self, program: str) -> list[str]:
        path = self.folder / program
        return path.read_text().splitlines() if path.exists() else []

    @property
    def comment(self) -> str:
        return (self.folder / "body").read_text()

    @property
    def summary(self) -> str:
        return (self.folder / "summary").read_text()


def filled(text: str, known: Mapping[str, str]) -> str:
    return EXPRESSION.sub(lambda found: known[found[1]], text)


@pytest.fixture
def bare(pytester: pytest.Pytester, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A defense that holds, not measured yet."""
    write_project(pytester, tiny_npz, defense=["none", "mine.py:Mine"], threads=1, leaderboard="none")
    pytester.makepyfile(mine=MINE.format(noise=1.0))
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest")
    return pytester


@pytest.fixture
def project(bare: pytest.Pytester, warm: None) -> pytest.Pytester:
    """The same with its baseline."""
    run_matrix(bare).assert_outcomes(passed=2)
    assert cli.main(["baseline"]) == 0
    return bare


@pytest.fixture
def runner(tmp_path_factory: pytest.TempPathFactory, bare: pytest.Pytester) -> Runner:
    return Runner(tmp_path_factory.mktemp("runner"), bare.path)


@pytest.mark.slow
def test_a_planted_regression_is_commented_on_summed_up_and_red(project: pytest.Pytester, runner: Runner) -> None:
    project.makepyfile(mine=MINE.format(noise=0.0))
    steps = runner.run({"arguments": "--gitbench-attack 'ridge' --gitbench-seeds 1"})
    assert steps == {**dict.fromkeys(("Install", "Measure", "Compare", "Summary", "Comment", "Upload the report"), 0), "Verdict": 1}, (
        runner.log
    )
    assert runner.asked("pip") == ["-m pip install /action pytest-xdist"]
    lines = runner.comment.splitlines()
    assert lines[0] == "<!-- gitbench -->"
    assert lines[1] == "### gitbench: ❌ **1 of 2 cells leaks more than before**"
    assert lines[-1].startswith(r"**This run: ❌ failed (exit status 1 of pytest).** mine.py:Mine leaks: +")
    assert "mine.py:Mine/ridge" in runner.comment
    assert runner.summary == runner.comment
    assert "--method POST repos/us/them/issues/7/comments" in runner.asked("gh")[-1]
    folder = runner.folder / "temp" / "gitbench"
    assert sorted(path.name for path in folder.iterdir()) == ["comment.md", "index.html", "leaks.sarif"]
    (leak,) = json.loads((folder / "leaks.sarif").read_text())["runs"][0]["results"]
    assert leak["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "mine.py"


def test_without_a_regression_it_is_green_and_edits_its_comment(project: pytest.Pytester, runner: Runner) -> None:
    (runner.folder / "commented").touch()
    assert set(runner.run({}).values()) == {0}, runner.log
    assert "✅ **No cell leaks more than before** (2 compared)" in runner.comment
    assert "**This run: ✅ passed.**" in runner.summary
    assert "--method PATCH repos/us/them/issues/comments/17" in runner.asked("gh")[-1]
    (runner.folder / "refuses").touch()
    assert runner.step("Comment") == 0  # who may not comment sees the verdict all the same
    assert "::warning::gitbench could not edit its comment" in runner.log
    assert set(runner.run({"baseline": "none"}).values()) == {0}, runner.log
    assert runner.summary.splitlines() == [
        "<!-- gitbench -->",
        "",
        next(line for line in runner.summary.splitlines() if "✅ passed" in line),
    ]
    assert "mine.py:Mine holds" in runner.summary


def test_what_cannot_be_measured_or_compared_is_red_and_says_so(runner: Runner) -> None:
    assert runner.run({"baseline": "gone.json"})["Verdict"] == 1
    assert "❌ **the comparison could not be made**" in runner.summary
    assert "    gitbench: Expected a baseline at gone.json" in runner.summary
    assert "**This run: ❌ failed (exit status 4 of pytest).** Nothing was measured; the log says why." in runner.summary


def test_a_fork_gets_no_comment_and_nobody_an_artifact_who_wants_none(tmp_path: Path) -> None:
    runner = Runner(tmp_path, tmp_path)
    runner.start({"artifact": ""}, fork=True)
    assert [name for name in STEPS if not runner.wanted(name)] == ["Comment", "Upload the report"]
    runner.start({"comment": "false"})
    assert [name for name in STEPS if not runner.wanted(name)] == ["Comment"]


def test_arguments_that_are_no_words_stop_it(tmp_path: Path) -> None:
    steps = Runner(tmp_path, tmp_path).run({"arguments": "--gitbench-defense 'mine.py:Mine"})
    assert steps["Measure"] > 0
    assert "Verdict" not in steps


def test_no_expression_is_within_a_script() -> None:
    """A pull request's title or branch within a script would be run by the shell."""
    for step in FOUND["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == (step.get("shell") == "bash")
    used = set(re.findall(r"inputs\.([\w-]+)", ACTION.read_text()))
    assert used == set(FOUND["inputs"])


def test_the_workflow_of_the_page_gives_inputs_that_there_are() -> None:
    workflows = [yaml.safe_load(block.text) for block in blocks("yaml")]
    steps = [
        step for flow in workflows for job in flow.get("jobs", {}).values() for step in job["steps"] if "gitbench@" in step.get("uses", "")
    ]
    assert steps
    for step in steps:
        assert step.get("with", {}).keys() <= FOUND["inputs"].keys()


def test_the_hook_of_pre_commit_runs_the_matrix(pytester: pytest.Pytester) -> None:
    (hook,) = yaml.safe_load((ACTION.parent / ".pre-commit-hooks.yaml").read_text())
    assert hook.keys() >= {"id", "name", "entry", "language"}
    (config,) = (flow for block in blocks("yaml") for flow in yaml.safe_load(block.text).get("repos", []))
    (used,) = config["hooks"]
    assert used["id"] == hook["id"]
    python, *words = shlex.split(hook["entry"])
    assert [python, *words[:2]] == ["python", "-m", "pytest"]
    assert pytester.parseconfig(*words[2:], *used["args"]).option.gitbench
