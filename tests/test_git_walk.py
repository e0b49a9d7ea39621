"""The walk that `git` fits on public images."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import gitbench
from gitbench.attacker.attacks.git.attack import Git
from gitbench.attacker.attacks.git.walk import StepNoise
from gitbench.attacker.attacks.git.walk_fit import fit_walk
from gitbench.attacker.layers.chain import read_chain
from gitbench.clients.client import client_update, gradients
from gitbench.core.progress import silent
from gitbench.core.random import make_generator, seeded
from helpers import make_data


@pytest.mark.parametrize("sent", [1.0, 0.6])
def test_the_features_of_a_fit_are_those_of_the_walk_that_it_found(sent: float) -> None:
    data = make_data(size=16, public=60)
    model = gitbench.load_model("lenet", data)
    inputs, labels = data.public.inputs[:40], data.public.labels[:40]
    update = gradients(model, inputs[:, None], labels[:, None])
    chain = read_chain(model, tuple(data.input_shape))
    assert chain is not None
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    noise = StepNoise(dict.fromkeys(update.tensors, 0.0), dict.fromkeys(update.tensors, sent))
    shown = {"updates": update.tensors, "raw": update.tensors, "inputs": inputs, "progress": silent}
    walk, features = fit_walk(chain, weights, noise, held=torch.arange(40) >= 32, **shown)
    assert features.shape[0] == 40
    torch.testing.assert_close(walk.features(update.tensors), features, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("hidden", [(24,), (24, 16)])
def test_what_a_bias_would_tell_follows_from_the_recursion(hidden: tuple[int, ...]) -> None:
    data = make_data(size=16, public=600)
    layers: list[nn.Module] = [nn.Flatten()]
    with seeded(make_generator(0)):
        for before, width in pairwise((data.public.inputs[0].numel(), *hidden)):
            layers += [nn.Linear(before, width, bias=len(layers) == 1), nn.Sigmoid()]
        model = nn.Sequential(*layers, nn.Linear(hidden[-1], data.classes, bias=False))
    inputs, labels = data.private.inputs[:8, None], data.private.labels[:8, None]
    update = client_update(model, inputs, labels)
    observation = gitbench.Observation(update=update, model=model, input_shape=data.input_shape, public=data.public)
    found = Git(variant="exact", epochs=1, width=16)(observation, generator=make_generator(0)).inputs
    assert float(gitbench.score(found, inputs)["psnr"].mean()) > 40
