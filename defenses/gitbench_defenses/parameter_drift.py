"""Parameter drift: the attacker's copy of the parameters is stale."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gitbench.clients.data import Split
from gitbench.clients.defense import Defense
from gitbench.clients.training import train
from gitbench.clients.update import Update
from gitbench.core.errors import DefenseError


class ParameterDrift(Defense):
    """A condition, not a defense: the client has trained on before it takes its gradient.

    The attacker keeps the parameters from before. The local samples are drawn from the public split,
    as a stand-in for the client's other data: no victim is ever trained on.

    Args:
        epochs: local epochs.
        samples: local examples.
        lr: learning rate of the local SGD.
        batch_size: of the local SGD.
    """

    name = "parameter_drift"

    def __init__(self, *, epochs: int, samples: int, lr: float = 0.01, batch_size: int = 32) -> None:
        if min(epochs, samples) < 0 or batch_size < 1 or not lr > 0:
            raise ValueError(f"expected epochs, samples >= 0, lr > 0, batch_size >= 1, got {epochs}, {samples}, {lr}, {batch_size}")
        self.epochs = epochs
        self.samples = samples
        self.lr = lr
        self.batch_size = batch_size

    def local_model(self, model: nn.Module, *, public: Split | None, generator: torch.Generator) -> nn.Module:
        if public is None or self.samples > len(public):
            have = "none" if public is None else str(len(public))
            raise DefenseError(f"{self!r} needs {self.samples} public images to train on, got {have}. Lower samples, or pass public=.")
        drifted = copy.deepcopy(model)
        chosen = torch.randperm(len(public), generator=generator)[: self.samples].to(public.inputs.device)
        local = Split(public.inputs[chosen], public.labels[chosen])
        train(drifted, local, epochs=self.epochs, lr=self.lr, batch_size=self.batch_size, generator=generator)
        return drifted

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return update
