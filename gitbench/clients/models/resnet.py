"""A small residual network of 15 layers."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.data import Data
from gitbench.clients.model import ModelFactory
from gitbench.clients.normalize import Normalize


class Block(nn.Module):
    """Two 3x3 convolutions and one skip (a 1x1 convolution), joined before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outputs) if norm else nn.Identity()
        self.skip = nn.Conv2d(inputs, outputs, 1, stride=stride)
        self.relu2 = nn.ReLU()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.relu1(self.norm1(self.conv1(inputs)))
        out: torch.Tensor = self.relu2(self.norm2(self.conv2(hidden)) + self.skip(inputs))
        return out


class ResNet(ModelFactory):
    """Two 3x3 convolutions, four blocks of two 3x3 convolutions and one skip, one linear layer: 15 layers.

    Normalises with the public mean and standard deviation.

    Args:
        width: channels of the first block; doubled at each stride.
        norm: ``batch`` (BatchNorm) or ``none``.
        bias: whether the last linear layer has a bias.
    """

    name = "resnet"

    def __init__(self, *, width: int = 16, norm: str = "batch", bias: bool = True) -> None:
        if norm not in ("batch", "none") or width < 1:
            raise ValueError(f"expected norm batch|none and width >= 1, got {norm!r} and {width}")
        self.width = width
        self.norm = norm == "batch"
        self.bias = bias

    def build(self, data: Data) -> nn.Module:
        width = self.width
        stem: list[nn.Module] = [Normalize.of(data)]
        for inputs in (data.input_shape[0], width):
            norm = nn.BatchNorm2d(width) if self.norm else nn.Identity()
            stem += [nn.Conv2d(inputs, width, 3, padding=1), norm, nn.ReLU()]
        blocks = [
            Block(i, o, s, self.norm)
            for i, o, s in ((width, width, 1), (width, 2 * width, 2), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1))
        ]
        head = [nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * 4 * width, data.classes, bias=self.bias)]
        return nn.Sequential(*stem, *blocks, *head)
