"""Signs of a gradient tell on which side of nothing its entries lie: auto searches the likeliest image given that."""

from __future__ import annotations

import pytest
import torch

from gitbench import Data, Observation, Update, client_update, load_defense, load_model
from gitbench.attacker.attacks.auto.signs import from_signs, sends_signs
from gitbench.attacker.tools.priors import of_spectrum
from gitbench.core.random import make_generator
from helpers import make_data


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data(size=8, public=160)


def sent(data: Data, spec: str, *, size: int = 1) -> Observation:
    model, defense = load_model("lenet", data), load_defense(spec)
    inputs, labels = (tensor[: 4 * size].unflatten(0, (4, size)) for tensor in (data.private.inputs, data.private.labels))
    update = client_update(model, inputs, labels, defense=defense, generator=make_generator(0))
    return Observation(update=update, model=model, input_shape=data.input_shape, batch_size=size, public=data.public, defense=defense)


@pytest.mark.parametrize("spec", ["sign()", "sign(scaled=True)"])
@pytest.mark.parametrize("size", [1, 2])
def test_images_are_found_from_signs(data: Data, spec: str, size: int) -> None:
    observation = sent(data, spec, size=size)
    assert sends_signs(observation.update)
    labels, told = data.private.labels[: 4 * size].reshape(4, size), list[tuple[int, int]]()
    found = from_signs(
        observation, labels, of_spectrum(data.public.inputs), iterations=20, tell=lambda done, total: told.append((done, total))
    )
    truth = data.private.inputs[: 4 * size].reshape(found.shape)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    blind = (data.public.inputs.mean(0) - truth).square().mean()
    assert (found - truth).square().mean() < blind / (2 if size == 1 else 1)
    assert told[-1] == (120, 120)


@pytest.mark.parametrize("spec", ["none", "pruning(rate=0.9)", "gaussian_noise(std=0.1)", "quantization(bits=2)"])
def test_other_updates_are_more_than_signs(data: Data, spec: str) -> None:
    assert not sends_signs(sent(data, spec).update)


def test_an_update_of_zeros_says_nothing() -> None:
    assert not sends_signs(Update({"weight": torch.zeros(2, 3)}))
    assert sends_signs(Update({"weight": torch.tensor([[1.0, -1, 0], [2, 2, -2]]), "bias": torch.tensor([[3.0], [-4]])}))
