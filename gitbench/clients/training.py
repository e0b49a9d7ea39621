"""Plain supervised training, as a client or the owner of a model would do it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from gitbench.clients.data import Split
from gitbench.clients.loss import mean_loss
from gitbench.clients.trained import trained_parameters
from gitbench.core.random import seeded


def train(
    model: nn.Module,
    split: Split,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    generator: torch.Generator,
    optimizer: Literal["sgd", "adam"] = "sgd",
) -> None:
    """Train ``model`` in place with cross-entropy on ``split``, in an order drawn from ``generator``; what is frozen stays."""
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer]
    stepper = kind(trained_parameters(model).values(), lr=lr)
    was_training = model.training
    model.train()
    with seeded(generator):  # dropout can only be seeded globally
        for _ in range(epochs):
            for chosen in torch.randperm(len(split), generator=generator).split(batch_size):
                index = chosen.to(split.inputs.device)
                stepper.zero_grad()
                mean_loss(model(split.inputs[index]), split.labels[index]).backward()
                stepper.step()
    model.zero_grad()
    model.train(was_training)
