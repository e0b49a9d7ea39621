"""What is not measuring: collecting a large matrix, its leaderboards, and a run whose cells are all stored.

python -m benchmarks.collection [--cells 1000 10000] [--results DIR]

A matrix of N cells is ten attacks, N / 100 defenses and ten models. Printed are seconds of CPU time (user and system: a machine that is
busy with something else counts less in them than on the clock), seconds on the clock and the peak of the process's memory. Stored
results are made up of one that is measured. With --results the cached run is that of the built-in matrix, of which a folder holds all
results already (a copy is used).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import gitbench
from gitbench.run.config import make_config
from gitbench.run.matrix import make_cells
from gitbench.store.folder import Store
from gitbench.store.result import Result

ATTACKS = ("ig", "dlg", "gias", "git", "lti", "recursion", "ridge", "auto", "ridge(limit=64)", "ridge(limit=65)")
MODELS = ("lenet", "mlp", *(f"mlp(hidden=({width},))" for width in range(64, 72)))
CHEAP = {
    "attack": [f"ridge(limit={limit})" for limit in range(64, 70)],
    "defense": ["none", *(f"pruning(rate={rate / 20})" for rate in range(1, 12))],
    "model": ["mlp"],
}


def axes_of(cells: int) -> dict[str, Sequence[str]]:
    defenses = ["none", *(f"pruning(rate={rate / 1000})" for rate in range(1, max(1, cells // 100)))]
    return {"attack": ATTACKS, "defense": defenses, "model": MODELS}


def options(axes: dict[str, Sequence[str]]) -> list[str]:
    return [f"--gitbench-{axis}={spec}" for axis, specs in axes.items() for spec in specs]


def timed(what: str, arguments: Sequence[str], folder: Path) -> None:
    """Run Python with these arguments, and print what it took."""
    started = time.perf_counter()
    with (folder / "output.txt").open("w") as output:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, stdout=output, stderr=output, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{what}: exit status {process.returncode}\n{(folder / 'output.txt').read_text()[-2000:]}")
    seconds, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    print(f"{what:40} {seconds:6.2f} s of CPU time {time.perf_counter() - started:6.2f} s on the clock {peak:6.0f} MiB", flush=True)


def write_results(axes: dict[str, Sequence[str]], store: Store) -> None:
    """Results of a whole matrix: one that was measured, copied to all cells with other numbers."""
    config = make_config({}, axes)
    real = gitbench.evaluate(attack="ridge(limit=64)", model="mlp", profile="quick", victims=config.victims, device="cpu")
    draw = random.Random(0)
    (store.root / "cases").mkdir(parents=True)
    for cell in make_cells(config):
        for case in cell.cases:
            path = store.case_path(case.case_id)
            path.write_text(moved(real, draw).model_copy(update={"case": case, "case_id": case.case_id}).to_json())


def write_apart(axes: dict[str, Sequence[str]], store: Store) -> None:
    """In a process of its own: the system counts what this one holds at a start to the peak of what it starts."""
    writing = multiprocessing.get_context("spawn").Process(target=write_results, args=(axes, store))
    writing.start()
    writing.join()
    if writing.exitcode:
        sys.exit("the results could not be written")


def moved(real: Result, draw: random.Random) -> Result:
    found = {}
    for name, measure in real.metrics.items():
        values = tuple(None if value is None else value + draw.gauss(0, 0.01) for value in measure.values)
        found[name] = measure.model_copy(update={"values": values})
    return real.model_copy(update={"metrics": found})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[1000, 10_000])
    parser.add_argument("--results", type=Path, help="a folder that holds all results of the built-in matrix")
    given = parser.parse_args()
    pytest = ["-m", "pytest", "--gitbench", "-p", "no:cacheprovider"]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "pytest.ini").write_text("[pytest]\n")
        for cells in given.cells:
            timed(f"collecting {cells:,} cells", [*pytest, "--collect-only", "-q", *options(axes_of(cells))], folder)
        for cells in given.cells:
            write_apart(axes_of(cells), Store(folder / f"results-{cells}"))
            board = "from gitbench.cli import main; raise SystemExit(main())"
            arguments = ["-c", board, "leaderboard", f"results-{cells}", "--out", f"boards-{cells}"]
            timed(f"leaderboards of {cells:,} results", arguments, folder)
        run = [*pytest, "--gitbench-results=stored", "--gitbench-leaderboard=boards", "--gitbench-device=cpu"]
        if given.results:
            shutil.copytree(given.results, folder / "stored")
        else:
            write_apart(CHEAP, Store(folder / "stored"))
            run += options(CHEAP)
            subprocess.run([sys.executable, *run], cwd=folder, capture_output=True, check=False)  # writes their verdicts
        timed("a run whose cells are all stored", ["-c", f"import pytest; raise SystemExit(pytest.main({run[2:]!r}) > 1)"], folder)


if __name__ == "__main__":
    main()
