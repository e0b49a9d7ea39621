"""A small language model: the next token, of each."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.data import Data
from gitbench.clients.modalities.text import PAD, TextData
from gitbench.clients.model import ModelFactory
from gitbench.clients.token_embedding import TokenEmbedding, next_tokens
from gitbench.clients.transformer_blocks import STD, TransformerBlock, check_sizes


class LanguageModel(nn.Module):
    """As GPT-2 is built: a start vector and token embeddings, learned positions, causal blocks, a LayerNorm and a linear head.

    What it learns follows from its input: after the start the first token, then each next one, and at the end padding.
    """

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int, heads: int, tied: bool) -> None:
        super().__init__()
        self.target_classes = vocabulary
        self.tokens = TokenEmbedding(vocabulary, width)
        self.start = nn.Parameter(STD * torch.randn(width))
        self.positions = nn.Parameter(STD * torch.randn(length + 1, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary)
        nn.init.normal_(self.tokens.weight, std=STD)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Tokens ``(N, L)``, or their vectors, to logits ``(N, L + 1, vocabulary)``."""
        embedded = self.tokens(inputs)
        start = self.start.expand(*embedded.shape[:-2], 1, -1)
        found: torch.Tensor = self.head(self.norm(self.blocks(torch.cat([start, embedded], dim=-2) + self.positions)))
        return found

    def targets(self, inputs: torch.Tensor) -> torch.Tensor:
        """Tokens ``(N, L + 1)``; of vectors how likely each is, ``(N, L + 1, vocabulary)``."""
        return next_tokens(inputs, self.tokens.weight.detach(), end=PAD)


class Transformer(ModelFactory):
    """A GPT-like language model; the loss is the mean cross-entropy of the next token over all positions.

    Args:
        width: of every layer.
        depth: blocks.
        heads: of the attention.
        tied: whether the head's weight is the token embedding.
    """

    name = "transformer"
    modality = "text"

    def __init__(self, *, width: int = 64, depth: int = 2, heads: int = 4, tied: bool = False) -> None:
        check_sizes(width, depth, heads)
        self.width = width
        self.depth = depth
        self.heads = heads
        self.tied = tied

    def build(self, data: Data) -> nn.Module:
        (length,) = data.input_shape
        assert isinstance(data.modality, TextData)  # load_model has seen to it
        vocabulary = data.modality.vocabulary
        return LanguageModel(vocabulary=vocabulary, length=length, width=self.width, depth=self.depth, heads=self.heads, tied=self.tied)
