"""A defense of a few lines."""

from __future__ import annotations

import gitbench


class Signs(gitbench.Defense):
    """Sends the signs of the gradient, as signSGD does.

    Args:
        scale: what each of them counts.
    """

    name = "signs"

    def __init__(self, *, scale: float = 1.0) -> None:
        self.scale = scale

    def protect(self, update, *, generator) -> gitbench.Update:
        return update.map(lambda name, tensor: self.scale * tensor.sign())
