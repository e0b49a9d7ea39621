"""A model of a few lines."""

from __future__ import annotations

import math

from torch import nn

import gitbench


class Softmax(gitbench.ModelFactory):
    """Softmax regression: one linear layer on the pixels, which are in [0, 1] and stay there."""

    name = "softmax"

    def build(self, data) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(data.input_shape), data.classes))
