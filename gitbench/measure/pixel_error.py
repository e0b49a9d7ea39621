"""Squared error and PSNR of each image, which several metrics are made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PSNR_CAP = 100.0  # dB; a squared error below 1e-10 is an exact copy, and infinity is not a number in JSON


def squared_error(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean squared error of pixels in [0, 1]: ``(N, C, H, W)`` twice to ``(N,)``."""
    return (found.double() - truth.double()).square().flatten(1).mean(dim=1)


def peak_ratio(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """PSNR in dB of each image, capped at 100. Never pooled: one perfect image does not hide the others."""
    return -10 * squared_error(found, truth).clamp_min(10 ** (-PSNR_CAP / 10)).log10()
