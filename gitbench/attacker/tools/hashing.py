"""Feature hashing: a random linear map from long vectors to short ones."""

from __future__ import annotations

import math

import torch
from torch.nn import functional


class Hashing:
    """Gives every entry a random sign, adds it to one of the bins, and scales the sums to the size of a single entry.

    All bins get equally many entries, or one fewer: the sums are then those of a matrix's columns. Adding at random
    places would not be deterministic on a GPU.

    Args:
        entries: of the long vectors.
        bins: entries of the short ones, fewer.
        generator: for the bins and the signs.
        shuffled: True draws each entry's bin; False puts every ``bins``-th entry into the same one.
        device: of the vectors.
    """

    def __init__(self, entries: int, bins: int, *, generator: torch.Generator, shuffled: bool, device: torch.device | str = "cpu") -> None:
        self._bins = bins
        self._scale = math.sqrt(entries / bins)
        self._order = torch.randperm(entries, generator=generator).to(device) if shuffled else None
        self._signs = (torch.randint(2, (entries,), generator=generator, dtype=torch.int8) * 2 - 1).to(device)

    def __call__(self, flat: torch.Tensor) -> torch.Tensor:
        """``(V, entries)`` to ``(V, bins)``."""
        signed = flat * self._signs
        if self._order is not None:
            signed = signed.index_select(1, self._order)
        padded = functional.pad(signed, (0, -signed.shape[1] % self._bins))
        return padded.reshape(len(flat), -1, self._bins).sum(1) / self._scale
