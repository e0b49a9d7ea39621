"""What a client sends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import nn


@dataclass(frozen=True)
class Batch:
    """What a client has when it protects its update, for a defense that asks for it.

    Args:
        model: that the client differentiated.
        inputs: ``(V, B, C, H, W)``.
        labels: ``(V, B)``; an attacker's may be probabilities, ``(V, B, classes)``, and so are those of a defense that mixes them.
    """

    model: nn.Module
    inputs: torch.Tensor
    labels: torch.Tensor

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        """The same client with ``function`` of its images and of its labels."""
        return Batch(self.model, function(self.inputs), function(self.labels))


@dataclass(frozen=True)
class Update:
    """The gradients of a stack of victims.

    Args:
        tensors: parameter name to tensor ``(V, *parameter.shape)``, averaged over each victim's batch.
        per_example: the same with one more dimension, ``(V, B, *parameter.shape)``, where a defense
            asked for it; None otherwise, and None once a defense has changed the average.
        batch: what the clients computed it from, where a defense asked for it; None otherwise.
    """

    tensors: Mapping[str, torch.Tensor]
    per_example: Mapping[str, torch.Tensor] | None = None
    batch: Batch | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(self.tensors)))
        if self.per_example is not None:
            object.__setattr__(self, "per_example", MappingProxyType(dict(self.per_example)))

    @property
    def victims(self) -> int:
        """How many victims are stacked."""
        return len(self)

    def __len__(self) -> int:
        return next((len(tensor) for tensor in self.tensors.values()), 0)

    def __getitem__(self, rows: slice | torch.Tensor) -> Update:
        """The updates of some victims, those of their examples with them; a slice gives views.

        Args:
            rows: a slice, or a tensor of indices ``(N,)`` or of booleans ``(V,)``.
        """
        found = self.map_all(lambda tensor: tensor[rows])
        return found if self.batch is None else found.of(self.batch.map(lambda tensor: tensor[rows]))

    def of(self, batch: Batch | None) -> Update:
        """The same update with what it was computed from."""
        return replace(self, batch=batch)

    @classmethod
    def cat(cls, updates: Sequence[Update]) -> Update:
        """The victims of several updates in one stack. Examples are kept where all updates have them."""
        first = updates[0]
        if len(updates) == 1:
            return first
        every = [update.per_example for update in updates if update.per_example is not None]
        batches = [update.batch for update in updates if update.batch is not None]
        return cls(
            {name: torch.cat([update.tensors[name] for update in updates]) for name in first.tensors},
            {name: torch.cat([each[name] for each in every]) for name in every[0]} if len(every) == len(updates) else None,
            joined(batches) if len(batches) == len(updates) else None,
        )

    @classmethod
    def mean(cls, updates: Iterable[Update], *, skip_zeros: bool = False) -> Update:
        """The mean of several updates of the same victims, entry by entry; the update itself where all are one object.

        Args:
            updates: at least one. They are taken one after the other, so that only one more has to be in memory.
            skip_zeros: take each entry's mean over the updates in which it is not zero; it stays zero where it always is.
        """
        one_by_one = iter(updates)
        first = next(one_by_one)
        alike, total, counts = 1, dict[str, torch.Tensor](), dict[str, torch.Tensor | int]()
        for update in one_by_one:
            if update is first and not total:
                alike += 1
                continue
            if not total:
                total = {name: tensor * alike for name, tensor in first.tensors.items()}
                counts = {name: (tensor != 0) * alike if skip_zeros else alike for name, tensor in first.tensors.items()}
            for name, tensor in update.tensors.items():
                total[name] += tensor
                counts[name] = counts[name] + ((tensor != 0) if skip_zeros else 1)
        if not total:
            return first
        return cls({name: tensor / torch.as_tensor(counts[name], device=tensor.device).clamp_min(1) for name, tensor in total.items()})

    def map_all(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Update:
        """A new update with ``function(tensor)`` in place of each tensor, those of single examples too, of the same batch."""
        every = None if self.per_example is None else {name: function(tensor) for name, tensor in self.per_example.items()}
        return Update({name: function(tensor) for name, tensor in self.tensors.items()}, every, self.batch)

    def map(self, function: Callable[[str, torch.Tensor], torch.Tensor]) -> Update:
        """A new update with ``function(name, tensor)`` in place of each tensor."""
        return Update({name: function(name, tensor) for name, tensor in self.tensors.items()})

    def detach(self) -> Update:
        """A copy that remembers nothing of how it was computed."""
        found = self.map_all(lambda tensor: tensor.detach().clone())
        return found if self.batch is None else found.of(self.batch.map(torch.Tensor.detach))

    def flatten(self) -> torch.Tensor:
        """All tensors side by side: ``(V, D)``."""
        return torch.cat([tensor.flatten(1) for tensor in self.tensors.values()], dim=1)

    def like(self, flat: torch.Tensor) -> Update:
        """The inverse of :meth:`flatten`: a new update with these shapes and the values of ``flat``."""
        sizes = [tensor[0].numel() for tensor in self.tensors.values()]
        pieces = flat.split(sizes, dim=1)
        shaped = zip(self.tensors.items(), pieces, strict=True)
        return Update({name: piece.reshape(tensor.shape) for (name, tensor), piece in shaped})


def joined(batches: Sequence[Batch]) -> Batch:
    """Several batches of one model in one stack."""
    return Batch(batches[0].model, torch.cat([one.inputs for one in batches]), torch.cat([one.labels for one in batches]))


def per_victim(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Values ``(V,)`` in the dimensions of a tensor ``(V, ...)``, to be multiplied by it."""
    return values.reshape(-1, *[1] * (like.ndim - 1))


def mean_of_clipped(per_example: Mapping[str, torch.Tensor], max_norm: float) -> Update:
    """The mean of examples' gradients ``(V, B, *shape)``, each scaled by Opacus's ``min(1, max_norm / (norm + 1e-6))``; differentiable."""
    norms = torch.stack([tensor.flatten(2).norm(dim=2) for tensor in per_example.values()]).norm(dim=0)
    scale = (max_norm / (norms + 1e-6)).clamp_max(1.0)
    share = scale[:, None] / scale.shape[1]
    return Update({name: (share @ each.flatten(2)).reshape(len(each), *each.shape[2:]) for name, each in per_example.items()})
