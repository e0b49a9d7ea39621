"""Pruning of the update, by magnitude or at random."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.largest import largest
from gitbench.clients.update import Update


class Pruning(Defense):
    """Sets entries to zero, the smallest or any: a 0/1 mask, the dimension does not change.

    Args:
        rate: share of entries set to zero, in [0, 1].
        scope: ``global`` ranks all entries of a victim together, ``layer`` each tensor by itself.
        by: ``magnitude`` zeroes the smallest entries, ``random`` draws which, anew in each round.
    """

    name = "pruning"

    def __init__(
        self, *, rate: float, scope: Literal["global", "layer"] = "global", by: Literal["magnitude", "random"] = "magnitude"
    ) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"expected rate in [0, 1], got {rate}")
        if scope not in ("global", "layer"):
            raise ValueError(f"expected scope 'global' or 'layer', got {scope!r}")
        if by not in ("magnitude", "random"):
            raise ValueError(f"expected by 'magnitude' or 'random', got {by!r}")
        self.rate = rate
        self.scope = scope
        self.by = by

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(zeroed=self.rate)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        if self.scope == "global":
            flat = update.flatten()
            return update.like(flat * self._mask(flat, generator))
        return update.map(lambda _, tensor: tensor * self._mask(tensor.flatten(1), generator).reshape(tensor.shape))

    def expected(self, update: Update, *, observed: Update) -> Update:
        # Which entries survived is visible in what was sent.
        return update.map(lambda name, tensor: tensor * (observed.tensors[name] != 0))

    def combined(self, updates: Iterable[Update]) -> Update:
        # Random masks hide an entry only until it is drawn. A mask by magnitude says that an entry is small, which is no reason to
        # leave its zeros out of the mean: where noise came before, they differ from round to round.
        return Update.mean(updates, skip_zeros=self.by == "random")

    def _mask(self, flat: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        kept = flat.shape[1] - round(self.rate * flat.shape[1])
        return largest(flat.abs() if self.by == "magnitude" else torch.rand(flat.shape, generator=generator).to(flat.device), kept)
