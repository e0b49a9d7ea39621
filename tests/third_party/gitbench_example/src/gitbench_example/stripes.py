"""A dataset of a few lines."""

from __future__ import annotations

import math

import torch

import gitbench


class Stripes(gitbench.Dataset):
    """Grey stripes; the class is their direction.

    Args:
        size: of the images.
    """

    name = "stripes"

    def __init__(self, *, size: int = 8) -> None:
        self.size = size

    def load(self) -> gitbench.Data:
        return gitbench.Data(self._split(96, 0), self._split(24, 1), classes=4, name="stripes")

    def _split(self, count: int, seed: int) -> gitbench.Split:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(4, (count,), generator=generator)
        across = torch.linspace(0, 2 * math.pi, self.size)
        angle, phase = labels * math.pi / 4, 2 * math.pi * torch.rand(count, generator=generator)
        waves = torch.cos(angle)[:, None, None] * across + torch.sin(angle)[:, None, None] * across[:, None] + phase[:, None, None]
        return gitbench.Split(torch.sin(waves)[:, None] / 2 + 0.5, labels)
