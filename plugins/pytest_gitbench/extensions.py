"""What other plugins add through the hooks, checked: a mistake of theirs is a message that names the hook."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

import pytest

from gitbench.core.errors import ConfigError, GitbenchError
from gitbench.identity.names import register
from gitbench.run.config import Config
from gitbench.run.matrix import Cell
from gitbench.store.result import Result
from pytest_gitbench.report import Row

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")


REGISTERED = pytest.StashKey[list[tuple[str, str, str]]]()
"""Kind, name and target of what was registered for this run: the workers of a cluster do so too."""


def registered(config: pytest.Config) -> None:
    """Register what ``pytest_gitbench_register`` returns, until the end of this run.

    Raises:
        pytest.UsageError: no such kind, a name that is taken or no name, or a target that is none.
    """
    expected = "{kind: {name: 'module:Name'}}"
    try:
        for found in _answers(config.hook.pytest_gitbench_register(config=config)):
            for names in _mapping("register", found, expected).values():
                _mapping("register", names, expected)
            config.add_cleanup(register(found))
            added = config.stash.setdefault(REGISTERED, [])
            added += [(kind, name, target) for kind, names in found.items() for name, target in names.items()]
    except GitbenchError as error:
        raise pytest.UsageError(f"gitbench: {error}") from None


def shaped(config: pytest.Config, options: Config, cells: Sequence[Cell]) -> list[Cell]:
    """The matrix after ``pytest_gitbench_matrix``.

    Raises:
        ConfigError: something else than cells is in it, or two of them have one name.
    """
    changed = list(cells)
    config.hook.pytest_gitbench_matrix(config=config, options=options, cells=changed)
    for cell in changed:
        if not isinstance(cell, Cell):
            raise ConfigError(f"A pytest_gitbench_matrix hook put {cell!r} into the matrix. Build cells with gitbench.make_cell.")
    twice = [name for name, count in Counter(cell.name for cell in changed).items() if count > 1]
    if twice:
        raise ConfigError(f"A pytest_gitbench_matrix hook put the cell {twice[0]} into the matrix twice. Drop one of them.")
    return changed


def added_columns(config: pytest.Config, results: Sequence[Result]) -> dict[Row, dict[str, str]]:
    """What ``pytest_gitbench_columns`` adds to each row that has results."""
    rows: dict[Row, list[Result]] = {}
    for result in results:
        labels = result.case.labels
        rows.setdefault((labels.setting, labels.defense), []).append(result)
    found: dict[Row, dict[str, str]] = {}
    for row, its in rows.items():
        setting, defense = row
        answers = config.hook.pytest_gitbench_columns(
            config=config, dataset=setting.dataset, model=setting.model, defense=defense, results=tuple(its)
        )
        for answer in _answers(answers):
            added = _mapping("columns", answer, "{heading: text}")
            found.setdefault(row, {}).update({_one_line(heading): _one_line(text) for heading, text in added.items()})
    return found


def added_lines(config: pytest.Config, results: Sequence[Result]) -> list[str]:
    """The lines that ``pytest_gitbench_summary`` adds."""
    lines: list[str] = []
    for answer in _answers(config.hook.pytest_gitbench_summary(config=config, results=tuple(results))):
        if isinstance(answer, str):
            raise ConfigError(f"A pytest_gitbench_summary hook returned the text {answer!r}, expected a list of lines.")
        lines += [_one_line(line) for line in answer]
    return lines


def _answers(answers: Sequence[T | None]) -> list[T]:
    """Of the plugins in the order in which they were registered; pluggy calls the last one first."""
    return [answer for answer in reversed(answers) if answer is not None]


def _mapping(hook: str, answer: Mapping[K, V], expected: str) -> Mapping[K, V]:
    if not isinstance(answer, Mapping):
        raise ConfigError(f"A pytest_gitbench_{hook} hook returned {answer!r}, expected {expected}.")
    return answer


def _one_line(text: object) -> str:
    return " ".join(str(text).split())
