"""One picture per case: the truth above what the attack made of it."""

from __future__ import annotations

import io

import torch
from PIL import Image, PngImagePlugin

SHOWN = 16
SIDE = 96


def picture(truth: torch.Tensor, reconstruction: torch.Tensor) -> bytes:
    """PNG of the first image of each of the first 16 victims: truth above, reconstruction below. Its text ``victims`` says how many.

    Args:
        truth: ``(V, B, C, H, W)`` in [0, 1].
        reconstruction: the same shape.
    """
    rows = [torch.cat(list(stack[:SHOWN, 0]), dim=2) for stack in (truth, reconstruction)]
    pixels = (torch.cat(rows, dim=1).clamp(0, 1) * 255).round().byte().cpu()
    channels, height, width = pixels.shape
    image = Image.fromarray(pixels[0].numpy()) if channels == 1 else Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = max(1, round(SIDE / (height // 2)))
    told = PngImagePlugin.PngInfo()
    told.add_text("victims", str(len(truth[:SHOWN])))  # so that whoever cuts it apart need not guess
    out = io.BytesIO()
    image.resize((width * scale, height * scale), Image.Resampling.NEAREST).save(out, format="PNG", pnginfo=told)
    return out.getvalue()
