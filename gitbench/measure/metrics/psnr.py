"""Peak signal-to-noise ratio, per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric
from gitbench.measure.pixel_error import PSNR_CAP, peak_ratio

if TYPE_CHECKING:
    import torch


class Psnr(Metric):
    """The squared error in decibels."""

    name, heading = "psnr", "PSNR"
    unit = "dB"
    higher_leaks = True
    low, high = 0.0, PSNR_CAP
    tolerance = 0.5
    summary = "peak signal-to-noise ratio, capped at 100 dB"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return peak_ratio(found, truth)
