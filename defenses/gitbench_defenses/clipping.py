"""Clipping of the whole update to a norm."""

from __future__ import annotations

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update


class Clipping(Defense):
    """Scales each victim's averaged gradient down to an L2 norm of at most ``max_norm``, over all tensors.

    Args:
        max_norm: largest L2 norm that is sent.
    """

    name = "clipping"

    def __init__(self, *, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"expected max_norm > 0, got {max_norm}")
        self.max_norm = max_norm

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(max_norm=self.max_norm)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return self.expected(update, observed=update)

    def expected(self, update: Update, *, observed: Update) -> Update:
        flat = update.flatten()
        scale = (self.max_norm / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        return update.like(flat * scale)
