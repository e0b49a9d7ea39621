"""Confidence intervals over victims and seeds, and the share of victims past a threshold."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

RESAMPLES = 4000
FEW = 8  # victims, of all seeds, below which resampling cannot show how far the mean may be off
CONFIDENCE = 0.95
_SAMPLED, _BEYOND = 16, 8  # of the resampled means, to find percentiles: every so many, and so many past twice the share
_FEW_ENOUGH = 1024  # victims whose draws are remembered: 32 MiB


@dataclass(frozen=True)
class Interval:
    """Mean and interval; ``low`` and ``high`` are None when they cannot be known."""

    mean: float | None
    low: float | None
    high: float | None


def _draws(sizes: tuple[int, ...]) -> list[np.ndarray]:
    """How often each resample takes each victim: of each seed ``(size, RESAMPLES)``. That depends on their numbers alone."""
    import numpy as np

    random, place = np.random.default_rng(0), np.arange(RESAMPLES)[:, None]
    drawn = (random.integers(0, size, (RESAMPLES, size)) * RESAMPLES + place for size in sizes)
    counted = (np.bincount(one.ravel(), minlength=size * RESAMPLES) for one, size in zip(drawn, sizes, strict=True))
    return [one.reshape(-1, RESAMPLES).astype(np.float64) for one in counted]


_known_draws = functools.lru_cache(maxsize=4)(_draws)  # a leaderboard asks for thousands of intervals of as many victims


def interval(groups: Sequence[Sequence[float | None]], *, confidence: float = CONFIDENCE) -> Interval:
    """Interval of the mean over victims and seeds.

    Victims are resampled within their seed (bootstrap). The percentiles are the *expanded* ones of
    Hesterberg (2015, arXiv 1411.5279): plain percentiles are too narrow for the dozen victims of a quick
    run, and below eight victims the interval is at least Student's. The resampling is seeded, so the same
    values always give the same interval.

    Seeds are clusters: where their means differ by more than their victims explain, the seeds are the
    sample, and the interval is at least Student's t over their means. One seed says nothing about others:
    its interval is over victims only.

    Args:
        groups: one sequence of per-victim values per seed.
        confidence: share of such intervals that hold the true mean.

    Returns:
        No number at all when a value is missing; no interval with fewer than two victims.
    """
    import numpy as np
    from scipy import special

    if not groups or not all(groups):
        return Interval(None, None, None)
    arrays = [np.asarray(group, dtype=np.float64) for group in groups]
    every = np.concatenate(arrays)
    if not np.isfinite(every).all():  # what is missing, None, is not a number
        return Interval(None, None, None)
    count, mean = every.size, float(every.mean())
    if count < 2:
        return Interval(mean, None, None)
    means, sizes = np.zeros(RESAMPLES), tuple(array.size for array in arrays)
    for array, times in zip(arrays, (_known_draws if count <= _FEW_ENOUGH else _draws)(sizes), strict=True):
        means += np.einsum("vr,v->r", times, array) / count  # by no BLAS, whose last bits may depend on its threads
    tail = special.stdtrit(count - 1, (1 - confidence) / 2) * np.sqrt(count / (count - 1))
    share = float(special.ndtr(tail))
    low, high = _quantiles(means, (share, 1 - share))
    if count < FEW:
        error = float(every.std(ddof=1) / np.sqrt(count))
        half = float(special.stdtrit(count - 1, (1 + confidence) / 2)) * error
        low, high = min(low, mean - half), max(high, mean + half)
    between = _spread_of_seeds(arrays)
    if between is not None:
        half = float(special.stdtrit(len(arrays) - 1, (1 + confidence) / 2)) * between
        low, high = min(low, mean - half), max(high, mean + half)
    return Interval(mean, min(low, mean), max(high, mean))


def _quantiles(values: np.ndarray, shares: Sequence[float]) -> list[float]:
    """What ``np.quantile`` gives (linear), but for the last bits, and faster: a leaderboard asks for thousands.

    Only the values past a cut are sorted. A sample says where to cut; all are sorted where it misled.
    """
    import numpy as np

    sample, found = np.sort(values[::_SAMPLED]), []
    for share in shares:
        at = share * (values.size - 1)
        below = min(int(at), values.size - 2)
        reach = min(int(2 * min(share, 1 - share) * sample.size) + _BEYOND, sample.size - 1)
        near = values[values <= sample[reach]] if share < 0.5 else values[values >= sample[-1 - reach]]
        first = 0 if share < 0.5 else values.size - near.size
        if not first <= below < first + near.size - 1:
            near, first = values, 0
        near = np.sort(near)
        found.append(_between(float(near[below - first]), float(near[below + 1 - first]), at - below))
    return found


def _between(low: float, high: float, share: float) -> float:
    """Linear, and never past either end by rounding."""
    return low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share)


def _spread_of_seeds(arrays: Sequence[np.ndarray]) -> float | None:
    """Standard error of the mean as the seeds show it; None where victims alone explain how the seeds differ."""
    import numpy as np

    if len(arrays) < 2:
        return None
    sizes = np.array([array.size for array in arrays], dtype=np.float64)
    weights = sizes / sizes.sum()
    centres = np.array([array.mean() for array in arrays])
    between = float((weights**2 * (centres - weights @ centres) ** 2).sum()) * len(arrays) / (len(arrays) - 1)
    spread = sum(float(((array - array.mean()) ** 2).sum()) for array in arrays)
    freedom = sizes.sum() - len(arrays)
    variance = spread / freedom if freedom else 0.0
    within = variance * float((weights**2 / sizes).sum())
    return float(np.sqrt(between)) if between > within else None


def wilson(count: int, total: int, *, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's interval of a share: ``count`` of ``total``."""
    from scipy import special  # scipy.stats has it too, and takes a second to import

    share, deviation = count / total, float(special.ndtri(0.5 + 0.5 * confidence))
    scale = 2 * (total + deviation**2)
    centre = (2 * total * share + deviation**2) / scale
    half = deviation / scale * math.sqrt(4 * total * share * (1 - share) + deviation**2)
    return 0.0 if count == 0 else centre - half, 1.0 if count == total else centre + half


def student(groups: Sequence[Sequence[float]], *, trim: float = 0.0, confidence: float = CONFIDENCE) -> Interval:
    """Student's interval of the mean, or Yuen's of the trimmed mean, over victims and seeds.

    For differences between two runs: re-drawn noise makes them symmetric about zero however heavy their
    tails are, and Student's interval is then on the safe side. Seeds are clusters as in :func:`interval`.

    Args:
        groups: one sequence of finite values per seed.
        trim: share of the values that is cut off at either end (of every seed).
        confidence: share of such intervals that hold the true mean.

    Returns:
        No interval where a seed has fewer than two values left.
    """
    import numpy as np
    from scipy import special

    arrays = [_pseudo_values(np.asarray(group, dtype=np.float64), trim) for group in groups]
    count = sum(array.size for array in arrays)
    if not count:
        return Interval(None, None, None)
    mean = float(np.concatenate(arrays).mean())
    freedom = sum(array.size - 2 * int(trim * array.size) - 1 for array in arrays)
    if freedom < 1:
        return Interval(mean, None, None)
    spread = sum(float(((array - array.mean()) ** 2).sum()) for array in arrays)
    error = float(np.sqrt(spread / (count - len(arrays)) / count))
    between = _spread_of_seeds(arrays)
    half = float(special.stdtrit(freedom, (1 + confidence) / 2)) * error
    if between is not None:
        half = max(half, float(special.stdtrit(len(arrays) - 1, (1 + confidence) / 2)) * between)
    return Interval(mean, mean - half, mean + half)


def _pseudo_values(values: np.ndarray, trim: float) -> np.ndarray:
    """Values whose mean is the trimmed mean of ``values``, and whose spread is that of a trimmed mean."""
    import numpy as np

    cut = int(trim * values.size)
    if not cut:
        return values
    ordered = np.sort(values)
    winsorized = np.clip(values, ordered[cut], ordered[-cut - 1])
    centre = float(ordered[cut:-cut].mean())
    pseudo: np.ndarray = centre + (winsorized - winsorized.mean()) / (1 - 2 * cut / values.size)
    return pseudo
