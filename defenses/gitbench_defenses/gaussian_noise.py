"""Gaussian noise on the update."""

from __future__ import annotations

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update
from gitbench.core.random import randn_like


class GaussianNoise(Defense):
    """Adds N(0, std²) to every entry of the averaged gradient, as it is (no clipping, no division by B).

    Args:
        std: standard deviation, in the gradient's own units.
    """

    name = "gaussian_noise"

    def __init__(self, *, std: float) -> None:
        if not std >= 0:
            raise ValueError(f"expected std >= 0, got {std}")
        self.std = std

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(noise_std=self.std, hides=self.std > 0)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return update.map(lambda _, tensor: tensor + self.std * randn_like(tensor, generator))
