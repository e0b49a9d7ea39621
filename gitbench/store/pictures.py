"""One picture per case: the truth above what the attack made of it."""

from __future__ import annotations

import io

import torch
from PIL import Image

SHOWN = 8
SIDE = 96


def picture(truth: torch.Tensor, reconstruction: torch.Tensor) -> bytes:
    """PNG of the first image of each of the first eight victims: truth above, reconstruction below.

    Args:
        truth: ``(V, B, C, H, W)`` in [0, 1].
        reconstruction: the same shape.
    """
    rows = [torch.cat(list(stack[:SHOWN, 0]), dim=2) for stack in (truth, reconstruction)]
    pixels = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round().byte().cpu()
    channels, height, width = pixels.shape
    image = Image.fromarray(pixels[0].numpy()) if channels == 1 else Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = max(1, round(SIDE / (height // 2)))
    out = io.BytesIO()
    image.resize((width * scale, height * scale), Image.Resampling.NEAREST).save(out, format="PNG", optimize=True)
    return out.getvalue()
