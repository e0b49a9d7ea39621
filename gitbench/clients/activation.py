"""Activations by name, as the models' options spell them, and their inverses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}

_SWITCHING = (
    nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ReLU6, nn.RReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.modules.pooling._MaxPoolNd,
)  # fmt: skip


def switches(model: nn.Module) -> bool:
    """Whether gradients of a model jump, where a unit switches."""
    return any(isinstance(module, _SWITCHING) for module in model.modules())


def activation_named(name: str) -> type[nn.Module]:
    """The activation module called ``name``.

    Raises:
        ValueError: unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"expected activation to be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


_SATURATED = 1e-4  # outputs closer to an activation's bounds than this carry no more than noise


def inverse_before(model: nn.Module, layer: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The inverse of the activation whose output ``layer`` reads, or None where there is none.

    Args:
        model: its leaf modules are taken in the order in which they are registered.
        layer: one of them.
    """
    leaves = [module for module in model.modules() if not any(module.children())]
    before = leaves[: next((index for index, module in enumerate(leaves) if module is layer), 0)]  # one with a computed weight is no leaf
    passed_over = (nn.Flatten, nn.Identity, nn.Dropout)
    last = next((module for module in reversed(before) if not isinstance(module, passed_over)), None)
    if isinstance(last, nn.Sigmoid):
        return lambda outputs: outputs.clamp(_SATURATED, 1 - _SATURATED).logit()
    if isinstance(last, nn.Tanh):
        return lambda outputs: outputs.clamp(-1 + _SATURATED, 1 - _SATURATED).atanh()
    return None
