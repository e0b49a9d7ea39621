"""The blocks of any model, for GIT by modules: no graph is needed, only the order in which they run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Module:
    """One block of Module-GIT, and the names of its parameters."""

    name: str
    parameters: tuple[str, ...]


def modules(architecture: nn.Module, input_shape: tuple[int, ...]) -> tuple[Module, ...]:
    """The blocks of any model in the order in which they run, traceable or not.

    Sequences and lists are opened, and so is a wrapper around a single block; what remains is a block. The
    parameters that an opened module holds itself (a class token) are a block that stands before its children. A parameter
    that several blocks share belongs to the first, under whose name it is sent.

    Args:
        architecture: on the ``meta`` device.
        input_shape: ``(C, H, W)``, for the run that tells the order; where a model cannot be run on the ``meta``
            device, the order is that of registration.
    """
    sent = {name for name, parameter in architecture.named_parameters() if parameter.requires_grad}
    named = ((name, tuple(own for own in parameters if own in sent)) for name, parameters in _blocks(architecture, ""))
    blocks = [(name, own) for name, own in named if own]
    order = _order(architecture, [name for name, _ in blocks], input_shape)
    return tuple(
        Module(name or "parameters", names) for _, (name, names) in sorted(zip(order, blocks, strict=True), key=lambda pair: pair[0])
    )


def _blocks(module: nn.Module, name: str, *, opened: bool = True) -> Iterator[tuple[str, tuple[str, ...]]]:
    prefix = f"{name}." if name else ""
    if not opened and not isinstance(module, nn.Sequential | nn.ModuleList):
        yield name, tuple(f"{prefix}{parameter}" for parameter, _ in module.named_parameters())
        return
    own = tuple(f"{prefix}{parameter}" for parameter, _ in module.named_parameters(recurse=False))
    if own:
        yield name, own
    children = [(child, found) for child, found in module.named_children() if any(True for _ in found.parameters())]
    alone = opened and len(children) == 1 and not own
    for child, found in children:
        yield from _blocks(found, f"{prefix}{child}", opened=alone)


def _order(architecture: nn.Module, names: list[str], input_shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """A key to sort by for each block: when it first ran, or else after the block that is registered before it."""
    seen: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            seen.setdefault(name, len(seen))

        return hook

    handles = [architecture.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names]
    # A model of any make: what it raises here says nothing about its gradients, and what ran has its order.
    with contextlib.suppress(Exception), torch.no_grad():
        architecture(torch.zeros(1, *input_shape, device="meta"))
    for handle in handles:
        handle.remove()
    keys: list[tuple[int, int]] = []
    latest = -1
    for index, name in enumerate(names):
        latest = seen.get(name, latest if seen else index)
        keys.append((latest, index))
    return keys
