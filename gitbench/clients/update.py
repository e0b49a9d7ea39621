"""What a client sends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch


@dataclass(frozen=True)
class Update:
    """The gradients of a stack of victims.

    Args:
        tensors: parameter name to tensor ``(V, *parameter.shape)``, averaged over each victim's batch.
        per_example: the same with one more dimension, ``(V, B, *parameter.shape)``, where a defense
            asked for it; None otherwise, and None once a defense has changed the average.
    """

    tensors: Mapping[str, torch.Tensor]
    per_example: Mapping[str, torch.Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        if self.per_example is not None:
            object.__setattr__(self, "per_example", MappingProxyType(dict(self.per_example)))

    @property
    def victims(self) -> int:
        """How many victims are stacked."""
        return next(iter(self.tensors.values())).shape[0]

    def map(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Update:
        """A new update with ``function(name, tensor)`` in place of each tensor."""
        return Update({name: function(name, tensor) for name, tensor in self.tensors.items()})

    def detach(self) -> Update:
        """A copy that remembers nothing of how it was computed."""
        every = None if self.per_example is None else {name: tensor.detach().clone() for name, tensor in self.per_example.items()}
        return Update({name: tensor.detach().clone() for name, tensor in self.tensors.items()}, every)

    def flatten(self) -> torch.Tensor:
        """All tensors side by side: ``(V, D)``."""
        return torch.cat([tensor.flatten(1) for tensor in self.tensors.values()], dim=1)

    def like(self, flat: torch.Tensor) -> Update:
        """The inverse of :meth:`flatten`: a new update with these shapes and the values of ``flat``."""
        sizes = [tensor[0].numel() for tensor in self.tensors.values()]
        pieces = flat.split(sizes, dim=1)
        shaped = zip(self.tensors.items(), pieces, strict=True)
        return Update({name: piece.reshape(tensor.shape) for (name, tensor), piece in shaped})
