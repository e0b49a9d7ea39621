"""A matrix on a Ray cluster of this machine: workers are killed while it runs, and the result is compared with a run of one process.

python -m benchmarks.cluster [--defenses 50] [--workers 4] [--kill process node process run] [--seed 0]

Four attacks, one of which learns something for all of its cells, on so many defenses. Each worker is a node of its own with one CPU. At
random moments a process that is measuring is killed, or a whole node (its raylet), or the run itself, which is then started again. At
last the same matrix runs on one worker that nobody kills: what a cell takes there beyond the seconds that the worker works for it is what
the cluster costs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

ATTACKS = """
import os
import time
from pathlib import Path
import torch
import gitbench

class Cheap(gitbench.Attack):
    # Guesses at random, and writes down what it did.
    requires = frozenset({"architecture", "defense"})

    def __init__(self, *, which: int = 0):
        self.which = which

    def run(self, observation, state, *, generator, progress):
        cell = f"{type(self).__name__}({self.which}) {observation.defense!r}"
        say("started", cell)
        time.sleep(0.05)
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        found = torch.rand(shape, generator=generator)
        say("measured", cell)
        return found

class Learned(Cheap):
    # Learns one number for all defenses.
    requires = frozenset({"architecture", "defense", "public"})
    fit_uses = frozenset({"architecture", "public"})

    def fit(self, observation, *, generator, progress, checkpoint):
        say("started", "fit")
        time.sleep(1)
        say("measured", "fit")
        return {"bias": torch.rand(1, generator=generator)}

def say(what, cell):
    with (Path(LOGS) / f"{what}.log").open("a") as log:
        log.write(f"{os.getpid()} {cell}\\n")
"""
ALONE = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:xdist", "-q")
CLOCK = ("cost", "finished_at", "environment")
"""Fields of a result that a clock measures or that name the machine; of ``training``, ``seconds``."""


@dataclass
class Logs:
    """What the attacks wrote down: process and cell of each line."""

    folder: Path

    def lines(self, what: str) -> list[tuple[int, str]]:
        path = self.folder / f"{what}.log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [(int(pid), cell) for pid, _, cell in (line.partition(" ") for line in lines)]

    def clear(self) -> None:
        for path in self.folder.glob("*.log"):
            path.unlink()


def write_project(folder: Path, *, defenses: int) -> Logs:
    """A folder with a matrix of four attacks and so many defenses, on images made up."""
    draw = np.random.default_rng(0)
    images = {f"{split}_images": draw.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8) for split, count in (("train", 96), ("test", 24))}
    labels = {f"{split}_labels": draw.integers(0, 4, count) for split, count in (("train", 96), ("test", 24))}
    np.savez(folder / "tiny.npz", **images, **labels)  # type: ignore[arg-type]
    logs = folder / "logs"
    logs.mkdir()
    (folder / "attacks.py").write_text(ATTACKS.replace("LOGS", repr(str(logs))))
    table = {
        "dataset": "npz(path='tiny.npz')",
        "model": ["mlp(hidden=(24,))"],
        "attack": ["attacks.py:Learned", *(f"attacks.py:Cheap(which={which})" for which in range(3))],
        "defense": ["none", *(f"pruning(rate={rate / 100})" for rate in range(1, defenses))],
        "victims": 4,
        "memory": 0.5,
        "leaderboard": "none",
    }
    lines = (f"{name} = {json.dumps(value)}" for name, value in table.items())
    (folder / "pyproject.toml").write_text("\n".join(["[tool.gitbench]", *lines, ""]))
    return Logs(logs)


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[tuple[str, list[Any]]]:
    """A Ray cluster of this machine, one CPU for each node: its address, and the nodes that may die: all but the head."""
    from ray.cluster_utils import Cluster

    small = {"object_store_memory": 80 * 2**20, "memory": 2**30}
    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **small})
    try:
        yield found.address, [found.add_node(num_cpus=1, wait=True, **small) for _ in range(workers - 1)]
    finally:
        found.shutdown()


def start(folder: Path, results: str, *extra: str) -> subprocess.Popen[bytes]:
    """``pytest --gitbench`` in a folder; what it prints is in ``RESULTS.txt``."""
    command = [sys.executable, "-m", "pytest", "--gitbench", f"--gitbench-results={results}", *ALONE, *extra]
    with (folder / f"{results}.txt").open("w") as output:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=environment)


def kill(what: str, nodes: list[Any], logs: Logs, draw: random.Random) -> None:
    """kill -9 one node, or one process that is measuring."""
    if what == "node":
        chosen = nodes.pop(draw.randrange(len(nodes)))
        os.kill(chosen.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        return
    while True:
        done = Counter(logs.lines("measured"))
        busy = sorted({pid for pid, _ in Counter(logs.lines("started")) - done if _is_worker(pid)})
        if busy:
            os.kill(draw.choice(busy), signal.SIGKILL)
            return
        time.sleep(0.005)


def _is_worker(pid: int) -> bool:
    """Whether a process that wrote a line is there still, and a worker of Ray."""
    try:
        return b"ray::" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def killed_run(folder: Path, logs: Logs, *, workers: int, kills: Sequence[str], cells: int, seed: int) -> list[str]:
    """Run the matrix on a cluster; kill what is named, each after a share of the cells that is drawn at random.

    Returns:
        What was killed while the run lasted.
    """
    draw, told = random.Random(seed), []
    moments = sorted(draw.uniform(0.05, 0.8) for _ in kills)
    with cluster(workers) as (address, nodes):
        run = start(folder, "on-cluster", f"--gitbench-executor=ray={address}")
        for what, moment in zip(kills, moments, strict=True):
            while run.poll() is None and len(logs.lines("measured")) < moment * cells:
                time.sleep(0.005)
            if run.poll() is not None:
                break
            told.append(what)
            if what == "run":
                run.kill()
                run.wait()
                run = start(folder, "on-cluster", f"--gitbench-executor=ray={address}")
            else:
                kill(what, nodes, logs, draw)
        run.wait()
    return told


def result_of(path: Path) -> dict[str, Any]:
    """A stored result without what a clock measures or what names the machine."""
    found: dict[str, Any] = {name: value for name, value in json.loads(path.read_text()).items() if name not in CLOCK}
    if found["training"]:
        found["training"].pop("seconds")
    return found


def differences(one: Path, other: Path) -> list[str]:
    """The files of two results folders that are not equal; what a run that was killed had begun to write is none."""
    found = []
    for part, read in (("cases/*.json", result_of), ("pictures/*.png", Path.read_bytes)):
        files = [{path.name: path for path in folder.glob(part) if path.name[0] != "."} for folder in (one, other)]
        found += sorted(files[0].keys() ^ files[1].keys())
        found += [name for name in sorted(files[0].keys() & files[1].keys()) if read(files[0][name]) != read(files[1][name])]
    return found


def seconds_of_a_cell(folder: Path, results: str, address: str | None) -> tuple[float, float]:
    """Of all cells but the first, which pays for the start: on the clock, in the order of a run; and what a worker worked for them."""
    from gitbench.run.bench import Bench
    from gitbench.run.config import make_config
    from gitbench.run.executor import ClusterExecutor
    from gitbench.run.matrix import make_cells
    from gitbench.run.ray_cluster import RayCluster
    from gitbench.store.folder import Store
    from pytest_gitbench.options import read_settings

    worked: list[float] = []

    class Counting(RayCluster):
        def reply(self, task):
            found = super().reply(task)
            worked.append(found.seconds)
            return found

    with contextlib.chdir(folder):
        config = make_config(read_settings(Path("pyproject.toml")), {"executor": f"ray={address}"} if address else {})
        cells, store = make_cells(config), Store(Path(results))
        executor = ClusterExecutor(lambda: Counting(config, cells), store) if address else None
        bench = Bench.of_run(config, started=time.time(), store=store, executor=executor)
        try:
            if executor is not None:
                executor.ask([cell.cases for cell in cells], known=bench.stored, planned=config.looks, gate=config.threshold)
            bench.measure(cells[0].cases[0])
            begun, before = time.perf_counter(), len(worked)
            for cell in cells[1:]:
                bench.measure(cell.cases[0])
            return (time.perf_counter() - begun) / (len(cells) - 1), sum(worked[before:]) / (len(cells) - 1)
        finally:
            if executor is not None:
                executor.close()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--defenses", type=int, default=50)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kill", nargs="*", choices=("process", "node", "run"), default=["process", "node", "process", "run"])
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    cells = 4 * given.defenses
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        logs = write_project(folder, defenses=given.defenses)
        begun = time.perf_counter()
        start(folder, "local").wait()
        local = time.perf_counter() - begun
        logs.clear()
        begun = time.perf_counter()
        kills = killed_run(folder, logs, workers=given.workers, kills=given.kill, cells=cells, seed=given.seed)
        there = time.perf_counter() - begun
        runs = Counter(cell for _, cell in logs.lines("measured"))
        fits = runs.pop("fit", 0)
        found = len(list((folder / "on-cluster" / "cases").glob("*.json")))
        print(f"{cells} cells: {local:.0f} s in one process, {there:.0f} s on {given.workers} workers with the start of the cluster")
        print(f"killed: {', '.join(kills) or 'nothing'}; {found} results")
        print(f"measured more than once: {sum(runs.values()) - len(runs)}, each in flight at a kill")
        print(f"the state that {given.defenses} cells share: learned {fits} time(s)")
        print(f"files that differ from the run in one process: {', '.join(differences(folder / 'local', folder / 'on-cluster')) or 'none'}")
        one, _ = seconds_of_a_cell(folder, "one-process", None)
        with cluster(1) as (address, _):
            worker, worked = seconds_of_a_cell(folder, "one-worker", address)
        print(f"a cell in one process: {1000 * one:.0f} ms")
        print(
            f"a cell on one worker: {1000 * worker:.0f} ms, of which it works {1000 * worked:.0f}: {1000 * (worker - worked):.0f} ms beyond"
        )


if __name__ == "__main__":
    main()
