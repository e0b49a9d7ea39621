"""The blocks of the built-in transformers: attention written out, because the fused kernels cannot be differentiated twice."""

from __future__ import annotations

import torch
from torch import nn

STD = 0.02
"""Standard deviation of initial embeddings, as in GPT-2 and BERT."""


class Attention(nn.Module):
    """Multi-head self-attention, ``(N, L, d)`` to the same.

    Args:
        width: ``d``.
        heads: how many.
        causal: whether a position sees only itself and those before it.
    """

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        query, key, value = (
            layer(inputs).unflatten(-1, (self.heads, -1)).transpose(-3, -2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if self.causal:
            length = inputs.shape[-2]
            later = torch.ones(length, length, dtype=torch.bool, device=inputs.device).triu(1)
            scores = scores.masked_fill(later, -torch.inf)
        mixed: torch.Tensor = self.out((scores.softmax(-1) @ value).transpose(-3, -2).flatten(-2))
        return mixed


class TransformerBlock(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm and beside a skip connection (pre-norm)."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        inputs = inputs + self.attention(self.norm1(inputs))
        found: torch.Tensor = inputs + self.mlp(self.norm2(inputs))
        return found


def check_sizes(width: int, depth: int, heads: int) -> None:
    """Refuse sizes of a transformer that cannot be.

    Raises:
        ValueError: naming what was expected and what was found.
    """
    if not all(type(one) is int and one > 0 for one in (width, depth, heads)):
        raise ValueError(f"expected width, depth and heads to be whole numbers > 0, got {width!r}, {depth!r}, {heads!r}")
    if width % heads:
        raise ValueError(f"expected a width that {heads} heads can share, got {width}")
