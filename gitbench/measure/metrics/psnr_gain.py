"""How much closer than the blind guess, per image: one threshold serves every dataset."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric
from gitbench.measure.pixel_error import PSNR_CAP, peak_ratio

if TYPE_CHECKING:
    import torch


class PsnrGain(Metric):
    """PSNR of the reconstruction minus PSNR of the blind guess."""

    name = "psnr_gain"
    unit = "dB"
    higher_leaks = True
    high = PSNR_CAP
    tolerance = 0.5
    summary = "dB of PSNR above the blind guess (the public mean image)"

    def score(self, found: torch.Tensor, truth: torch.Tensor, *, blind: torch.Tensor) -> torch.Tensor:
        return peak_ratio(found, truth) - peak_ratio(blind.expand_as(truth), truth)
