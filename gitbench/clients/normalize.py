"""The first layer of a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from gitbench.clients.data import Data


class Normalize(nn.Module):
    """First layer of a model: ``(x - mean) / std`` per channel, so that inputs stay in [0, 1]."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean.reshape(-1, 1, 1))
        self.register_buffer("std", std.reshape(-1, 1, 1))

    @classmethod
    def of(cls, data: Data) -> Normalize:
        """The per-channel mean and standard deviation of the public images."""
        inputs = data.public.inputs
        return cls(inputs.mean((0, 2, 3)), inputs.std((0, 2, 3)).clamp_min(1e-3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs - self.mean) / self.std
