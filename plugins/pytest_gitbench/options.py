"""From pytest's configuration to gitbench's: the command line over ``[tool.gitbench]``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from gitbench.core.errors import ConfigError
from gitbench.core.text import printable, shown
from gitbench.run.config import Config, make_config
from gitbench.run.suite_plan import SuitePlan, plan_suite


def read_config(config: pytest.Config, *, costs: bool = False, **overrides: Any) -> Config:
    """The options of this run.

    Args:
        config: pytest's.
        costs: as for :func:`gitbench.run.config.make_config`.
        overrides: options that win over all others.

    Raises:
        ConfigError: something cannot be used.
    """
    return make_config(_settings(config), {**_given(config), **overrides}, costs=costs)


def read_plan(config: pytest.Config) -> SuitePlan | None:
    """The suite of this run; None where it has none.

    Raises:
        ConfigError: something cannot be used.
        SpecError: a SPEC names something unknown.
    """
    return plan_suite(_settings(config), _given(config))


def _given(config: pytest.Config) -> dict[str, Any]:
    """What the command line says."""
    options = {key: getattr(config.option, f"gitbench_{key}", None) for key in Config.model_fields}
    return {key: value for key, value in options.items() if value is not None}


def check_executor(config: pytest.Config, options: Config) -> None:
    """Check that this run can use the executor that it asks for.

    Args:
        config: pytest's.
        options: of the run.

    Raises:
        ConfigError: Ray is not installed, or xdist was asked to do the same.
    """
    if not options.on_cluster:
        return
    from gitbench.run.ray_cluster import require_ray

    require_ray()
    if getattr(config.option, "numprocesses", None) or getattr(config.option, "tx", None):
        raise ConfigError("--gitbench-executor ray does what -n does, on many machines: take -n away, or add -n 0.")


def _settings(config: pytest.Config) -> dict[str, Any]:
    """``[tool.gitbench]`` of the root, or else of the nearest project around the folder that pytest was started in.

    Before it knows of plugins, pytest takes the value of ``--gitbench-results DIR`` for a path to collect from, and moves its root
    towards a DIR that exists outside of the project.
    """
    start = config.invocation_params.dir
    nearest = next((folder for folder in (start, *start.parents) if (folder / "pyproject.toml").is_file()), start)
    return read_settings(config.rootpath / "pyproject.toml") or read_settings(nearest / "pyproject.toml")


def read_settings(path: Path) -> dict[str, Any]:
    """The table ``[tool.gitbench]``, empty where there is none.

    Raises:
        ConfigError: the file is no TOML, or the table is no table.
    """
    try:
        with path.open("rb") as file:
            content = tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError) as error:  # no TOML, no UTF-8, too large a number, nested too deep
        raise ConfigError(f"Cannot read {path}: {printable(str(error))}.") from None
    tool = content.get("tool", {})
    table = tool.get("gitbench", {}) if isinstance(tool, dict) else tool
    if not isinstance(table, dict):
        raise ConfigError(f"Expected [tool.gitbench] in {path} to be a table, got {shown(table)}.")
    return table
