"""A layer that draws hides nothing of what comes before it: auto attacks the model without that layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gitbench
from gitbench import Data, Observation, client_rounds, client_update, load_attack, load_defense, load_model
from gitbench.attacker.attacks.auto.bottleneck import before_the_bottleneck
from gitbench.clients.client import gradients
from gitbench.clients.output import read_output, take_logits
from gitbench.clients.stochastic import Stochastic
from gitbench.core.random import make_generator
from helpers import make_data

MODEL, SPEC = "mlp(hidden=(12,))", "precode(width=5)"


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data(size=8, public=120)


def observed(data: Data, spec: str = SPEC, *, model: str = MODEL, size: int = 1, client: str = "fedsgd", **options: object) -> Observation:
    defense = load_defense(spec)
    network = defense.modify_model(load_model(model, data))
    inputs, labels = (tensor[: 3 * size].unflatten(0, (3, size)) for tensor in (data.private.inputs, data.private.labels))
    update = client_update(network, inputs, labels, defense=defense, client=client, public=data.public, generator=make_generator(1))
    known = {"public": data.public, "defense": defense, **options}
    return Observation(update=update, model=network, input_shape=data.input_shape, batch_size=size, client=client, **known)


@pytest.mark.parametrize("model", [MODEL, "lenet", "resnet"])
@pytest.mark.parametrize("spec", [SPEC, "precode(width=5, beta=0.1) | none"])
def test_the_update_is_that_of_the_cut_model(data: Data, model: str, spec: str) -> None:
    cut = before_the_bottleneck(observed(data, spec, model=model))
    assert cut is not None
    assert cut.labels.sum(2).abs().max() < 1e-4 * cut.labels.abs().max()
    own = gradients(cut.model, data.private.inputs[:3, None], cut.labels)
    assert own.tensors.keys() == cut.update.tensors.keys()
    for name, tensor in cut.update.tensors.items():
        torch.testing.assert_close(own.tensors[name], tensor, rtol=1e-3, atol=1e-5 * float(tensor.abs().max()))


def test_so_it_is_of_the_mean_of_several_rounds(data: Data) -> None:
    defense = load_defense(SPEC)
    network = defense.modify_model(load_model(MODEL, data))
    inputs, labels = data.private.inputs[:3, None], data.private.labels[:3, None]
    rounds = client_rounds(network, inputs, labels, rounds=3, defense=defense, generator=make_generator(2))
    cut = before_the_bottleneck(
        Observation(update=rounds, model=network, input_shape=data.input_shape, public=data.public, defense=defense)
    )
    assert cut is not None
    own = gradients(cut.model, inputs, cut.labels)
    for name, tensor in cut.update.tensors.items():
        torch.testing.assert_close(own.tensors[name], tensor, rtol=1e-3, atol=1e-5 * float(tensor.abs().max()))


@pytest.mark.parametrize(
    "options",
    [
        {"spec": "none"},  # nothing draws
        {"size": 2},
        {"spec": f"{SPEC} | gaussian_noise(std=0.1)"},
        {"spec": f"{SPEC} | pruning(rate=0.5)"},
        {"client": "fedavg(steps=2, lr=0.1)"},
        {"public": None},
        {"defense": None},
        {"parameters": False},
    ],
)
def test_what_is_not_the_same_is_not_cut(data: Data, options: dict[str, object]) -> None:
    assert before_the_bottleneck(observed(data, **options)) is None  # type: ignore[arg-type]


class Around(Stochastic):
    """Noise beside a linear layer: what comes before it has another way out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.inner(inputs) * self.noise(inputs)


def test_a_layer_with_another_way_out_is_no_entrance(data: Data) -> None:
    network = load_model(MODEL, data)
    whole = nn.Sequential(*network[:-1], Around(), network[-1])
    take_logits(whole, data.classes, name="around")
    read_output(whole, data.public.inputs[:2], data.classes)
    update = client_update(whole, data.private.inputs[:2, None], data.private.labels[:2, None], generator=make_generator(0))
    known = {"public": data.public, "defense": load_defense("none")}
    assert before_the_bottleneck(Observation(update=update, model=whole, input_shape=data.input_shape, **known)) is None


def test_auto_reconstructs_what_precode_was_to_hide(data: Data) -> None:
    found = load_attack("auto", profile="quick")(observed(data), generator=make_generator(0)).inputs
    error = (found - data.private.inputs[:3, None]).square().flatten(1).mean(1)
    assert error.max() < 1e-6
    assert gitbench.load_attack("auto", profile="quick").memory(observed(data)) > 0
