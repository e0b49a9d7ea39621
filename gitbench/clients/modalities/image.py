"""Images: pixels in [0, 1]."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gitbench.core.modality import Modality

if TYPE_CHECKING:
    import torch
    from torch import nn


class ImageData(Modality):
    """Images ``(C, H, W)``, floats in [0, 1], which enter a model as they are. The blind guess is the public mean image."""

    name = "image"
    noun, axes = "image", "C, H, W"
    gate = {"psnr_gain": 3.0}

    def problem(self, inputs: torch.Tensor) -> str:
        if not inputs.is_floating_point():
            return f"expected floats, got {inputs.dtype}"
        low, high = float(inputs.min()), float(inputs.max())
        if low >= 0 and high <= 1:
            return ""
        hint = ": NaN is none" if math.isnan(low) else ". Divide by 255?" if high > 2 else ". Clamp them"
        return f"expected values in [0, 1], got values in [{low:.3g}, {high:.3g}]{hint}"

    def noise(self, shape: tuple[int, ...], *, generator: torch.Generator) -> torch.Tensor:
        import torch

        return torch.rand(shape, generator=generator)

    def start(self, network: nn.Module, shape: tuple[int, ...], *, init: str, generator: torch.Generator) -> torch.Tensor:
        """``normal`` is N(0, 1) as DLG and IG were published, ``grey`` is N(0.5, 0.1²).

        Grey starts inside the pixels' range and nearly flat, where a sigmoid network is not saturated
        (docs/attacks.md has the figures).
        """
        import torch

        drawn = torch.randn(shape, generator=generator)
        return 0.5 + 0.1 * drawn if init == "grey" else drawn

    def leave(self, network: nn.Module, points: torch.Tensor) -> torch.Tensor:
        return points.clamp(0, 1)

    def blind(self, public: torch.Tensor) -> torch.Tensor:
        return public.mean(0)

    def distances(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """Squared error."""
        import torch

        return torch.cdist(truth.flatten(2).double(), found.flatten(2).double()).square()

    def picture(self, truth: torch.Tensor, found: torch.Tensor) -> bytes:
        from gitbench.store.pictures import picture

        return picture(truth, found)
