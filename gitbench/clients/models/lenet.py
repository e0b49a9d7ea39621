"""The LeNet of DLG and LTI."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.activation import activation_named
from gitbench.clients.data import Data
from gitbench.clients.model import ModelFactory
from gitbench.clients.normalize import Normalize


class LeNet(ModelFactory):
    """5x5 convolutions of 12 channels with strides 2, 2, 1, then one linear layer.

    As published (Zhu et al., arXiv 1906.08935): sigmoid, weights and biases U(-0.5, 0.5), and raw
    pixels in [0, 1]: the normalisation layer is the identity.

    Args:
        activation: ``sigmoid``, ``tanh``, ``relu`` or ``leaky_relu``.
        init: ``uniform`` is U(-0.5, 0.5) as in DLG; ``default`` is PyTorch's.
        bias: whether the last linear layer has a bias.
        layers: how many convolutions; those after the second have stride 1.
    """

    name = "lenet"

    def __init__(self, *, activation: str = "sigmoid", init: str = "uniform", bias: bool = True, layers: int = 3) -> None:
        if init not in ("uniform", "default") or not 1 <= layers <= 8:
            raise ValueError(f"expected init uniform|default and layers in 1..8, got {init!r} and {layers}")
        self.activation = activation_named(activation)
        self.init = init
        self.bias = bias
        self.layers = layers

    def build(self, data: Data) -> nn.Module:
        channels, height, width = data.input_shape
        stack: list[nn.Module] = [Normalize(torch.zeros(channels), torch.ones(channels))]
        for layer in range(self.layers):
            stride = 2 if layer < 2 else 1
            stack += [nn.Conv2d(channels, 12, 5, stride=stride, padding=2), self.activation()]
            channels, height, width = 12, -(-height // stride), -(-width // stride)
        stack += [nn.Flatten(), nn.Linear(channels * height * width, data.classes, bias=self.bias)]
        model = nn.Sequential(*stack)
        if self.init == "uniform":
            for parameter in model.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
        return model
