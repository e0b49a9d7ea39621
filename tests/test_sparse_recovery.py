"""Batches told apart by the units that each example switches on and off."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.recursion.sparse import Batches, applies, sparse_batches
from gitbench.attacker.attacks.recursion.sparse_units import Factors, factorise, unmixed
from gitbench.attacker.layers.chain import Chain, read_chain
from gitbench.attacker.tools.priors import Gaussian
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.core.random import make_generator
from helpers import make_data

SHAPE = (1, 6, 6)


def network(*, units: int = 64, activation: type[nn.Module] = nn.ReLU, bias: bool = True, hidden: int = 1, seed: int = 0) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Flatten()]
    width = 36
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for _ in range(hidden):
            layers += [nn.Linear(width, units, bias=bias), activation()]
            width = units
        return nn.Sequential(*layers, nn.Linear(width, 5)).double()


def chain_of(model: nn.Module) -> Chain:
    chain = read_chain(model, SHAPE)
    assert chain is not None
    return chain


def images(count: int, *, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, count, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def recovered(model: nn.Module, batch: torch.Tensor, labels: torch.Tensor, *, samples: int = 2**13, noise: float = 0.0) -> Batches:
    sent = client_update(model, batch, labels).tensors
    generator = torch.Generator().manual_seed(1)
    update = {name: tensor + noise * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) for name, tensor in sent.items()}
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    prior = Gaussian(torch.full((36,), 0.5, dtype=torch.float64), torch.full((36,), 1 / 12, dtype=torch.float64), None)
    return sparse_batches(
        chain_of(model), weights, update, prior,
        batch_size=batch.shape[1], samples=samples, generator=make_generator(0), tell=lambda done: None,
    )  # fmt: skip


def errors(found: Batches, truth: torch.Tensor) -> torch.Tensor:
    """Of each true image to the nearest that was found."""
    return torch.cdist(truth.flatten(2)[0], found.inputs[0]).amin(1)


@pytest.mark.parametrize("count", [2, 3, 4])
@pytest.mark.parametrize("hidden", [1, 2])
def test_a_batch_behind_a_relu_is_recovered_exactly(count: int, hidden: int) -> None:
    truth, labels = images(count), torch.arange(count)[None]
    found = recovered(network(hidden=hidden), truth, labels)
    assert found.found.all()
    assert errors(found, truth).max() < 1e-6
    assert found.labels.equal(labels)


def test_images_stand_in_the_order_of_their_labels() -> None:
    truth, labels = images(4), torch.tensor([[3, 0, 2, 0]])
    found = recovered(network(), truth, labels)
    assert found.labels.tolist() == [[0, 0, 2, 3]]
    assert (found.inputs[0, 2:] - truth.flatten(2)[0, [2, 0]]).abs().max() < 1e-6


def test_units_that_are_on_tell_as_much_as_those_that_are_off() -> None:
    """An example of six needs five zeros to be told by them alone; here one has a single one."""
    model = network(units=32, seed=2)
    with torch.no_grad():
        model[1].bias += 0.4
    truth, labels = images(6, seed=3), torch.arange(6)[None] % 5
    on = model[1](truth.flatten(2)[0]) > 0
    assert int((on.any(0) & ~on).sum(1).min()) == 1
    assert errors(recovered(model, truth, labels), truth).max() < 1e-6


def test_a_leaky_relu_is_told_by_what_is_on_and_off() -> None:
    truth, labels = images(3), torch.arange(3)[None]
    assert errors(recovered(network(activation=nn.LeakyReLU), truth, labels), truth).max() < 1e-5


def test_layers_above_need_no_bias() -> None:
    model = nn.Sequential(*network(), nn.ReLU(), nn.Linear(5, 5, bias=False).double())
    truth, labels = images(2), torch.arange(2)[None]
    assert errors(recovered(model, truth, labels), truth).max() < 1e-5


def test_no_more_than_zeros_are_needed_where_the_second_layer_has_no_bias() -> None:
    model = network()
    model[-1] = nn.Linear(64, 5, bias=False).double()
    truth, labels = images(3), torch.arange(3)[None]
    assert errors(recovered(model, truth, labels), truth).max() < 1e-5


def test_equal_images_are_found_once_and_counted() -> None:
    truth, labels = images(4), torch.tensor([[0, 1, 1, 3]])
    truth[0, 2] = truth[0, 1]
    found = recovered(network(), truth, labels)
    assert errors(found, truth).max() < 1e-6
    assert found.labels.tolist() == [[0, 1, 1, 3]]


def test_an_example_that_switches_every_unit_off_leaves_the_others() -> None:
    model = network()
    truth, labels = images(4), torch.arange(4)[None]
    with torch.no_grad():
        model[1].weight[:, 0] -= 100
        model[1].bias += 50
    truth[0, :, 0, 0, 0] = torch.tensor([0.5, 0.5, 0.5, 1.0])
    found = recovered(model, truth, labels)
    assert bool(found.inputs.isfinite().all())
    assert errors(found, truth)[:3].max() < 1e-5


def test_a_batch_that_sends_nothing_is_left_alone() -> None:
    model = network()
    with torch.no_grad():
        model[1].bias -= 100
    assert not recovered(model, images(3), torch.arange(3)[None]).found.any()


def test_noise_leaves_no_rank_to_read() -> None:
    assert not recovered(network(), images(3), torch.arange(3)[None], noise=1e-3).found.any()


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.Tanh])
def test_other_activations_are_none_of_its_business(activation: type[nn.Module]) -> None:
    assert not applies(chain_of(network(activation=activation)))


def test_neither_are_layers_without_a_bias_or_models_that_are_no_chain() -> None:
    assert not applies(chain_of(network(bias=False)))
    assert not applies(None)
    assert applies(chain_of(network()))


def test_the_same_generator_finds_the_same() -> None:
    truth, labels = images(4), torch.arange(4)[None]
    assert recovered(network(), truth, labels).inputs.equal(recovered(network(), truth, labels).inputs)


@settings(max_examples=25, deadline=None)
@given(rank=st.integers(1, 6), units=st.integers(7, 20), seed=st.integers(0, 999))
def test_the_factors_are_the_gradient_and_the_true_mixture_gives_the_inputs(rank: int, units: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas, inputs = (torch.randn(rank, width, generator=generator, dtype=torch.float64) for width in (units, 30))
    found = factorise(deltas.T @ inputs, deltas.sum(0), most=rank)
    assert isinstance(found, Factors)
    assert torch.allclose(found.left @ found.right, deltas.T @ inputs)
    assert torch.allclose(found.left.T @ found.left, torch.eye(rank, dtype=torch.float64))
    lengths = torch.rand(rank, generator=generator, dtype=torch.float64) + 0.5
    rows, back = unmixed(found, found.left.T @ deltas.T * lengths)
    assert torch.allclose(rows, inputs, atol=1e-6)
    assert torch.allclose(back, deltas, atol=1e-6)
    assert factorise(deltas.T @ inputs, deltas.sum(0), most=rank - 1) is None


@pytest.fixture(scope="module")
def smooth() -> Data:
    return make_data(size=8, public=120, private=12)


def seen(data: Data, model: nn.Module, defense: str | None = None) -> tuple[gitbench.Observation, torch.Tensor]:
    inputs, labels = data.private.inputs[:9].reshape(3, 3, *data.input_shape), data.private.labels[:9].reshape(3, 3)
    update = client_update(model, inputs, labels, defense=defense, public=data.public)
    return gitbench.Observation(
        update=update, model=model, input_shape=data.input_shape, batch_size=3, public=data.public, defense=defense
    ), inputs


def psnr(data: Data, model: str, defense: str | None = None, **options: int) -> torch.Tensor:
    network = gitbench.load_model(model, data)
    observation, inputs = seen(data, network, defense)
    spelled = ", ".join(f"{name}={value}" for name, value in ({"iterations": 10, "rehearsal": 2} | options).items())
    found = load_attack(f"recursion({spelled})")(observation, generator=make_generator(0))
    return gitbench.score(found.inputs, inputs)["psnr"]


def test_the_attack_returns_the_batch(smooth: Data) -> None:
    assert psnr(smooth, "mlp(activation='relu', hidden=(96,))").min() > 60
    assert psnr(smooth, "mlp(activation='relu', hidden=(96,))", samples=0).mean() < 60


def test_a_defense_that_only_rescales_hides_nothing(smooth: Data) -> None:
    assert psnr(smooth, "mlp(activation='relu', hidden=(96,))", "clipping(max_norm=0.1)").min() > 60


def test_normalised_inputs_are_brought_back(smooth: Data) -> None:
    network = gitbench.load_model("mlp(activation='relu', hidden=(96,))", smooth)
    network[0].mean += 0.4
    network[0].std *= 0.3
    observation, inputs = seen(smooth, network)
    found = load_attack("recursion(iterations=10, rehearsal=2)")(observation, generator=make_generator(0))
    assert gitbench.score(found.inputs, inputs)["psnr"].min() > 60


@pytest.mark.parametrize("defense", ["gaussian_noise(std=0.01)", "pruning(rate=0.9)"])
def test_a_defended_batch_is_as_it_was(smooth: Data, defense: str) -> None:
    model = "mlp(activation='relu', hidden=(32,))"
    assert psnr(smooth, model, defense).equal(psnr(smooth, model, defense, samples=0))
