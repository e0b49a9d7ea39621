"""Layers that draw random numbers which only a client knows, and that may add a term to the loss it differentiates."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch import nn

from gitbench.core.random import derived_seed, seeded_by


class Stochastic(nn.Module):
    """Base of layers that draw for every update anew. A subclass calls :meth:`noise` in its ``forward``.

    A client computes with a copy of the model that draws (:func:`drawing`). Whoever else has the model, the attacker above all,
    computes with the mean: there the noise is zero.
    """

    seed: int | None = None
    """Of a client's own copy; None where nothing is drawn."""
    drawn: int = 0
    """How often this copy has drawn: each forward pass draws afresh."""

    def noise(self, like: torch.Tensor) -> torch.Tensor:
        """Standard normal numbers of the shape of a tensor ``(B, ...)``, others for each victim of a stack; zeros at the mean."""
        if self.seed is None:
            return torch.zeros_like(like)
        self.drawn += 1
        # torch.func.vmap takes no generator, but draws from the global state for each victim by itself.
        with seeded_by(derived_seed(self.seed, str(self.drawn))):
            return torch.randn(like.shape, dtype=like.dtype).to(like.device)

    def penalty(self, inputs: torch.Tensor) -> torch.Tensor:
        """What is added to the mean cross-entropy of a batch, given what this layer reads of it. Nothing by default."""
        return inputs.new_zeros(())


def stochastic_layers(model: nn.Module) -> list[Stochastic]:
    """The layers of a model that draw."""
    return [module for module in model.modules() if isinstance(module, Stochastic)]


def drawing(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """A client's copy of a model, for one update: its layers draw, from ``generator``. The model itself where it has no such layers."""
    if not stochastic_layers(model):
        return model
    copied = copy.deepcopy(model)
    for layer in stochastic_layers(copied):
        layer.seed = int(torch.randint(2**62, (), generator=generator))
        layer.drawn = 0
    return copied


@contextlib.contextmanager
def penalties(layers: list[Stochastic]) -> Iterator[list[torch.Tensor]]:
    """The penalties of some layers in what is computed inside the block."""
    found: list[torch.Tensor] = []

    def add(layer: nn.Module, arguments: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        assert isinstance(layer, Stochastic)
        found.append(layer.penalty(*arguments))

    handles = [layer.register_forward_hook(add) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
