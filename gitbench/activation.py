"""Activations by name, as the models' options spell them."""

from __future__ import annotations

from torch import nn

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
}


def activation_named(name: str) -> type[nn.Module]:
    """The activation module called ``name``.

    Raises:
        ValueError: unknown.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"expected activation to be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]
