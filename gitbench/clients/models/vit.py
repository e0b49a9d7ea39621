"""A small vision transformer."""

from __future__ import annotations

import math

import torch
from torch import nn

from gitbench.clients.data import Data
from gitbench.clients.model import ModelFactory, Normalize
from gitbench.core.errors import ModelError


class Attention(nn.Module):
    """Multi-head self-attention with separate W_Q, W_K, W_V and output matrices.

    Written out, because the fused kernels cannot be differentiated twice.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        count, length, width = tokens.shape

        def split(projected: torch.Tensor) -> torch.Tensor:
            return projected.reshape(count, length, self.heads, width // self.heads).transpose(1, 2)

        query, key, value = split(self.query(tokens)), split(self.key(tokens)), split(self.value(tokens))
        weights = (query @ key.transpose(-2, -1) / math.sqrt(width // self.heads)).softmax(dim=-1)
        out: torch.Tensor = self.out((weights @ value).transpose(1, 2).reshape(count, length, width))
        return out


class TransformerBlock(nn.Module):
    """Pre-norm attention and MLP, each with a skip."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        tokens = tokens + self.attention(self.norm1(tokens))
        out: torch.Tensor = tokens + self.mlp(self.norm2(tokens))
        return out


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
