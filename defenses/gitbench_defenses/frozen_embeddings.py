"""Frozen embeddings: what turns tokens into vectors does not train, so that nothing of it is sent."""

from __future__ import annotations

import copy

from torch import nn

from gitbench.clients.defense import Defense


class FrozenEmbeddings(Defense):
    """Freezes every ``torch.nn.Embedding``: the rows of its gradient would name the tokens of a batch.

    Server and client share the frozen model. One without such a layer stays as it is, and its updates with it.
    """

    name = "frozen_embeddings"

    def modify_model(self, model: nn.Module) -> nn.Module:
        frozen = copy.deepcopy(model)
        for module in frozen.modules():
            if isinstance(module, nn.Embedding):
                module.requires_grad_(False)
        return frozen
