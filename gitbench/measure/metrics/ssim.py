"""Structural similarity (Wang et al. 2004), per image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric

if TYPE_CHECKING:
    import torch

WINDOW, SIGMA = 11, 1.5


class Ssim(Metric):
    """Mean SSIM over channels and the places where the 11x11 Gaussian window fits.

    Images smaller than the window are measured with the largest odd window that fits.
    """

    name, heading = "ssim", "SSIM"
    higher_leaks = True
    low, high = -1.0, 1.0
    tolerance = 0.02
    summary = "structural similarity (Wang et al. 2004), Gaussian window of 11"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        import torch
        from torch.nn import functional

        channels, height, width = found.shape[1:]
        size = min(WINDOW, height - 1 + height % 2, width - 1 + width % 2)
        x, y = found.double(), truth.double()
        offsets = torch.arange(size, dtype=torch.float64, device=x.device) - size // 2
        window = torch.exp(-offsets.square() / (2 * SIGMA**2))
        window = window / window.sum()

        def blur(stack: torch.Tensor) -> torch.Tensor:
            rows = window.reshape(1, 1, size, 1).expand(channels, 1, size, 1)
            columns = window.reshape(1, 1, 1, size).expand(channels, 1, 1, size)
            return functional.conv2d(functional.conv2d(stack, rows, groups=channels), columns, groups=channels)

        mean_x, mean_y = blur(x), blur(y)
        variance_x = blur(x * x) - mean_x.square()
        variance_y = blur(y * y) - mean_y.square()
        covariance = blur(x * y) - mean_x * mean_y
        c1, c2 = 0.01**2, 0.03**2
        above = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        below = (mean_x.square() + mean_y.square() + c1) * (variance_x + variance_y + c2)
        return (above / below).flatten(1).mean(dim=1)
