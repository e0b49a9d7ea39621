"""Gradients of a chain, and their slopes, written out: those of autograd, for one victim after the other."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn

import gitbench
from gitbench.clients.client import gradients
from gitbench.clients.differentiation import Aims, stacked_gradients, stacked_products
from gitbench.clients.feedforward import recognition
from gitbench.clients.feedforward.network import Feedforward
from gitbench.clients.loss import mean_loss
from gitbench.clients.normalize import Normalize
from gitbench.core.random import make_generator, seeded

SIDE, CLASSES, CHANNELS = 7, 4, 2
SHARP = (nn.Sigmoid(), nn.Tanh(), nn.ReLU(), nn.LeakyReLU(0.2))


@st.composite
def chains(draw: st.DrawFn) -> nn.Sequential:
    """In eval mode and double precision: convolutions, then linear layers, activations between them, nested in places."""
    with seeded(make_generator(draw(st.integers(0, 99)))):
        layers: list[nn.Module] = [Normalize(torch.rand(CHANNELS), 0.5 + torch.rand(CHANNELS))] if draw(st.booleans()) else []
        channels, side = CHANNELS, SIDE
        for _ in range(draw(st.integers(0, 2))):
            kernel, stride = (draw(st.integers(1, 3)), draw(st.integers(1, 3))), draw(st.integers(1, 2))
            padding = (draw(st.integers(0, 3)), draw(st.integers(0, 2)))
            width = draw(st.integers(1, 6))
            block = [nn.Conv2d(channels, width, kernel, stride, padding, bias=draw(st.booleans())), draw(st.sampled_from(SHARP))]
            layers += [nn.Sequential(*block)] if draw(st.booleans()) else block
            channels = width
        with torch.no_grad():
            side = nn.Sequential(*layers, nn.Flatten())(torch.zeros(1, CHANNELS, SIDE, SIDE)).shape[1]
        layers += [nn.Dropout(), nn.Flatten()]
        for width in draw(st.lists(st.integers(1, 5), max_size=2)):
            layers += [nn.Linear(side, width, bias=draw(st.booleans())), draw(st.sampled_from(SHARP))]
            side = width
        return nn.Sequential(*layers, nn.Linear(side, CLASSES, bias=draw(st.booleans()))).double().eval()


def oracle(model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """One victim after the other, each in a graph of its own."""
    rows = []
    for batch, targets in zip(inputs, labels, strict=True):
        own = {name: tensor.detach().clone().requires_grad_() for name, tensor in parameters.items()}
        loss = mean_loss(torch.func.functional_call(copy.deepcopy(model), own, (batch,)), targets)
        rows.append(torch.autograd.grad(loss, [*own.values()], create_graph=True))
    return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


def chain_of(model: nn.Module) -> Feedforward | None:
    known = vars(model).get(recognition._ATTRIBUTE)
    return None if known is None else known.network


def drawn(victims: int, batch: int, *, soft: bool) -> tuple[torch.Tensor, torch.Tensor]:
    generator = make_generator(0)
    inputs = torch.rand(victims, batch, CHANNELS, SIDE, SIDE, dtype=torch.double, generator=generator).requires_grad_()
    if not soft:
        return inputs, torch.randint(CLASSES, (victims, batch), generator=generator)
    return inputs, torch.rand(victims, batch, CLASSES, dtype=torch.double, generator=generator).requires_grad_()


@given(model=chains(), victims=st.integers(1, 3), batch=st.integers(1, 3), soft=st.booleans(), frozen=st.booleans())
@settings(max_examples=60)
def test_gradients_and_their_slopes_are_those_of_autograd(model: nn.Module, victims: int, batch: int, soft: bool, frozen: bool):
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    if frozen and len(parameters) > 1:
        del parameters[next(iter(parameters))]
    inputs, labels = drawn(victims, batch, soft=soft)
    asked = [inputs, labels] if soft else [inputs]
    found = stacked_gradients(model, parameters, inputs, labels, per_example=False)
    assert isinstance(chain_of(model), Feedforward)
    expected = oracle(model, parameters, inputs, labels)
    assert list(found) == list(expected)
    torch.testing.assert_close(found, expected)
    weights = [torch.randn(tensor.shape, dtype=torch.double, generator=make_generator(1)) for tensor in expected.values()]
    slopes = torch.autograd.grad([*found.values()], asked, weights)
    torch.testing.assert_close(slopes, torch.autograd.grad([*expected.values()], asked, weights, retain_graph=True))

    pairs = [*zip(expected, weights, strict=True)]
    aims = Aims(dict(pairs[1:] if soft and len(pairs) > 1 else pairs))  # of a parameter that is not compared there is none
    products = stacked_products(model, parameters, inputs, labels, aims)
    pairs = [(expected[name].flatten(1), aim.flatten(1)) for name, aim in aims.tensors.items()]
    plain = torch.stack([(one * two).sum(1) for one, two in pairs]), torch.stack([one.square().sum(1) for one, _ in pairs])
    torch.testing.assert_close(products, plain)
    weights = [torch.randn(plain[0].shape, dtype=torch.double, generator=make_generator(2)) for _ in plain]
    torch.testing.assert_close(torch.autograd.grad(products, asked, weights), torch.autograd.grad(plain, asked, weights))


def a_chain() -> nn.Sequential:
    with seeded(make_generator(3)):
        return nn.Sequential(nn.Conv2d(CHANNELS, 3, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(75, CLASSES)).double().eval()


@pytest.mark.parametrize("what", ["gradients", "products"])
def test_what_is_differentiated_more_than_twice_is_right_too(what: str):
    model, (inputs, labels) = a_chain(), drawn(2, 2, soft=True)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    expected = oracle(model, parameters, inputs, labels)
    if what == "gradients":
        found, plain = [*stacked_gradients(model, parameters, inputs, labels, per_example=False).values()], [*expected.values()]
    else:
        aims = Aims({name: torch.ones_like(tensor) for name, tensor in expected.items()})
        found = [*stacked_products(model, parameters, inputs, labels, aims)]
        plain = [torch.stack([tensor.flatten(1).sum(1) for tensor in expected.values()])]
        plain.append(torch.stack([tensor.flatten(1).square().sum(1) for tensor in expected.values()]))
    twice = [torch.autograd.grad(sum(part.square().sum() for part in parts), inputs, create_graph=True)[0] for parts in (found, plain)]
    three = [torch.autograd.grad(one.square().sum(), [inputs, labels]) for one in twice]
    torch.testing.assert_close(twice[0], twice[1])
    torch.testing.assert_close(three[0], three[1])


def test_other_weights_are_seen_and_so_is_another_composition():
    model, (inputs, labels) = a_chain(), drawn(2, 1, soft=False)
    values = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def right() -> bool:
        found = stacked_gradients(model, values, inputs, labels, per_example=False)
        expected = oracle(model, values, inputs, labels)
        return all(torch.allclose(found[name], tensor) for name, tensor in expected.items())

    assert right()
    with torch.no_grad():
        model[0].weight.mul_(0.5)
    assert right()
    values = {name: tensor * 2 for name, tensor in values.items()}
    assert right()
    model[1] = nn.Tanh()
    assert right()
    assert isinstance(chain_of(model), Feedforward)
    handle = model[1].register_forward_hook(lambda module, inputs, output: output / 2)
    assert right()
    handle.remove()
    assert right()


def test_a_copy_is_looked_at_anew():
    model, (inputs, labels) = a_chain(), drawn(2, 1, soft=False)
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    stacked_gradients(model, parameters, inputs, labels, per_example=False)
    copied = copy.deepcopy(model)
    assert vars(copied)[recognition._ATTRIBUTE] is None
    values = {name: tensor.detach() * 2 for name, tensor in copied.named_parameters()}
    found = stacked_gradients(copied, values, inputs, labels, per_example=False)
    torch.testing.assert_close(found, oracle(copied, values, inputs, labels))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(CHANNELS, 3, 3, padding_mode="circular", padding=1),
        nn.Conv2d(CHANNELS, 2, 3, groups=2),
        nn.Conv2d(CHANNELS, 2, 3, dilation=2),
        nn.Conv2d(CHANNELS, 2, 3, padding="same"),
        nn.MaxPool2d(2),
        nn.ELU(),
        nn.LeakyReLU(-0.1),
        nn.Flatten(2),
    ],
    ids=str,
)
def test_a_layer_that_is_not_known_is_left_to_others(layer: nn.Module):
    with torch.no_grad():
        width = layer(torch.zeros(1, CHANNELS, SIDE, SIDE)).numel()
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(width, CLASSES)).double().eval()
    parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
    inputs, labels = drawn(2, 1, soft=False)
    found = stacked_gradients(model, parameters, inputs, labels, per_example=False)
    torch.testing.assert_close(found, oracle(model, parameters, inputs, labels))
    assert chain_of(model) is None


def test_a_layer_or_a_weight_that_is_used_twice_is_left_to_others():
    twice, other, start, end = (
        nn.Linear(width, outputs, dtype=torch.double) for width, outputs in ((6, 6), (6, 6), (CHANNELS * SIDE * SIDE, 6), (6, CLASSES))
    )
    weight = other.weight = twice.weight
    inputs, labels = drawn(2, 1, soft=False)
    for pair in ((twice, twice), (twice, other)):
        model = nn.Sequential(nn.Flatten(), start, pair[0], nn.Sigmoid(), pair[1], end).eval()
        parameters = {name: tensor.detach() for name, tensor in model.named_parameters()}
        found = stacked_gradients(model, parameters, inputs, labels, per_example=False)
        torch.testing.assert_close(found, oracle(model, parameters, inputs, labels))
        assert chain_of(model) is None
        assert pair[0].weight is pair[1].weight is weight, "the model is left as it was"


@pytest.mark.parametrize("spec", ["lenet", "lenet(layers=4, activation='relu', bias=False)", "mlp(hidden=(9, 8))"])
def test_the_models_that_are_chains_are_taken_so(spec: str):
    data = gitbench.load_dataset("photos")
    model = gitbench.load_model(spec, data, seed=0)
    gradients(model, data.public.inputs[:2, None], data.public.labels[:2, None])
    assert isinstance(chain_of(model), Feedforward)
