"""Squared error, per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric
from gitbench.measure.pixel_error import squared_error

if TYPE_CHECKING:
    import torch


class Mse(Metric):
    """Mean squared error over channels and pixels."""

    name, heading = "mse", "MSE"
    higher_leaks = False
    low, high = 0.0, 1.0
    tolerance = 0.001
    summary = "mean squared error of the pixels in [0, 1]"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return squared_error(found, truth)
