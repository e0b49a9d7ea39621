"""What a defense costs in accuracy, over all seeds: how much is lost, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gitbench.judge.statistics import wilson
from gitbench.store.result import Result, Training

ACCURACY_DROP = "accuracy_drop"
"""The threshold of cost, in percentage points."""

_Z = 1.96  # of a 95 % interval


@dataclass(frozen=True)
class Percent:
    """A share or a difference of shares with its 95 % interval, all in percent."""

    mean: float
    low: float
    high: float

    def shown(self, *, sign: bool = False) -> str:
        """``31.9 % [29.1, 34.8]``."""
        return f"{self.mean:{'+' if sign else ''}.1f} % [{self.low:.1f}, {self.high:.1f}]"


def trainings(results: Sequence[Result]) -> list[Training]:
    """Of each seed one, in the order of the seeds; empty where a seed has none."""
    found = {result.case.seed: result.training for result in results if result.training is not None}
    return [found[seed] for seed in sorted(found)] if found.keys() == {result.case.seed for result in results} else []


def accuracy(results: Sequence[Result]) -> Percent | None:
    """Percent of the test images that are classified right after training under the defense, with Wilson's interval; None where unknown.

    Images of several seeds count as independent.
    """
    found = trainings(results)
    if not found:
        return None
    right, images = sum(one.right for one in found), sum(one.images for one in found)
    low, high = wilson(right, images)
    return Percent(100 * right / images, 100 * low, 100 * high)


def accuracy_drop(results: Sequence[Result]) -> Percent | None:
    """Percentage points that the defense costs, a paired difference over the same test images and seeds; None where unknown.

    The interval is that of Agresti and Min (2005) for matched pairs: half an image is added to each of the four counts, so that it has a
    width where no image differs.
    """
    found = trainings(results)
    if not found:
        return None
    lost, gained, images = (sum(getattr(one, name) for one in found) for name in ("lost", "gained", "images"))
    total = images + 2
    share, either = (lost - gained) / total, (lost + gained + 1) / total
    spread = _Z * math.sqrt(max(0.0, either - share**2) / total)
    return Percent(100 * (lost - gained) / images, 100 * (share - spread), 100 * (share + spread))
