"""What each step of the coarse chain reads of its own gradient: a hash of a fixed size, whatever the model's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.layers.graph import Step, modules, steps
from gitbench.attacker.tools.hashing import Hashing
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.random import make_generator

_PIECE = 2**20  # entries sketched at once
_TINY = 1e-20


@dataclass(frozen=True)
class Node:
    """A layer or a module of the chain: its parameters, and the nodes (by index, all before it) that it feeds."""

    name: str
    parameters: tuple[str, ...]
    feeds: tuple[int, ...]


def layers_of(architecture: nn.Module, input_shape: tuple[int, int, int], *, module: bool) -> tuple[Step, ...]:
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


def module_nodes(architecture: nn.Module, input_shape: tuple[int, int, int]) -> tuple[Node, ...]:
    """One node for each block, in a row."""
    found = modules(architecture, input_shape)[::-1]
    return tuple(Node(block.name, block.parameters, (index - 1,) if index else ()) for index, block in enumerate(found))


class Sketches:
    """A hash for each thing that is hashed, drawn once.

    Args:
        seed: of the signs.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._known: dict[tuple[str, int], Hashing] = {}

    def __call__(self, flat: torch.Tensor, what: str, bins: int) -> torch.Tensor:
        """``(V, D)`` to ``(V, bins)``, or as it is if ``D`` is no more; ``what`` names the signs."""
        entries = flat.shape[1]
        if entries <= bins:
            return flat
        if (what, entries) not in self._known:
            generator = make_generator(self._seed, "sketch", what)
            self._known[what, entries] = Hashing(entries, bins, generator=generator, shuffled=False, device=flat.device)
        return self._known[what, entries](flat)


def sketched(node: Node, update: Update, size: int, hashed: Sketches) -> torch.Tensor:
    """Each parameter's gradient at unit length, side by side and hashed; and the logarithms of the lengths: ``(V, size)``."""
    entries = [math.prod(update.tensors[name].shape[1:]) for name in node.parameters]
    lengths = torch.stack([update.tensors[name].flatten(1).norm(dim=1) for name in node.parameters], dim=1).clamp_min(_TINY)
    total = sum(entries)
    bins = min(max(1, size - len(node.parameters)), total)
    together = max(1, _PIECE // total)
    pieces = []
    for start in range(0, update.victims, together):
        rows = slice(start, start + together)
        units = [
            update.tensors[name][rows].flatten(1) * (math.sqrt(entries[index]) / lengths[rows, index, None])
            for index, name in enumerate(node.parameters)
        ]
        pieces.append(hashed(torch.cat(units, dim=1), node.name, bins))
    found = torch.cat([torch.cat(pieces), lengths.log()], dim=1)[:, :size]
    return functional.pad(found, (0, size - found.shape[1]))
