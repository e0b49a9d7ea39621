"""Seconds until 64 CIFAR-10 images are seen: gitbench's attacks beside breaching's ``invertinggradients``, on one undefended LeNet.

python -m benchmarks.speed.quality cifar10.npz [--python ENVIRONMENT_WITH_BREACHING/bin/python] [--iterations 6000] [--victims 64]

The network is ``lenet`` of :mod:`benchmarks.speed.networks`, its weights as they are drawn. Every victim is one image, its label is granted
to all. Seconds are of the processor, on one thread, so that a busy machine changes them little; what an attack learns from public images
first is counted in them. breaching knows no public images: beside its rows stands gitbench's recursion without any.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tabulate

from benchmarks.speed.comparison import Worker
from benchmarks.speed.environment import peer_python

PUBLIC = ("ridge", "recursion", "auto")
ALONE = ("recursion",)


@dataclass(frozen=True)
class Row:
    """What one attack came to.

    Args:
        attack: its SPEC, and what it knew.
        iterations: of each image, where they are given.
        seconds: of the processor, on all images.
        psnr: of each image, in dB.
    """

    attack: str
    iterations: int | None
    seconds: float
    psnr: list[float]

    def cells(self, goal: float) -> list[str]:
        mean = statistics.mean(self.psnr)
        reached = "yes" if mean >= goal else "no"
        shown = "" if self.iterations is None else f"{self.iterations:,}"
        return [f"`{self.attack}`", shown, f"{self.seconds:,.1f}", f"{mean:.1f}", f"{min(self.psnr):.1f}", reached]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.quality", description=__doc__)
    parser.add_argument("data", type=Path, help="an npz file with test_images, test_labels, train_images and train_labels")
    parser.add_argument("--python", type=Path, help="of an environment that has breaching; by default one is made in a cache folder")
    parser.add_argument("--alone", action="store_true", help="measure gitbench alone")
    parser.add_argument("--victims", type=int, default=64)
    parser.add_argument("--iterations", nargs="+", type=int, default=[6000], help="of breaching, for each image")
    parser.add_argument("--goal", type=float, default=20.0, help="mean PSNR in dB")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        images = _victims(options.data, options.victims, Path(folder) / "victims.npz")
        asked = [(attack, True) for attack in PUBLIC] + [(attack, False) for attack in ALONE]
        rows = [_ours(attack, images, options.data if public else None) for attack, public in asked]
        print(_table(rows, options.goal), file=sys.stderr, flush=True)
        if not options.alone:
            rows += [_theirs(options.python or peer_python(), images, iterations) for iterations in options.iterations]
    print(_table(rows, options.goal))


def _table(rows: list[Row], goal: float) -> str:
    headers = ["attack", "iterations", "seconds", "mean PSNR", "worst", f"{goal:g} dB"]
    return tabulate.tabulate([row.cells(goal) for row in rows], headers, tablefmt="pipe", disable_numparse=True)


def _victims(data: Path, count: int, path: Path) -> Path:
    """The first test images of a data set, in a file that both processes read."""
    with np.load(data) as file:
        images, labels = file["test_images"][:count], file["test_labels"][:count].reshape(-1)
    np.savez(path, images=images, labels=labels)
    return path


def _ours(attack: str, images: Path, public: Path | None) -> Row:
    with Worker("quality", sys.executable, 1) as worker:
        found = worker.ask(attack=attack, images=str(images), public=None if public is None else str(public))
    return Row(attack if public else f"{attack}, nothing public", None, found["seconds"], found["psnr"])


def _theirs(python: Path, images: Path, iterations: int) -> Row:
    with Worker("breaching quality", python, 1) as worker:
        found = worker.ask(images=str(images), iterations=iterations)
    return Row("breaching: invertinggradients", iterations, found["seconds"], found["psnr"])


if __name__ == "__main__":
    main()
