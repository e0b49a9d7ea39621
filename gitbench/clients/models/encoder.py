"""A small text classifier that reads in both directions."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.data import Data
from gitbench.clients.modalities.text import TextData
from gitbench.clients.model import ModelFactory
from gitbench.clients.token_embedding import TokenEmbedding
from gitbench.clients.transformer_blocks import STD, TransformerBlock, check_sizes


class TextClassifier(nn.Module):
    """As BERT is used: embeddings, learned positions, blocks that see the whole sequence, a linear head on the mean over positions."""

    def __init__(self, *, vocabulary: int, length: int, width: int, depth: int, heads: int, classes: int) -> None:
        super().__init__()
        self.tokens = TokenEmbedding(vocabulary, width)
        self.positions = nn.Parameter(STD * torch.randn(length, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)
        nn.init.normal_(self.tokens.weight, std=STD)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Tokens ``(N, L)``, or their vectors, to logits ``(N, classes)``."""
        found: torch.Tensor = self.head(self.norm(self.blocks(self.tokens(inputs) + self.positions)).mean(-2))
        return found


class Encoder(ModelFactory):
    """A BERT-like classifier of texts.

    Args:
        width: of every layer.
        depth: blocks.
        heads: of the attention.
    """

    name = "encoder"
    modality = "text"

    def __init__(self, *, width: int = 64, depth: int = 2, heads: int = 4) -> None:
        check_sizes(width, depth, heads)
        self.width = width
        self.depth = depth
        self.heads = heads

    def build(self, data: Data) -> nn.Module:
        (length,) = data.input_shape
        assert isinstance(data.modality, TextData)  # load_model has seen to it
        vocabulary = data.modality.vocabulary
        return TextClassifier(
            vocabulary=vocabulary, length=length, width=self.width, depth=self.depth, heads=self.heads, classes=data.classes
        )
