"""The table of a text model that turns tokens into vectors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_SOFT = 4.0  # in the variance of the table; by benchmarks/text.py choose. At much less a vector at random is taken for one token


class TokenEmbedding(nn.Embedding):
    """An embedding that leaves alone what is embedded already: so an attack may search among vectors."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Of tokens ``(..., L)`` their vectors ``(..., L, d)``; vectors as they are."""
        return inputs if inputs.is_floating_point() else super().forward(inputs)


def token_table(network: nn.Module, vocabulary: int) -> tuple[str, nn.Embedding] | None:
    """Name and module of a network's token embedding: the first of as many rows as there are tokens; None where there is none."""
    named = ((name, module) for name, module in network.named_modules() if isinstance(module, nn.Embedding))
    return next(((name, module) for name, module in named if module.num_embeddings == vocabulary), None)


def next_tokens(inputs: torch.Tensor, table: torch.Tensor, *, end: int) -> torch.Tensor:
    """What a language model is to say from the start on: the tokens ``(N, L + 1)``, and ``end`` after them.

    Of vectors how likely each token is, ``(N, L + 1, vocabulary)``, by the distance from it: differentiable.

    Args:
        inputs: tokens ``(N, L)``, or vectors ``(N, L, d)``.
        table: the vectors of all tokens.
        end: the token after the last.
    """
    if not inputs.is_floating_point():
        return functional.pad(inputs, (0, 1), value=end)
    near = (inputs @ table.T - table.square().sum(1) / 2) / (_SOFT * table.var())
    last = torch.full((*inputs.shape[:-2], 1), end, device=inputs.device)
    return torch.cat([near.softmax(-1), functional.one_hot(last, len(table)).to(inputs)], dim=-2)
