"""What was measured, as Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.comparison import PASSES, Measured, Point
from gitbench.publish.table import markdown_table

HEAD = f"""# Speed

Image-iterations a second: victims times steps of the search over seconds, all that a step takes included. Median of the rounds [least,
most]. Both implementations get the same network, gradients, images and labels and are measured in turn, in processes of their own.
gitbench takes all victims in one stack; breaching takes one image after the other. Ratios are of the rounds' pairs: they count,
absolute figures are those of one machine. The floor is {PASSES} products of matrices for each image and step, which is what forwards,
backwards and their slopes come to, at the rate of one large product; weights that are read from memory are not in it. The peak is that
of the whole process, in MiB.

"""
COLUMNS = [
    "network",
    "victims",
    "gitbench",
    "of the floor",
    "breaching",
    "times faster",
    "MiB",
    "MiB of breaching",
    "distance",
    "of breaching",
]


def written(points: Sequence[Point], *, command: str, threads: int) -> str:
    """The whole file."""
    table = markdown_table([dict(zip(COLUMNS, _row(point), strict=True)) for point in points])
    made = (
        f"Made by `{command}`: {threads} threads each on {_processor()} with {os.cpu_count()} cores, Python {platform.python_version()}, "
    )
    torch = points[0].ours.torch
    distance = "The distance is the mean cosine distance of the gradients that the last round reached, within the time that it had."
    return f"{HEAD}{made}torch {torch}.\n\n{table}\n\n{distance}\n"


def _row(point: Point) -> list[str]:
    theirs = point.theirs
    return [
        f"`{point.network}`",
        str(point.victims),
        _spread(point.ours),
        f"{point.ours.rate / point.floor:.0%}",
        "" if theirs is None else _spread(theirs),
        "" if theirs is None else f"**{statistics.median(point.ratios):.1f}** [{min(point.ratios):.1f}, {max(point.ratios):.1f}]",
        f"{point.ours.peak_mib:,.0f}",
        "" if theirs is None else f"{theirs.peak_mib:,.0f}",
        f"{statistics.mean(point.ours.losses):.1e}",
        "" if theirs is None else f"{statistics.mean(theirs.losses):.1e}",
    ]


def _spread(measured: Measured) -> str:
    return f"{measured.rate:,.1f} [{min(measured.rates):,.1f}, {max(measured.rates):,.1f}]"


def _processor() -> str:
    """What it is called, where the system tells."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
