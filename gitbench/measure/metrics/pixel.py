"""Squared error and PSNR, per image."""

from __future__ import annotations

import torch

from gitbench.core.metric import PSNR_CAP


def mse(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean squared error of pixels in [0, 1]: ``(N, C, H, W)`` twice to ``(N,)``."""
    return (images.double() - truth.double()).square().flatten(1).mean(dim=1)


def psnr(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of each image, capped at 100: ``(N, C, H, W)`` twice to ``(N,)``.

    Per image, never pooled: one perfect image does not hide the others.
    """
    return -10 * mse(images, truth).clamp_min(10 ** (-PSNR_CAP / 10)).log10()
