"""A small vision transformer."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.data import Data
from gitbench.clients.model import ModelFactory
from gitbench.clients.normalize import Normalize
from gitbench.clients.transformer_blocks import TransformerBlock
from gitbench.core.errors import ModelError


class PatchEmbedding(nn.Module):
    """Cut into patches, project each, add a learned position."""

    def __init__(self, channels: int, width: int, patch: int, patches: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, patches, width) * 0.02)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        tokens: torch.Tensor = self.project(inputs).flatten(2).transpose(1, 2)
        return tokens + self.position


class MeanTokens(nn.Module):
    """Average over tokens: ``(N, T, width)`` to ``(N, width)``."""

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.mean(dim=1)


class ViT(ModelFactory):
    """Patch embedding, four blocks of 4-head attention, mean over tokens, one linear layer.

    Normalises with the public mean and standard deviation.

    Args:
        width: of the tokens; a multiple of ``heads``.
        blocks: how many transformer blocks.
        heads: attention heads per block.
        patch: side of a patch in pixels; must divide the image's sides.
        bias: whether the last linear layer has a bias.
    """

    name = "vit"

    def __init__(self, *, width: int = 96, blocks: int = 4, heads: int = 4, patch: int = 4, bias: bool = True) -> None:
        if width % heads or min(width, blocks, heads, patch) < 1:
            raise ValueError(f"expected width to be a multiple of heads, got {width} and {heads}")
        self.width, self.blocks, self.heads, self.patch, self.bias = width, blocks, heads, patch, bias

    def build(self, data: Data) -> nn.Module:
        channels, height, width = data.input_shape
        if height % self.patch or width % self.patch:
            raise ModelError(f"Expected a patch that divides {height}x{width} images, got {self.patch}. Set patch=.")
        patches = (height // self.patch) * (width // self.patch)
        return nn.Sequential(
            Normalize.of(data),
            PatchEmbedding(channels, self.width, self.patch, patches),
            *(TransformerBlock(self.width, self.heads) for _ in range(self.blocks)),
            nn.LayerNorm(self.width),
            MeanTokens(),
            nn.Linear(self.width, data.classes, bias=self.bias),
        )
