"""The largest entries of each row, as a mask: what pruning keeps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_SAMPLE = 2048  # entries of a row that tell between which values to look
_DEVIATIONS = 4  # of a rank in the sample: outside, a row is looked at whole


def largest(rank: torch.Tensor, count: int) -> torch.Tensor:
    """1 at the ``count`` largest entries of each row of ``rank (V, D)``, 0 elsewhere. Of equal ones the first; NaN counts as infinite.

    ``topk`` takes any of equal entries, other ones on each device, and moves their indices too, which takes three times as long.
    """
    rank = rank.detach()
    if count == 0:
        return torch.zeros_like(rank)
    if rank.device.type != "cpu" or rank.dtype not in (torch.float32, torch.float64):
        return _at_once(rank, count)
    found = torch.empty_like(rank)
    for row, mask in zip(rank, found, strict=True):  # one after the other: a row stays in the cache
        mask.copy_(torch.from_numpy(_mask(row.numpy(), count)))
    return found


def _at_once(rank: torch.Tensor, count: int) -> torch.Tensor:
    rank = rank.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
    least = rank.kthvalue(rank.shape[1] - count + 1, dim=1, keepdim=True).values
    above, equal = rank > least, rank == least
    first = equal.cumsum(1) <= count - above.sum(1, keepdim=True)
    return (above | equal & first).to(rank.dtype)


def _mask(row: npt.NDArray[np.floating[Any]], count: int) -> npt.NDArray[np.bool_]:
    least = _least(row, count)
    if not np.isfinite(least):
        row = np.nan_to_num(row, nan=np.inf, posinf=np.inf, neginf=-np.inf)
        least = _least(row, count)
    kept = ~(row < least)
    surplus = np.count_nonzero(kept) - count
    if surplus:
        kept[np.flatnonzero(row == least)[-surplus:]] = False
    return kept


def _least(row: npt.NDArray[np.floating[Any]], count: int) -> float:
    """The least entry that is kept: looked for among those that a sample puts near it, and among all where it is not there."""
    size = len(row)
    if size >= 8 * _SAMPLE:
        sample = np.sort(row[:: size // _SAMPLE])
        share = count / size
        middle, reach = (1 - share) * len(sample), _DEVIATIONS * np.sqrt(share * (1 - share) * len(sample)) + 1
        low = sample[max(0, int(middle - reach))]
        high = sample[min(len(sample) - 1, int(middle + reach))]
        near = row <= high
        missing = count - (size - int(np.count_nonzero(near)))  # NaN is above
        near &= row >= low
        part = row[near]
        if 0 < missing <= len(part):
            row, count = part, missing
    return float(np.partition(row, len(row) - count)[len(row) - count])
