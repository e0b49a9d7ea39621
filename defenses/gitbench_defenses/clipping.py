"""Clipping of the update, of its tensors or of its examples to a norm."""

from __future__ import annotations

from typing import Literal

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update, mean_of_clipped
from gitbench.core.errors import DefenseError


class Clipping(Defense):
    """Scales what is longer than ``max_norm`` down to that L2 norm.

    A bound is what noise is measured against; without noise it promises no privacy. A scale for all entries (``global``) hides nothing
    from an attack that matches directions (Geiping et al., arXiv 2003.14053), nor does one for each tensor from one that matches each
    tensor by itself.

    Args:
        max_norm: largest L2 norm, > 0, in the gradient's own units.
        scope: ``global`` clips each victim's averaged gradient, over all tensors; ``layer`` clips each of its tensors by itself;
            ``example`` clips each example's whole gradient before they are averaged, as DP-SGD does (Abadi et al., arXiv 1607.00133), by
            Opacus's ``min(1, max_norm / (norm + 1e-6))``.
    """

    name = "clipping"

    def __init__(self, *, max_norm: float, scope: Literal["global", "layer", "example"] = "global") -> None:
        if not max_norm > 0:
            raise ValueError(f"expected max_norm > 0, got {max_norm}")
        if scope not in ("global", "layer", "example"):
            raise ValueError(f"expected scope 'global', 'layer' or 'example', got {scope!r}")
        self.max_norm = max_norm
        self.scope = scope
        self.needs_per_example = scope == "example"

    def declared(self, *, batch_size: int) -> Declared:
        # Of tensors by themselves the whole is bounded by how many there are, which is the model's.
        return Declared() if self.scope == "layer" else Declared(max_norm=self.max_norm)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return self.expected(update, observed=update)

    def expected(self, update: Update, *, observed: Update) -> Update:
        if self.scope == "example":
            return self._of_examples(update)
        if self.scope == "layer":
            return update.map(lambda _, tensor: self._clipped(tensor.flatten(1)).reshape(tensor.shape))
        return update.like(self._clipped(update.flatten()))

    def _clipped(self, flat: torch.Tensor) -> torch.Tensor:
        scale: torch.Tensor = (self.max_norm / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
        return flat * scale

    def _of_examples(self, update: Update) -> Update:
        if update.per_example is None:
            raise DefenseError(
                f"{self!r} needs every example's gradient, but a defense to its left has changed their average. Put it first."
            )
        return mean_of_clipped(update.per_example, self.max_norm)
