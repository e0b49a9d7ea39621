"""Laplace noise on the update."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update

_LARGEST = 17.0  # in place of infinity, which one draw in 2^24 would give; the others end at 15.9


class LaplaceNoise(Defense):
    """Adds Laplace(0, ``scale``) to every entry of the averaged gradient, as it is (no clipping, no division by B).

    The density is ``exp(-|x| / b) / (2 b)``, the standard deviation ``b * sqrt(2)``. On its own it is no differential privacy, for a
    gradient's sensitivity is unbounded; of updates that are at most ``d`` apart in L1, it is ``d / b`` (Dwork et al. 2006, Calibrating
    Noise to Sensitivity in Private Data Analysis). Several rounds of one batch wear it off, and the median faster than the mean.

    Args:
        scale: ``b``, in the gradient's own units, >= 0.
    """

    name = "laplace_noise"

    def __init__(self, *, scale: float) -> None:
        if not 0 <= scale < math.inf:
            raise ValueError(f"expected scale >= 0, got {scale}")
        self.scale = scale

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(noise_std=self.scale * math.sqrt(2), hides=self.scale > 0)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return update.map(lambda _, tensor: tensor + self.scale * _laplace_like(tensor, generator))

    def combined(self, updates: Iterable[Update]) -> Update:
        """The median of each entry: the most likely value of what Laplace noise was added to. All rounds are held in memory at once."""
        found = list(updates)
        if all(update is found[0] for update in found):
            return found[0]
        return found[0].map(lambda name, _: _median([update.tensors[name] for update in found]))


def _laplace_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard Laplace numbers of the tensor's shape, dtype and device, by the inverse of their distribution function."""
    drawn = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device).sub_(0.5)
    sizes = drawn.abs().mul_(-2).log1p_().neg_().clamp_max_(_LARGEST)
    return torch.copysign(sizes, drawn).to(tensor.device)


def _median(rounds: list[torch.Tensor]) -> torch.Tensor:
    """Of each entry; of an even number the mean of the middle two. Neighbours are put in order, of all entries at once, until all are."""
    ranked, count = list(rounds), len(rounds)
    for step in range(count):
        for index in range(step % 2, count - 1, 2):
            pair = ranked[index], ranked[index + 1]
            ranked[index], ranked[index + 1] = torch.minimum(*pair), torch.maximum(*pair)
    return (ranked[(count - 1) // 2] + ranked[count // 2]) / 2
