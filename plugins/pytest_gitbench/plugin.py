"""Hooks and options. Nothing heavy is imported here: pytest loads this file at every start."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_gitbench.fixture import Measurer

PREFIX = "gitbench_"
# Option, argument shown, help. Defaults come from the profile and [tool.gitbench], so all are None here.
_VALUES = (
    ("suite", "NAME", "Run a published table's setting, or PATH.toml, and print its figures beside ours (docs/suites.md)"),
    ("profile", "NAME", "Sizes and budgets: quick (default), standard or paper"),
    ("seeds", "N", "Seeds per cell; intervals are over victims and seeds"),
    ("victims", "N", "Private batches attacked per cell and seed; auto adds victims until the verdict is decided"),
    ("device", "auto|cpu|cuda", "Where to compute (default: auto)"),
    ("threads", "N", "CPU threads per process (default: 1; more processes, -n, pay better than more threads)"),
    ("executor", "local|ray[=ADDRESS]", "Where cells are measured: on this machine, or on a Ray cluster (default: local)"),
    ("memory", "GIB", "Of a cell on a cluster, for Ray's scheduler (default: 2)"),
    ("gpus", "N", "Of a cell on a cluster with GPUs; 0.25 lets four share one (default: 1)"),
    ("timeout", "SECONDS", "Per case; past it the cell is inconclusive (default: 900 in the profile quick, else none)"),
    ("threat", "NAME", "What the attacker is granted: server (default), eavesdropper or upper-bound"),
    ("results", "DIR", "Where results and trained attack models are kept (default: .gitbench)"),
    ("leaderboard", "DIR", "Where the Markdown goes (default: leaderboards); none writes nothing"),
    ("report", "DIR", "Write one self-contained HTML page, index.html, into this folder (default: none)"),
    ("cost", "yes|no", "Train under each defense and say what accuracy it costs (default: yes in the built-in matrix)"),
    ("baseline", "PATH", "Fail where leakage got worse than in this results folder, or file of gitbench baseline"),
    ("tolerance", "DB", "How much worse than the baseline is accepted, in dB (default: 0.5); other metrics in proportion"),
)
_LISTS = (
    ("attack", "SPEC", "Attack, for example ig(iterations=1000) or ridge+ig; repeatable, replaces that axis"),
    ("defense", "SPEC", "Defense, for example path/to/mine.py:Mine(scale=0.1); repeatable, replaces that axis"),
    ("model", "SPEC", "Model under attack, for example lenet; repeatable, replaces that axis"),
    ("dataset", "SPEC", "Dataset, for example npz(path='x.npz'); repeatable, replaces that axis"),
    ("client", "SPEC", "How clients make their updates, for example fedavg(steps=5) (default: fedsgd); repeatable, replaces that axis"),
    ("batch-size", "N", "Inputs of each client; repeatable, replaces that axis"),
    ("rounds", "N", "Updates of the same victims that the attacker sees (default: 1); repeatable, replaces that axis"),
    (
        "threshold",
        "METRIC=VALUE",
        "What fails a cell: leakage (default: psnr_gain=3), accuracy_drop=PERCENT; repeatable, replaces the gate",
    ),
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gitbench", "gitbench: defenses against gradient inversion")
    group.addoption("--gitbench", action="store_true", default=False, help="Run the benchmark, and only it")
    for option, metavar, text in _LISTS:
        group.addoption(f"--gitbench-{option}", action="append", default=None, metavar=metavar, help=text)
    for option, metavar, text in _VALUES:
        group.addoption(f"--gitbench-{option}", default=None, metavar=metavar, help=text)
    group.addoption("--gitbench-fresh", action="store_true", default=None, help="Measure again what is stored already")


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_gitbench import hooks

    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "gitbench(attacks, models, dataset, victims, ...): what the gitbench_evaluate fixture measures in this test.",
    )
    if config.option.help or config.option.version:
        return
    if config.hook.pytest_gitbench_register.get_hookimpls():
        from pytest_gitbench.extensions import registered

        registered(config)
    if getattr(config.option, "gitbench_started", None) is None:
        config.option.gitbench_started = time.time()  # carried to the workers of xdist: one moment for all of them
    for option in ("defense", "baseline", "report", "suite", "executor"):
        if not config.option.gitbench and getattr(config.option, f"gitbench_{option}") is not None:
            raise pytest.UsageError(f"--gitbench-{option} does nothing without --gitbench: add it, or take the option away.")
    if config.option.gitbench:
        from pytest_gitbench.session import GitbenchSession

        config.pluginmanager.register(GitbenchSession(config), "gitbench-session")


@pytest.fixture
def gitbench_evaluate(request: pytest.FixtureRequest) -> Measurer:
    """Measure a defense against the attacks and models of the ``gitbench`` marker; returns a report.

    ``report.verdict`` is ``holds``, ``leaks`` or ``inconclusive``; printed, the report is the matrix.
    """
    from pytest_gitbench.fixture import Measurer

    return Measurer(request)
