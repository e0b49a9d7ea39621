"""The hooks that other plugins and a root ``conftest.py`` may implement. docs/plugins.md shows each at work.

Mark implementations ``@pytest.hookimpl(optionalhook=True)`` where gitbench may be missing. With xdist every
process calls :func:`pytest_gitbench_register` and :func:`pytest_gitbench_matrix`: the same must come out in all
of them. The other hooks are called in the one process that reports to people.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from gitbench.run.config import Config
    from gitbench.run.matrix import Cell
    from gitbench.store.result import Result


@pytest.hookspec
def pytest_gitbench_register(config: pytest.Config) -> Mapping[str, Mapping[str, str]] | None:
    """Register components for this run. A package does it once and for all by entry points; this is for what is found at run time.

    Recipe::

        def pytest_gitbench_register(config):
            return {"defense": {"mine": "my_package.mine:Mine"}, "attack": {"probe": "tests/probe.py:Probe"}}

    Args:
        config: pytest's.

    Returns:
        Kind (``attack``, ``defense``, ``model``, ``dataset``, ``client``, ``metric``) to names and where they lead:
        ``module:Name`` or ``file.py:Name``. Nothing is imported before it is used. A name that is taken is a usage error.
    """


@pytest.hookspec
def pytest_gitbench_matrix(config: pytest.Config, options: Config, cells: list[Cell]) -> None:
    """Change the matrix before anything is collected: drop, add, reorder cells in place.

    Recipe::

        from gitbench.run.matrix import make_cell

        def pytest_gitbench_matrix(config, options, cells):
            cells[:] = [cell for cell in cells if "mlp" not in cell.name or cell.attack.label != "dlg"]
            cells.append(make_cell(options, dataset="photos", model="lenet", defense="none", attack="ridge+ig"))

    Args:
        config: pytest's.
        options: of this run.
        cells: all of them, controls first. ``cell.name`` is ``dataset/model/defense/attack``; names must stay unique.
    """


@pytest.hookspec
def pytest_gitbench_result(config: pytest.Config, cell: Cell, outcome: str, results: Sequence[Result]) -> None:
    """See each cell when it is finished, whether it was measured now or taken from the results folder.

    Recipe::

        def pytest_gitbench_result(config, cell, outcome, results):
            for result in results:
                log(cell.name, outcome, result.metrics["psnr"].mean)

    Args:
        config: pytest's.
        cell: which.
        outcome: ``passed``, ``failed``, ``skipped`` or ``xfailed``.
        results: one for each seed; none where the cell was not measured (an attack that is granted too little).
    """


@pytest.hookspec
def pytest_gitbench_columns(
    config: pytest.Config, dataset: str, model: str, defense: str, results: Sequence[Result]
) -> Mapping[str, str] | None:
    """Add columns to a row of the matrix, in the terminal and in the leaderboard.

    Recipe::

        def pytest_gitbench_columns(config, dataset, model, defense, results):
            return {"worst ssim": format(max(result.metrics["ssim"].mean for result in results), ".2f")}

    Args:
        config: pytest's.
        dataset: label of the row's dataset.
        model: of its model.
        defense: of its defense; ``none`` is the undefended row.
        results: that ended without an error, of all attacks and seeds of the row; at least one. ``results[0].case`` has client,
            batch size and rounds.

    Returns:
        Heading to text. Rows that lack a heading are left empty there.
    """


@pytest.hookspec
def pytest_gitbench_summary(config: pytest.Config, results: Sequence[Result]) -> Sequence[str] | None:
    """Add lines below the matrix.

    Recipe::

        def pytest_gitbench_summary(config, results):
            return [f"attacked for {sum(result.cost.attack_seconds for result in results):.0f} s"]

    Args:
        config: pytest's.
        results: every result of this run that ended without an error.
    """
