"""How much a model's layers compute of one image, known before anything runs."""

from __future__ import annotations

import math

import torch
from torch import nn

_GUESSED = 64  # times the image's entries, of a model that does not run without values


def activations_of(architecture: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Entries of what all layers return of one image.

    Args:
        architecture: the model on the ``meta`` device.
        input_shape: ``(C, H, W)``.
    """
    counts: list[int] = []

    def count(_module: nn.Module, _arguments: object, found: object) -> None:
        if isinstance(found, torch.Tensor):
            counts.append(found.numel())

    leaves = [module for module in architecture.modules() if not any(True for _ in module.children())]
    handles = [module.register_forward_hook(count) for module in leaves]
    try:
        with torch.no_grad():
            architecture(torch.zeros(1, *input_shape, device="meta"))
    except Exception:  # noqa: BLE001 - a user's model may do anything that needs values
        return _GUESSED * math.prod(input_shape)
    finally:
        for handle in handles:
            handle.remove()
    return sum(counts)
