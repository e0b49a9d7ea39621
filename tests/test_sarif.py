"""Leaks as SARIF: where they stand in the code, and that the log has the structure of SARIF 2.1.0."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from gitbench.cli import main
from gitbench.publish.report.build import build_report
from gitbench.publish.report.cells import NOT_MEASURED
from gitbench.publish.report.sarif import repository_of, sarif
from gitbench.store.folder import Store
from report_pages import cell, kept, usual_results
from results import LEAKING, SAFE, table

TEXT = {"type": "string", "minLength": 1}


def strict(required: str, optional: str = "", **properties: object) -> dict:
    assert {*required.split(), *optional.split()} == {name.strip("_") for name in properties}
    found = {name.strip("_"): value for name, value in properties.items()}
    return {"type": "object", "properties": found, "required": required.split(), "additionalProperties": False}


def many(items: dict, **more: object) -> dict:
    return {"type": "array", "items": items, **more}


MESSAGE = strict("text", text=TEXT)
LEVEL = {"enum": ["none", "note", "warning", "error"]}
RULE = strict(
    "id name shortDescription fullDescription help defaultConfiguration properties",
    id=TEXT, name=TEXT, shortDescription=MESSAGE, fullDescription=MESSAGE, help=MESSAGE,
    defaultConfiguration=strict("level", level=LEVEL), properties={"type": "object"},
)  # fmt: skip
PLACE = strict(
    "artifactLocation region",
    artifactLocation=strict("uri uriBaseId", uri={**TEXT, "format": "uri-reference", "not": {"pattern": "^/"}}, uriBaseId=TEXT),
    region=strict("startLine", startLine={"type": "integer", "minimum": 1}),
)
RESULT = strict(
    "ruleId ruleIndex level message locations partialFingerprints properties",
    ruleId=TEXT, ruleIndex={"type": "integer", "minimum": 0}, level=LEVEL, message=MESSAGE,
    locations=many(strict("physicalLocation", physicalLocation=PLACE), minItems=1),
    partialFingerprints={"type": "object", "additionalProperties": TEXT}, properties={"type": "object"},
)  # fmt: skip
INVOCATION = strict(
    "executionSuccessful toolExecutionNotifications",
    executionSuccessful={"type": "boolean"},
    toolExecutionNotifications=many(strict("level message", level=LEVEL, message=MESSAGE)),
)
RUN = strict(
    "tool automationDetails invocations results columnKind",
    tool=strict("driver", driver=strict("name version rules", name=TEXT, version=TEXT, rules=many(RULE, uniqueItems=True))),
    automationDetails=strict("id", id=TEXT), invocations=many(INVOCATION, minItems=1), results=many(RESULT),
    columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
)  # fmt: skip
LOG = strict("$schema version runs", **{"$schema": TEXT}, version={"const": "2.1.0"}, runs=many(RUN, minItems=1))
"""What of SARIF 2.1.0 is written, by its specification (section 3), and nothing else: the official schema allows all of it."""


def written(folder: Path, results: Path, *options: str) -> dict:
    path = folder / "leaks.sarif"
    assert main(["report", str(results), "--sarif", str(path), *options]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.validate(found, LOG)
    (run,) = found["runs"]
    for result in run["results"]:
        assert run["tool"]["driver"]["rules"][result["ruleIndex"]]["id"] == result["ruleId"]
    return run


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / ".git").mkdir()
    folder = tmp_path / "sub dir"
    folder.mkdir()
    (folder / "mine.py").write_text("import gitbench\n\n\nclass Other: ...\n\n\nclass Mine(gitbench.Defense):\n    pass\n")
    (folder / "broken.py").write_text("class Mine(:\n")
    monkeypatch.chdir(folder)
    return tmp_path


def test_each_leaking_cell_is_a_result_of_its_attacks_rule(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = kept(Store(repository / "results"), usual_results()).root
    run = written(repository, results)
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["leaks/ig", "leaks/ridge"]
    assert len(run["results"]) == 4  # one defense of two leaks, to two attacks in two settings; controls are no findings
    assert len({result["partialFingerprints"]["gitbenchCell/v1"] for result in run["results"]}) == 4
    first = run["results"][0]
    assert "pruning(rate=0.5)" in first["message"]["text"]
    assert "What next: " in first["message"]["text"]
    assert first["properties"]["low"] <= first["properties"]["mean"] <= first["properties"]["high"]
    assert run["invocations"] == [{"executionSuccessful": True, "toolExecutionNotifications": []}]
    told = capsys.readouterr().out
    assert "leaks" in told.splitlines()[0]
    assert not Path("gitbench-report").exists()
    written(repository, results, "--out", "page")
    assert Path("page/index.html").is_file()


@pytest.mark.parametrize(
    ("defense", "place"),
    [
        ("mine.py:Mine(scale=0.1)", ("sub%20dir/mine.py", 7)),
        ("pruning(rate=0.5) | ./mine.py:Other", ("sub%20dir/mine.py", 4)),
        ("mine.py:elsewhere", ("sub%20dir/mine.py", 1)),
        ("broken.py:Mine", ("sub%20dir/broken.py", 1)),
        ("pruning(rate=0.5)", ("pyproject.toml", 1)),  # installed, not of this repository
        ("gone.py:Mine", ("pyproject.toml", 1)),
        ("no_such_package.defenses:Mine", ("pyproject.toml", 1)),
    ],
)
def test_a_leak_stands_where_its_defense_does(repository: Path, defense: str, place: tuple[str, int]) -> None:
    found = [cell(LEAKING, attack="ridge+ig"), cell(LEAKING, attack="ridge+ig", defense=defense)]
    (result,) = written(repository, kept(Store(repository / "results"), found).root)["results"]
    where = result["locations"][0]["physicalLocation"]
    assert (where["artifactLocation"]["uri"], where["region"]["startLine"]) == place
    assert result["ruleId"] == "leaks/ridge+ig"


def test_a_file_outside_of_the_repository_is_not_named(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    outside = tmp_path_factory.mktemp("outside") / "mine.py"
    outside.write_text("class Mine: ...\n")
    data = build_report([table({("none", "ig"): [cell()], ("mine", "ig"): [cell(defense="mine")]})], store=Store(repository)).data
    specs = {seed.case_id: f"{outside}:Mine" for one in data.cells for seed in one.seeds}
    (result,) = sarif(data, specs, root=repository)["runs"][0]["results"]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "pyproject.toml"
    assert str(outside.parent) not in json.dumps(result)


def test_what_was_not_judged_is_told_and_is_no_leak(repository: Path) -> None:
    safe = cell(SAFE, defense="a")
    results = {("none", "ig"): [cell()], ("none", "lti"): [cell(attack="lti")], ("a", "ig"): [safe]}
    missing = build_report([table(results, errors={("a", "lti"): NOT_MEASURED})], store=Store(repository)).data
    (run,) = sarif(missing, {}, root=repository)["runs"]
    assert run["results"] == []
    (told,) = run["invocations"][0]["toolExecutionNotifications"]
    assert told["level"] == "warning"
    assert "not tested" in told["message"]["text"]
    broken = build_report([table(results, errors={("a", "lti"): "it raised"})], store=Store(repository)).data
    (invocation,) = sarif(broken, {}, root=repository)["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["level"] == "error"


def test_without_a_repository_paths_are_of_the_folder(tmp_path: Path) -> None:
    assert repository_of(tmp_path) in (tmp_path.resolve(), *tmp_path.resolve().parents)
    (tmp_path / ".git").write_text("gitdir: elsewhere\n")  # a worktree has a file
    (tmp_path / "a").mkdir()
    assert repository_of(tmp_path / "a") == tmp_path.resolve()


def test_the_data_and_the_leaks_in_one_go(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = kept(Store(repository / "results"), usual_results()).root
    assert written(repository, results, "--json")["results"]
    assert json.loads(capsys.readouterr().out)["standing"] == "leaks"
