"""OUTPOST: noise where the gradient says most, less of it as training goes on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from gitbench.clients.defense import Defense
from gitbench.clients.largest import largest
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Update, per_victim
from gitbench.core.errors import DefenseError
from gitbench.core.random import randn_like


class Outpost(Defense):
    """Prunes, and adds Gaussian noise where the Fisher information is largest, in some iterations only (Wang et al., INFOCOM 2023).

    The paper is "More than Enough is Too Much: Adaptive Defenses against Gradient Leakage in Production Federated Learning".

    In a share ``1 / (1 + decay * iteration)`` of the updates, drawn for each victim: the smallest ``prune`` of each tensor's entries are
    zeroed, and N(0, (noise * min(1, v))²) is added where the Fisher information is among the largest ``perturbed`` of all, with ``v``
    the variance of that parameter's weights, the risk. The Fisher information of an entry is the square of the gradient, averaged over
    the tensor's first dimension. Other updates are sent raw.

    From the authors' code in Plato (``examples/gradient_leakage_attacks/defense/Outpost``), in a form that returns what it computed: a
    later one there returns its argument. They take percentiles; here as many entries as the shares say, the same but for rounding and ties.

    What an attacker knows: what was zeroed is visible, and of several rounds :meth:`combined` takes the raw one. Weak by design: a
    share of the updates is raw, and late ones nearly all.

    Args:
        prune: share of each tensor's entries that are zeroed, in [0, 1].
        perturbed: share of all entries of the Fisher information where noise is added, in [0, 1].
        noise: standard deviation of the noise, in variances of the weights.
        decay: how fast perturbation becomes rare.
        iteration: of local training, the first is 1.
    """

    name = "outpost"
    needs_batch = True

    def __init__(self, *, prune: float = 0.8, perturbed: float = 0.4, noise: float = 0.8, decay: float = 0.125, iteration: int = 1) -> None:
        if not (0 <= prune <= 1 and 0 <= perturbed <= 1):
            raise ValueError(f"expected prune and perturbed in [0, 1], got {prune} and {perturbed}")
        if not (noise >= 0 and decay >= 0):
            raise ValueError(f"expected noise >= 0 and decay >= 0, got {noise} and {decay}")
        if not isinstance(iteration, int) or iteration < 0:
            raise ValueError(f"expected iteration >= 0, got {iteration!r}")
        self.prune = prune
        self.perturbed = perturbed
        self.noise = noise
        self.decay = decay
        self.iteration = iteration

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        if update.batch is None:
            raise DefenseError(f"{self!r} needs the client's model, and got an update without its batch.")
        weights = trained_parameters(update.batch.model)
        struck = torch.rand(len(update), generator=generator) < 1 / (1 + self.decay * self.iteration)
        rows = {name: tensor.reshape(len(tensor), tensor.shape[1] if tensor.ndim > 1 else 1, -1) for name, tensor in update.tensors.items()}
        fisher = [tensor.square().mean(1) for tensor in rows.values()]
        every = torch.cat(fisher, dim=1)
        chosen = largest(every, round(self.perturbed * every.shape[1])).split([part.shape[1] for part in fisher], dim=1)
        places = dict(zip(rows, chosen, strict=True))

        def perturbed(name: str, tensor: torch.Tensor) -> torch.Tensor:
            noise = self.noise * risk(weights[name]) * randn_like(rows[name], generator) * places[name][:, None]
            flat = tensor.reshape(len(tensor), -1).abs()
            kept = largest(flat, round((1 - self.prune) * flat.shape[1])).reshape(tensor.shape)
            return torch.where(per_victim(struck.to(tensor.device), tensor), tensor * kept + noise.reshape(tensor.shape), tensor)

        return update.map(perturbed)

    def expected(self, update: Update, *, observed: Update) -> Update:
        # What was zeroed and got no noise is visible in what was sent.
        return update.map(lambda name, tensor: tensor * (observed.tensors[name] != 0))

    def combined(self, updates: Iterable[Update]) -> Update:
        # A raw update has more entries than one that was pruned: where there is one, it says all. Pruning is the same in all others.
        one_by_one = iter(updates)
        first = total = next(one_by_one)
        most = _entries(first)
        alike = torch.ones_like(most)
        for update in one_by_one:
            entries = _entries(update)
            total = total.map(_Joined(update, entries, most))
            alike = torch.where(entries > most, 1, alike + (entries == most))
            most = torch.maximum(most, entries)
        return first if total is first else total.map(lambda _name, tensor: tensor / per_victim(alike, tensor))


@dataclass(frozen=True)
class _Joined:
    """A sum of updates with another one: in its place for victims of whom more is seen in it, and left out where less is."""

    update: Update
    entries: torch.Tensor
    most: torch.Tensor

    def __call__(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        other = self.update.tensors[name]
        total = torch.where(per_victim(self.entries == self.most, tensor), tensor + other, tensor)
        return torch.where(per_victim(self.entries > self.most, tensor), other, total)


def _entries(update: Update) -> torch.Tensor:
    """That are not zero, ``(V,)``."""
    counts = [(tensor != 0).reshape(len(tensor), -1).sum(1) for tensor in update.tensors.values()]
    return torch.stack(counts).sum(0) if counts else torch.zeros(0)


def risk(parameter: torch.Tensor) -> float:
    """The variance of a parameter's weights, at most 1; zero of a single one."""
    return min(1.0, float(parameter.detach().double().var())) if parameter.numel() > 1 else 0.0
