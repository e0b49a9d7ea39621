"""A plain multi-layer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from gitbench.clients.activation import activation_named
from gitbench.clients.data import Data
from gitbench.clients.model import ModelFactory
from gitbench.clients.normalize import Normalize


class Mlp(ModelFactory):
    """Flatten, then linear layers with an activation between them.

    Args:
        hidden: widths of the hidden layers.
        activation: ``sigmoid``, ``tanh``, ``relu`` or ``leaky_relu``.
        bias: whether the last linear layer has a bias.
    """

    name = "mlp"

    def __init__(self, *, hidden: Sequence[int] = (48,), activation: str = "sigmoid", bias: bool = True) -> None:
        if not all(isinstance(width, int) and width > 0 for width in hidden):
            raise ValueError(f"expected hidden to be positive widths, got {hidden!r}")
        self.hidden = tuple(hidden)
        self.activation = activation_named(activation)
        self.bias = bias

    def build(self, data: Data) -> nn.Module:
        channels = data.input_shape[0]
        width = math.prod(data.input_shape)
        stack: list[nn.Module] = [Normalize(torch.zeros(channels), torch.ones(channels)), nn.Flatten()]
        for hidden in self.hidden:
            stack += [nn.Linear(width, hidden), self.activation()]
            width = hidden
        return nn.Sequential(*stack, nn.Linear(width, data.classes, bias=self.bias))
