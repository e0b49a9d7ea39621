"""A small recurrent text classifier that reads in both directions."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.data import Data
from gitbench.clients.modalities.text import TextData
from gitbench.clients.model import ModelFactory
from gitbench.clients.token_embedding import TokenEmbedding


class LstmDirection(nn.Module):
    """One direction of an LSTM (Hochreiter and Schmidhuber 1997), written out: torch's own has no form that is batched over victims.

    Args:
        inputs: width of what is read.
        hidden: width of the state.
        backwards: reads from the end.
    """

    def __init__(self, inputs: int, hidden: int, *, backwards: bool) -> None:
        super().__init__()
        self.backwards = backwards
        self.read = nn.Linear(inputs, 4 * hidden)
        self.recur = nn.Linear(hidden, 4 * hidden, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Vectors ``(..., L, inputs)`` to states ``(..., L, hidden)``."""
        read = self.read(inputs)
        hidden = read.new_zeros((*read.shape[:-2], self.recur.in_features))
        cell, states = hidden, list[torch.Tensor]()
        for place in reversed(range(read.shape[-2])) if self.backwards else range(read.shape[-2]):
            taken, kept, new, shown = (read[..., place, :] + self.recur(hidden)).chunk(4, dim=-1)
            cell = kept.sigmoid() * cell + taken.sigmoid() * new.tanh()
            hidden = shown.sigmoid() * cell.tanh()
            states.append(hidden)
        return torch.stack(states[::-1] if self.backwards else states, dim=-2)


class LstmClassifier(nn.Module):
    """Embeddings, an LSTM in each direction, a linear head on the mean over positions of both."""

    def __init__(self, *, vocabulary: int, width: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.tokens = TokenEmbedding(vocabulary, width)
        self.forwards = LstmDirection(width, hidden, backwards=False)
        self.backwards = LstmDirection(width, hidden, backwards=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Tokens ``(N, L)``, or their vectors, to logits ``(N, classes)``."""
        vectors = self.tokens(inputs)
        found: torch.Tensor = self.head(torch.cat([self.forwards(vectors), self.backwards(vectors)], dim=-1).mean(-2))
        return found


class BiLstm(ModelFactory):
    """A bidirectional LSTM that classifies texts. It has no positions and no attention.

    Args:
        width: of the token embedding.
        hidden: of each direction's state.
    """

    name = "bilstm"
    modality = "text"

    def __init__(self, *, width: int = 64, hidden: int = 64) -> None:
        if not all(type(one) is int and one > 0 for one in (width, hidden)):
            raise ValueError(f"expected width and hidden to be whole numbers > 0, got {width!r}, {hidden!r}")
        self.width = width
        self.hidden = hidden

    def build(self, data: Data) -> nn.Module:
        assert isinstance(data.modality, TextData)  # load_model has seen to it
        return LstmClassifier(vocabulary=data.modality.vocabulary, width=self.width, hidden=self.hidden, classes=data.classes)
