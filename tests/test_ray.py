"""Cells on a real Ray cluster of several nodes: whatever is killed, all of them are measured, and as in one process."""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from gitbench.core.errors import ConfigError
from gitbench.run.config import make_config
from gitbench.run.matrix import make_cells
from gitbench.run.ray_cluster import GIB, needs_of, runtime_env
from helpers import run_matrix, write

CELLS = 12


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """benchmarks/cluster.py, of which the test below is a tiny run."""
    path = Path(__file__).parents[1] / "benchmarks" / "cluster.py"
    spec = importlib.util.spec_from_file_location("cluster_benchmark", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["cluster_benchmark"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    del sys.modules["cluster_benchmark"]
    return module


@pytest.mark.slow
def test_processes_and_nodes_may_be_killed(tmp_path: Path, benchmark: ModuleType, warm: None) -> None:
    pytest.importorskip("ray")
    logs = benchmark.write_project(tmp_path, defenses=CELLS // 4)
    killed = benchmark.killed_run(tmp_path, logs, workers=2, kills=("process", "node"), cells=CELLS, seed=0)
    output = (tmp_path / "on-cluster.txt").read_text()
    assert killed == ["process", "node"], output
    runs = Counter(cell for _, cell in logs.lines("measured"))
    assert len(runs) == CELLS + 1, output  # the cells, and what one attack learned
    assert sum(runs.values()) - len(runs) <= 2  # what was in flight at a kill
    benchmark.seconds_of_a_cell(tmp_path, "local", None)
    assert benchmark.differences(tmp_path / "local", tmp_path / "on-cluster") == []


# What the scheduler is told, and what travels


def test_a_cell_asks_for_its_threads_its_memory_and_a_gpu_where_it_computes_on_one() -> None:
    config = make_config({}, {"threads": "2", "memory": "1.5", "gpus": "0.25"})
    assert needs_of(config, device="cpu") == {"num_cpus": 2, "memory": 1.5 * GIB}
    assert needs_of(config, device="cuda") == {"num_cpus": 2, "memory": 1.5 * GIB, "num_gpus": 0.25}


@pytest.mark.parametrize(
    ("options", "travels"),
    [
        ({"defense": "none"}, False),
        ({"defense": "mine.py:Mine"}, True),
        ({"defense": "ABSOLUTE/mine.py:Mine"}, False),
        ({"defense": "beside:Mine"}, True),
        ({"dataset": "npz(path='tiny.npz')"}, True),
        ({"dataset": "npz(path='ABSOLUTE/tiny.npz')"}, False),
    ],
)
def test_the_folder_travels_where_a_cell_names_code_or_files_in_it(
    options: dict[str, str], travels: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("mine.py", "beside.py"):
        write(tmp_path / name, "import gitbench\nclass Mine(gitbench.Defense): pass\n")
    write(tmp_path / "tiny.npz", "")
    given = {name: text.replace("ABSOLUTE", str(tmp_path)) for name, text in options.items()}
    config = make_config(
        {}, {"attack": "ridge", "model": "mlp", "defense": "none", "results": "out/results", "leaderboard": "/elsewhere", **given}
    )
    found = runtime_env(config, make_cells(config))
    assert bool(found) == travels
    if travels:
        assert found["working_dir"] == str(tmp_path)
        assert "/out/results" in found["excludes"]
        assert ".git" in found["excludes"]
        assert not [path for path in found["excludes"] if "elsewhere" in path]


# What is refused


def test_without_ray_the_error_says_how_to_install_it(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    from gitbench.run import ray_cluster

    monkeypatch.setattr(ray_cluster.importlib.util, "find_spec", lambda name: None)
    result = run_matrix(bench, "--gitbench-executor", "ray")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*needs Ray, which is not installed: pip install 'gitbench[[]ray[]]'*"])


@pytest.mark.parametrize("option", ["-n2", "--tx=2*popen"])
def test_two_ways_to_run_cells_in_parallel_are_refused(bench: pytest.Pytester, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pytest_gitbench import options

    config = make_config({}, {"executor": "ray"})
    monkeypatch.setattr("gitbench.run.ray_cluster.require_ray", lambda: None)
    with pytest.raises(ConfigError, match="take -n away"):
        options.check_executor(bench.parseconfig("--gitbench", option), config)


def test_an_address_that_nobody_answers_at_is_a_usage_error_at_once(bench: pytest.Pytester) -> None:
    pytest.importorskip("ray")
    result = run_matrix(bench, "--gitbench-executor", "ray=127.0.0.1:1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*Cannot use the Ray cluster at 127.0.0.1:1: 127.0.0.1, port 1: *refused*docs/cluster.md*"])


@pytest.mark.parametrize("value", ["ray=", "ray= ", "slurm", "local=2", ""])
def test_an_executor_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"The option executor is .*expected local, ray or ray=ADDRESS"):
        make_config({}, {"executor": value})
