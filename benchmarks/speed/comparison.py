"""Two implementations measured in turn, each in a process of its own."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.speed.networks import network, products

WORKER = Path(__file__).with_name("worker.py")
FIRST = 3  # iterations of the first measurement, which is forgotten: it tells how many fit
PASSES = 7
"""Products of matrices in one iteration, where a forward pass counts as one: forwards, back to the images, and by the weights; and on the
way back through these three one, one and two."""


class Worker:
    """A process that attacks when it is asked to."""

    def __init__(self, implementation: str, python: Path | str, threads: int) -> None:
        command = [str(python), str(WORKER), implementation, str(threads)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def ask(self, **request: object) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args} ended with {self._process.wait()}. Run it by hand to see why.")
        found: dict[str, Any] = json.loads(line)
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@dataclass(frozen=True)
class Measured:
    """One implementation at one point.

    Args:
        rates: image-iterations a second, of each round.
        peak_mib: of the process.
        losses: cosine distances that were reached last, of each victim.
        torch: its version.
    """

    rates: tuple[float, ...]
    peak_mib: float
    losses: tuple[float, ...]
    torch: str

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


@dataclass(frozen=True)
class Point:
    """A network and a number of victims.

    Args:
        network: its name.
        victims: how many.
        ours: of gitbench.
        theirs: of breaching; None where it was not measured.
        floor: image-iterations a second if products of matrices were all, and ran at the rate of large ones.
    """

    network: str
    victims: int
    ours: Measured
    theirs: Measured | None
    floor: float

    @property
    def ratios(self) -> list[float]:
        """How many times faster, of each round."""
        return [] if self.theirs is None else [mine / other for mine, other in zip(self.ours.rates, self.theirs.rates, strict=True)]


def compare(name: str, victims: int, *, peer: Path | str | None, threads: int, rounds: int, seconds: float, limit: float) -> Point | None:
    """Measure one point; None where one iteration of all victims would take longer than the limit.

    breaching takes one image after the other, and as many of the victims as fit into the time.
    """
    with Worker("gitbench", sys.executable, threads) as mine:
        rate = mine.ask()["rate"]
        if _seconds_each(mine, name, 1) * victims > limit:
            return None
        floor = rate / (2 * PASSES * products(network(name)))
        if peer is None:
            return Point(name, victims, _measured(_in_turn([(mine, victims)], name, rounds, seconds)[0]), None, floor)
        with Worker("breaching", peer, threads) as other:
            alone = _seconds_each(other, name, 1)
            many = max(1, min(victims, int(seconds / (10 * alone))))
            ours, theirs = _in_turn([(mine, victims), (other, many)], name, rounds, seconds)
    return Point(name, victims, _measured(ours), _measured(theirs), floor)


def _in_turn(workers: Sequence[tuple[Worker, int]], name: str, rounds: int, seconds: float) -> list[list[dict[str, Any]]]:
    """The answers of each worker: A B A B."""
    fitting = [max(1, int(seconds / _seconds_each(worker, name, victims))) for worker, victims in workers]
    found: list[list[dict[str, Any]]] = [[] for _ in workers]
    for _ in range(rounds):
        for (worker, victims), iterations, answers in zip(workers, fitting, found, strict=True):
            answers.append(worker.ask(network=name, victims=victims, iterations=iterations))
    return found


def _seconds_each(worker: Worker, name: str, victims: int) -> float:
    """Of one iteration of all victims."""
    worker.ask(network=name, victims=victims, iterations=1)
    found = worker.ask(network=name, victims=victims, iterations=FIRST)
    return float(found["seconds"]) / FIRST


def _measured(answers: Sequence[dict[str, Any]]) -> Measured:
    last = answers[-1]
    rates = tuple(answer["made"] / answer["seconds"] for answer in answers)
    return Measured(rates, last["peak_mib"], tuple(last["losses"]), last["torch"])
