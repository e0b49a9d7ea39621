"""Confidence intervals over victims and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

RESAMPLES = 4000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """Mean and interval; ``low`` and ``high`` are None when they cannot be known."""

    mean: float | None
    low: float | None
    high: float | None


def interval(groups: Sequence[Sequence[float | None]]) -> Interval:
    """Bootstrap interval of the mean over victims and seeds.

    Victims are resampled within their seed, and seeds are resampled too where there are several.
    The percentiles are the *expanded* ones of Hesterberg (2015, arXiv 1411.5279): plain percentiles
    are too narrow for the dozen victims of a quick run. The resampling is seeded, so the same values
    always give the same interval.

    Args:
        groups: one sequence of per-victim values per seed.

    Returns:
        No number at all when a value is missing; no interval with fewer than two victims.
    """
    import numpy as np
    from scipy import stats

    if not groups or any(value is None for group in groups for value in group) or not all(groups):
        return Interval(None, None, None)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    if not all(np.isfinite(array).all() for array in arrays):
        return Interval(None, None, None)
    count = sum(array.size for array in arrays)
    mean = float(np.concatenate(arrays).mean())
    if count < 2:
        return Interval(mean, None, None)
    random = np.random.default_rng(0)
    sums = np.empty((len(arrays), RESAMPLES))
    sizes = np.array([array.size for array in arrays], dtype=np.float64)
    for row, array in enumerate(arrays):
        sums[row] = array[random.integers(0, array.size, (RESAMPLES, array.size))].sum(axis=1)
    if len(arrays) > 1:
        chosen = random.integers(0, len(arrays), (len(arrays), RESAMPLES))
        means = np.take_along_axis(sums, chosen, axis=0).sum(axis=0) / sizes[chosen].sum(axis=0)
    else:
        means = sums[0] / sizes[0]
    tail = stats.t.ppf((1 - CONFIDENCE) / 2, count - 1) * np.sqrt(count / (count - 1))
    share = float(stats.norm.cdf(tail))
    low, high = np.quantile(means, [share, 1 - share])
    return Interval(mean, min(float(low), mean), max(float(high), mean))
