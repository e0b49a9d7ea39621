"""Feature hashing: a random linear map from long vectors to short ones, and sketches of gradients made with it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.nn import functional

from gitbench.clients.update import Update
from gitbench.core.random import make_generator

_PIECE = 2**20  # entries sketched at once
_TINY = 1e-20


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


class Hashings:
    """One hashing for each kind of vector, drawn when it is first needed.

    Args:
        seed: of all of them.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._drawn: dict[tuple[str, int], Hashing] = {}

    def __call__(self, flat: torch.Tensor, what: str, bins: int) -> torch.Tensor:
        """``(V, D)`` to ``(V, bins)``, or as it is if ``D`` is no more; ``what`` names the kind of vector."""
        entries = flat.shape[1]
        if entries <= bins:
            return flat
        if (what, entries) not in self._drawn:
            generator = make_generator(self._seed, "sketch", what)
            self._drawn[what, entries] = Hashing(entries, bins, generator=generator, shuffled=False, device=flat.device)
        return self._drawn[what, entries](flat)


def sketched(names: Sequence[str], update: Update, size: int, hashed: Hashings, *, what: str) -> torch.Tensor:
    """Some parameters' gradients at unit length, side by side and hashed; and the logarithms of their lengths: ``(V, size)``.

    Args:
        names: of the parameters.
        update: of ``V`` victims.
        size: of the sketch.
        hashed: hashes it.
        what: names the hashing.
    """
    gradients = [update.tensors[name].flatten(1) for name in names]
    lengths = torch.stack([gradient.norm(dim=1) for gradient in gradients], dim=1).clamp_min(_TINY)
    entries = sum(gradient.shape[1] for gradient in gradients)
    bins = min(max(1, size - len(names)), entries)
    together = max(1, _PIECE // entries)
    pieces = []
    for start in range(0, len(update), together):
        rows = slice(start, start + together)
        units = [gradient[rows] * (math.sqrt(gradient.shape[1]) / lengths[rows, index, None]) for index, gradient in enumerate(gradients)]
        pieces.append(hashed(torch.cat(units, dim=1), what, bins))
    found = torch.cat([torch.cat(pieces), lengths.log()], dim=1)[:, :size]
    return functional.pad(found, (0, size - found.shape[1]))
