"""`gitbench init`: what it writes runs as it is, and what is there stays as it is."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from gitbench.cli import main
from gitbench.publish.scaffold import DEFENSE_FILE, OPTIONS_FILE, TEST_FILE

FILES = [DEFENSE_FILE, TEST_FILE, OPTIONS_FILE]
BLOCK = {
    "dataset": "photos",
    "model": ["lenet"],
    "attack": ["ridge", "git"],
    "defense": ["none", "my_defense.py:MyDefense"],
    "victims": 32,
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_writes_a_defense_a_test_and_options_and_says_what_to_do_next(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init"]) == 0
    assert set(snapshot(folder)) == set(FILES)
    assert tomllib.loads((folder / OPTIONS_FILE).read_text())["tool"]["gitbench"] == BLOCK
    told = capsys.readouterr().out
    for name in FILES:
        assert f"wrote {name}\n" in told
    assert "\nnext:\n  pytest --gitbench " in told


def test_a_second_time_changes_nothing_and_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["init"])
    before = snapshot(folder)
    capsys.readouterr()
    assert main(["init"]) == 0
    assert snapshot(folder) == before
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()[:3]] == [f"left alone {name}" for name in FILES]


def test_another_folder_is_made_and_next_begins_with_going_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "new folder"]) == 0
    assert set(snapshot(folder / "new folder")) == set(FILES)
    assert "  cd 'new folder' " in capsys.readouterr().out


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_block_is_appended_to_options_without_one(folder: Path, newline: str, end: str) -> None:
    before = f"[project]{newline}name = 'mine'{newline}[tool.ruff]{newline}line-length = 100{end and newline}".encode()
    (folder / OPTIONS_FILE).write_bytes(before)
    assert main(["init"]) == 0
    after = (folder / OPTIONS_FILE).read_bytes()
    assert after.startswith(before)
    assert after.count(b"\r\n") == (after.count(b"\n") if newline == "\r\n" else 0)
    assert tomllib.loads(after.decode())["tool"] == {"ruff": {"line-length": 100}, "gitbench": BLOCK}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[tool.gitbench]\nvictims = 4\n", "it has a [tool.gitbench] already; for the new defense: pytest --gitbench"),
        ("[tool.gitbench.threshold]\npsnr = 20\n", "it has a [tool.gitbench] already"),
        ("tool = {ruff = {}}\n", "cannot be appended to it"),
    ],
)
def test_options_that_have_a_block_or_cannot_have_one_are_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], text: str, reason: str
) -> None:
    (folder / OPTIONS_FILE).write_text(text)
    assert main(["init"]) == 0
    assert (folder / OPTIONS_FILE).read_text() == text
    assert f"left alone {OPTIONS_FILE}: " in (told := capsys.readouterr().out)
    assert reason in told


@pytest.mark.parametrize("content", [b"[tool", b"\xff\xfe", b"a = 1\na = 2\n"])
def test_damaged_options_are_an_error_and_nothing_is_written(folder: Path, capsys: pytest.CaptureFixture[str], content: bytes) -> None:
    (folder / OPTIONS_FILE).write_bytes(content)
    assert main(["init"]) == 2
    assert snapshot(folder) == {OPTIONS_FILE: content}
    assert "Cannot read pyproject.toml" in capsys.readouterr().err


def test_a_folder_that_is_a_file_is_an_error_that_says_so(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "file").write_text("")
    assert main(["init", "file"]) == 2
    assert "Cannot write to file: " in capsys.readouterr().err


@pytest.fixture
def project(warm: None, pytester: pytest.Pytester, tiny_npz: Path) -> pytest.Pytester:
    """What init wrote, on 8x8 images, without the attack that takes ten seconds a cell."""
    main(["init", str(pytester.path)])
    options = pytester.path / OPTIONS_FILE
    text = options.read_text()
    for before, after in (
        ('dataset = "photos"', f'dataset = "npz(path={str(tiny_npz)!r})"'),
        ('model = ["lenet"]', 'model = ["mlp(hidden=(24,))"]'),
        ('"ridge", "git"', '"ridge"'),
        ("victims = 32", "victims = 16"),
    ):
        assert before in text
        text = text.replace(before, after)
    options.write_text(text)
    return pytester


def test_the_new_project_measures_its_defense_and_its_test_takes_the_same_result(project: pytest.Pytester) -> None:
    project.runpytest_inprocess("--gitbench").assert_outcomes(passed=2)
    cases = sorted((project.path / ".gitbench" / "cases").iterdir())
    project.runpytest_inprocess().assert_outcomes(passed=1)
    assert sorted((project.path / ".gitbench" / "cases").iterdir()) == cases
    (defended,) = (found for path in cases if (found := json.loads(path.read_text()))["case"]["defense"] != "none")
    assert (defended["case"]["defense"], defended["verdict"]) == ("my_defense.py:MyDefense", "holds")


def test_without_its_noise_the_new_defense_leaks_and_its_test_fails(project: pytest.Pytester) -> None:
    path = project.path / DEFENSE_FILE
    path.write_text(path.read_text().replace("noise: float = 0.4", "noise: float = 0.0"))
    result = project.runpytest_inprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*verdict: leaks", "*margin: * dB, the whole interval is past the threshold of 3 dB"])


def test_the_defense_can_be_imported_by_the_projects_tests(project: pytest.Pytester) -> None:
    project.makepyfile(**{"tests/test_import": "from my_defense import MyDefense\ndef test_default(): assert MyDefense().noise == 0.4"})
    project.runpytest_subprocess("tests/test_import.py").assert_outcomes(passed=1)


@pytest.mark.slow
def test_on_the_photographs_the_new_defense_holds_as_it_says(warm: None, pytester: pytest.Pytester) -> None:
    main(["init", str(pytester.path)])
    result = pytester.runpytest_inprocess("--gitbench")  # half a minute: the one test of the strength that the template promises
    result.assert_outcomes(passed=4)
    result.stdout.fnmatch_lines(["my_defense.py:MyDefense *ok holds * ok holds *"])
