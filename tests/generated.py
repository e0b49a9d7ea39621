"""What tests of attacks with a generator share: an observation, and what an attack makes of it."""

from __future__ import annotations

import torch

import gitbench
from gitbench import Observation
from gitbench.clients.data import Data
from gitbench.core.random import make_generator


def observe(data: Data, *, victims: int = 3, batch: int = 1, defense: str | None = None) -> Observation:
    model = gitbench.load_model("mlp", data)
    inputs = data.private.inputs[: victims * batch].reshape(victims, batch, *data.input_shape)
    labels = data.private.labels[: victims * batch].reshape(victims, batch)
    update = gitbench.client_update(model, inputs, labels, defense=defense, generator=make_generator(3))
    return Observation(update=update, model=model, input_shape=data.input_shape, batch_size=batch, public=data.public, defense=defense)


def run(attack: gitbench.Attack, observation: Observation) -> torch.Tensor:
    return attack(observation, generator=make_generator(0)).inputs
