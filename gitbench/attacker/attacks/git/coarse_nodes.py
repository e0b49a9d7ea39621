"""The nodes of the coarse chain: the model's layers, or its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from gitbench.attacker.layers.blocks import modules
from gitbench.attacker.layers.graph import Step, steps
from gitbench.core.errors import AttackError


@dataclass(frozen=True)
class Node:
    """A layer or a module of the chain: its parameters, and the nodes (by index, all before it) that it feeds."""

    name: str
    parameters: tuple[str, ...]
    feeds: tuple[int, ...]


def layers_of(architecture: nn.Module, input_shape: tuple[int, ...], *, module: bool) -> tuple[Step, ...]:
    """The model's layers; none where it cannot be traced and blocks (``module``) need no graph.

    What the graph would show in closed form is then left out.

    Raises:
        AttackError: it cannot be traced, and ``module`` is False.
    """
    try:
        return steps(architecture, input_shape)
    except AttackError:
        if not module:
            raise
        return ()


def layer_nodes(layers: Sequence[Step]) -> tuple[Node, ...]:
    """One node for each layer."""
    place = {layer.name: index for index, layer in enumerate(layers)}
    return tuple(Node(layer.name, layer.parameters, tuple(place[name] for name in layer.feeds)) for layer in layers)


def module_nodes(architecture: nn.Module, input_shape: tuple[int, ...]) -> tuple[Node, ...]:
    """One node for each block, in a row."""
    found = modules(architecture, input_shape)[::-1]
    return tuple(Node(block.name, block.parameters, (index - 1,) if index else ()) for index, block in enumerate(found))
