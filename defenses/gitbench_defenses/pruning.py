"""Magnitude pruning of the update."""

from __future__ import annotations

from typing import Literal

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update


class Pruning(Defense):
    """Sets the smallest entries to zero: a 0/1 mask, the dimension does not change.

    Args:
        rate: share of entries set to zero, in [0, 1].
        scope: ``global`` ranks all entries of a victim together, ``layer`` each tensor by itself.
    """

    name = "pruning"

    def __init__(self, *, rate: float, scope: Literal["global", "layer"] = "global") -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"expected rate in [0, 1], got {rate}")
        if scope not in ("global", "layer"):
            raise ValueError(f"expected scope 'global' or 'layer', got {scope!r}")
        self.rate = rate
        self.scope = scope

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(zeroed=self.rate)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        if self.scope == "global":
            flat = update.flatten()
            return update.like(flat * self._mask(flat))
        return update.map(lambda _, tensor: tensor * self._mask(tensor.flatten(1)).reshape(tensor.shape))

    def expected(self, update: Update, *, observed: Update) -> Update:
        # Which entries survived is visible in what was sent.
        return update.map(lambda name, tensor: tensor * (observed.tensors[name] != 0))

    def _mask(self, flat: torch.Tensor) -> torch.Tensor:
        kept = flat.shape[1] - round(self.rate * flat.shape[1])
        mask = torch.zeros_like(flat)
        return mask.scatter_(1, flat.abs().topk(kept, dim=1, sorted=False).indices, 1.0)
