"""What a model learns: the labels of the data, or something that follows from the inputs themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from gitbench.clients.data import Data, Split
from gitbench.core.errors import ModelError


def own_targets(model: nn.Module) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """What a model has as ``targets(inputs)``, where it learns something of the inputs alone (the next token, say); else None.

    Of inputs ``(N, *shape)`` it returns class indices ``(N, positions)`` for the logits ``(N, positions, classes)``, and of their
    continuous form probabilities ``(N, positions, classes)``. Such a model says how many as ``target_classes``.
    """
    found: Callable[[torch.Tensor], torch.Tensor] | None = getattr(model, "targets", None)
    return found


def data_for(model: nn.Module, data: Data) -> Data:
    """The data with the labels that a model learns.

    Raises:
        ModelError: it makes targets, and does not say of how many classes.
    """
    targets = own_targets(model)
    if targets is None:
        return data
    classes = getattr(model, "target_classes", None)
    if not isinstance(classes, int):
        raise ModelError(f"{type(model).__name__} has targets(), expected an attribute target_classes beside it, got {classes!r}.")

    def relabelled(split: Split) -> Split:
        return Split(split.inputs, targets(split.inputs))

    return replace(data, public=relabelled(data.public), private=relabelled(data.private), classes=classes)


def targets_for(model: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """The targets of candidates ``(V, B, *shape)``, where they follow from them.

    Raises:
        ModelError: they do not.
    """
    targets = own_targets(model)
    if targets is None:
        raise ModelError(f"{type(model).__name__} has no targets(), so that labels do not follow from its inputs.")
    found: torch.Tensor = targets(inputs.flatten(0, 1)).unflatten(0, inputs.shape[:2])
    return found
