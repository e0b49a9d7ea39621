"""Files that options name belong to the identity of what is measured: with another content it is another case."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.core.spec import KINDS, Kind, Part
from gitbench.identity import files
from gitbench.identity.files import digest_of_files


def digest(value: object, *, kind: Kind = "dataset", key: str = "path") -> str:
    return digest_of_files(kind, Part("mine", ((key, value),)))


def write(path: Path, text: str = "1") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "wrapped",
    [lambda path: path, Path, lambda path: [path], lambda path: {"a": (1, path)}, lambda path: {path, "x"}],
    ids=["plain", "path", "list", "dict", "set"],
)
def test_a_file_counts_by_its_content(tmp_path: Path, kind: Kind, wrapped: Callable[[str], object]) -> None:
    path = write(tmp_path / "a.npz")
    before = digest(wrapped(path), kind=kind)
    assert before
    os.utime(path, (1, 1))
    assert digest(wrapped(path), kind=kind) == before
    write(tmp_path / "a.npz", "2")
    assert digest(wrapped(path), kind=kind) != before
    assert digest(wrapped(write(tmp_path / "elsewhere" / "b.npz")), kind=kind) == before


def test_a_large_file_counts_by_its_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE", 10)
    path = write(tmp_path / "a.npz", "1" * 11)
    os.utime(path, (1, 1))
    before = digest(path)
    write(tmp_path / "a.npz", "2" * 11)
    os.utime(path, (1, 1))
    assert digest(path) == before  # it was not read
    os.utime(path, (2, 2))
    assert digest(path) != before


def test_a_folder_counts_by_names_and_contents_three_folders_deep(tmp_path: Path) -> None:
    write(tmp_path / "images" / "train" / "cat" / "1.png")
    seen = [digest(str(tmp_path / "images"))]
    write(tmp_path / "images" / "test" / "cat" / "1.png")
    seen.append(digest(str(tmp_path / "images")))
    write(tmp_path / "images" / "test" / "cat" / "1.png", "2")
    files._listing.cache_clear()  # as in the next process: the folder does not tell
    seen.append(digest(str(tmp_path / "images")))
    assert "" not in seen
    assert len(set(seen)) == 3
    write(tmp_path / "images" / "test" / "cat" / "deeper" / "1.png")
    assert digest(str(tmp_path / "images")) == seen[-1]


def test_what_a_run_writes_into_a_folder_does_not_count(tmp_path: Path) -> None:
    write(tmp_path / "train" / "1.png")
    before = digest(str(tmp_path))
    write(tmp_path / ".gitbench" / "cases" / "1.json")
    write(tmp_path / ".hidden")
    files._listing.cache_clear()
    assert digest(str(tmp_path)) == before


def test_a_list_that_holds_itself_ends() -> None:
    value: list[object] = []
    value.append(value)
    assert digest(value) == ""


def test_the_root_of_many_data_sets_and_a_word_that_is_also_a_folder_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "train" / "1.png")
    monkeypatch.chdir(tmp_path)
    assert digest("train", key="root") == ""
    assert digest("train", key="mode", kind="model") == ""


@pytest.mark.parametrize("value", ["", "missing.npz", "~nobody/x.npz", "a" * 5000, "\0", 3, None, float("nan"), "/dev/zero", "/proc/kmsg"])
def test_what_is_no_file_is_nobodys_problem_here(value: object) -> None:
    assert digest(value, kind="attack") in ("", digest("/proc/kmsg", kind="attack"))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert digest(str(tmp_path / "pipe")) == ""


def test_a_file_that_cannot_be_read_is_left_to_who_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.npz")

    def refused(*_: object) -> None:
        raise PermissionError(13, "not yours", path)

    monkeypatch.setattr(Path, "open", refused)  # the mode of a file does not stop root
    assert digest(path) == ""


@given(st.text(max_size=40))
def test_any_text_is_taken(text: str) -> None:
    found = digest(text, kind="attack")
    assert found == "" or (len(found) == 16 and Path(text).expanduser().is_file())
