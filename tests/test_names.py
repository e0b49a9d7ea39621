"""Where names lead: entry points, files, modules, and the names that modules of gitbench had formerly."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from gitbench.core.errors import SpecError
from gitbench.core.spec import parse_spec
from gitbench.identity import names
from gitbench.identity.loading import check_spec
from helpers import write


def test_check_refuses_a_path_that_is_too_long() -> None:
    with pytest.raises(SpecError, match="does not exist"):
        check_spec(parse_spec("defense", f"{'x' * 300}.py:Mine"))


def test_check_does_not_import_the_package_of_a_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "gitbench_test_loud" / "__init__.py", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="cannot be found"):
        check_spec(parse_spec("defense", "gitbench_test_loud.missing:Mine"))


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*values: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint("mine", value, "gitbench.defenses") for value in values]

    monkeypatch.setattr(metadata, "entry_points", lambda group: points("a:A", "b:B"))
    read = names._installed.__wrapped__  # the cache keeps what is really installed
    with pytest.raises(SpecError, match=r"Two packages register the defense 'mine': a:A and b:B\. Uninstall one"):
        read("defense")
    monkeypatch.setattr(metadata, "entry_points", lambda group: points("a:A", "a:A"))
    assert read("defense") == {"mine": "a:A"}
