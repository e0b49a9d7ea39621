"""The table of a text model that turns tokens into vectors."""

from __future__ import annotations

import torch
from torch import nn


class TokenEmbedding(nn.Embedding):
    """An embedding that leaves alone what is embedded already: so an attack may search among vectors."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of tokens ``(..., L)`` their vectors ``(..., L, d)``; vectors as they are."""
        return inputs if inputs.is_floating_point() else super().forward(inputs)


def token_table(network: nn.Module, vocabulary: int) -> tuple[str, nn.Embedding] | None:
    """Name and module of a network's token embedding: the first of as many rows as there are tokens; None where there is none."""
    named = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Embedding))
    return next(((name, module) for name, module in named if module.num_embeddings == vocabulary), None)
