"""What the trained attacks promise: LTI's loss and hashing, GIAS's private generators."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.gias import GIAS, ParameterSearch
from gitbench.attacker.attacks.lti import LTI, UpdateReader
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.assignment import matched_error
from gitbench.attacker.tools.generated import CodeSearch
from gitbench.attacker.tools.generator import Autoencoder, Generator
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import Objective
from gitbench.attacker.tools.optimisation import Best
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data

FAST_LTI = {"width": 16, "epochs": 2}
FAST_GIAS = {"latent_iterations": 4, "iterations": 4, "restarts": 2, "channels": 4, "latent": 16, "epochs": 1}


def observe(data: Data, *, victims: int = 3, batch: int = 1, defense: str | None = None, first: int = 0) -> Observation:
    model = gitbench.load_model("mlp", data)
    chosen = slice(first * batch, (first + victims) * batch)
    inputs = data.private.inputs[chosen].reshape(victims, batch, *data.input_shape)
    labels = data.private.labels[chosen].reshape(victims, batch)
    update = client_update(model, inputs, labels, defense=defense, generator=make_generator(3))
    return Observation(update=update, model=model, input_shape=data.input_shape, batch_size=batch, public=data.public, defense=defense)


def fit(attack: gitbench.Attack, observation: Observation, seed: int = 0):
    return attack.fit(observation.without_update(), generator=make_generator(seed), progress=silent, checkpoint=NoCheckpoint())


# ------------------------------------------------------------------ LTI


def slow_matched_error(found: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    orders = list(itertools.permutations(range(images.shape[1])))
    return torch.stack(
        [torch.stack([(mine - theirs[list(o)]).square().mean() for o in orders]).min() for mine, theirs in zip(found, images, strict=True)]
    ).mean()


@given(batch=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_loss_is_that_of_the_best_order(batch: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    found, images = torch.rand(2, 3, batch, 5, generator=generator).double()
    shuffled = torch.stack([row[torch.randperm(batch, generator=generator)] for row in images])
    expected = slow_matched_error(found, images)
    assert torch.allclose(matched_error(found, images), expected)
    assert torch.allclose(matched_error(found, shuffled), expected)
    assert matched_error(images, shuffled) == 0


def test_loss_gradient_goes_to_the_matched_image() -> None:
    images = torch.tensor([[[0.0], [1.0]]])
    found = torch.tensor([[[0.9], [0.2]]], requires_grad=True)
    (gradient,) = torch.autograd.grad(matched_error(found, images), found)
    assert torch.allclose(gradient, torch.tensor([[[-0.1], [0.2]]]))


def test_reader_drops_constant_coordinates_and_cuts_outliers() -> None:
    mean, deviation = torch.tensor([1.0, 5.0, 0.0]), torch.tensor([2.0, 0.0, 1e-3])
    update = Update({"a": torch.tensor([[3.0, 6.0], [1.0, 5.0]]), "b": torch.tensor([[100.0], [-1e-3]])})
    assert torch.allclose(UpdateReader(mean, deviation, bins=None, seed=0)(update), torch.tensor([[1.0, 0.0, 10.0], [0.0, 0.0, -1.0]]))


def test_reader_standardises_public_updates(data: Data) -> None:
    observation = observe(data)
    state = fit(LTI(**FAST_LTI, bins=None, limit=96), observation)
    fitted = observation.without_update()  # an eighth of the images is kept from it
    assert len(fitted.public) == 84
    public = fitted.public_updates(torch.arange(84)[:, None], generator=make_generator(0)).flatten()
    order = torch.randperm(84, generator=make_generator(0))[:76]
    assert torch.allclose(state["mean"], public[order].mean(0), atol=1e-6)
    assert torch.allclose(state["deviation"], public[order].std(0, correction=0), rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("defense", [None, "gaussian_noise(std=0.01)"])
@pytest.mark.parametrize("bins", [None, 64, 0.5])
def test_lti_is_deterministic_and_its_state_is_all_it_needs(data: Data, defense: str | None, bins: float | None) -> None:
    observation = observe(data, batch=2, defense=defense)
    states = [fit(LTI(**FAST_LTI, bins=bins), observation) for _ in range(2)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    found = [LTI(**FAST_LTI, bins=bins).run(observation, state, generator=make_generator(0), progress=silent) for state in states]
    assert torch.equal(*found)
    assert found[0].shape == (3, 2, *data.input_shape)


def test_lti_trains_on_fresh_noise() -> None:
    data = make_data(public=40)
    plain, noisy = (fit(LTI(**FAST_LTI, bins=None), observe(data, defense=defense)) for defense in (None, "gaussian_noise(std=1.0)"))
    assert noisy["deviation"].mean() > 0.5 > plain["deviation"].mean()


def test_lti_says_when_there_is_too_little_public_data(data: Data) -> None:
    with pytest.raises(AttackError, match="at least 2 public batches"):
        fit(LTI(limit=20), observe(data, victims=1, batch=20))


@pytest.mark.parametrize("bins", [0, -1, 1.5, 0.0, "none", True])
def test_lti_refuses_bins_that_are_none(bins: object) -> None:
    with pytest.raises(ValueError, match="bins"):
        LTI(bins=bins)


# ------------------------------------------------------------------ GIAS


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 28, 28), (3, 33, 20)])
def test_generator_makes_images_of_any_size(shape: tuple[int, int, int]) -> None:
    made = Generator(shape, latent=8, channels=2)(torch.zeros(2, 8))
    assert made.shape == (2, *shape)
    assert made.min() >= 0
    assert made.max() <= 1


def test_gias_is_deterministic(data: Data) -> None:
    observation = observe(data, batch=2)
    attack = GIAS(**FAST_GIAS)
    states = [fit(attack, observation) for _ in range(2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    found = [attack.run(observation, state, generator=make_generator(0), progress=silent).inputs for state in states]
    assert torch.equal(*found)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_victim_does_not_depend_on_the_others(data: Data, batch: int) -> None:
    attack = GIAS(**FAST_GIAS)
    state = fit(attack, observe(data, batch=batch))
    alone, among = (
        attack.run(observe(data, victims=victims, batch=batch), state, generator=make_generator(0), progress=silent).inputs
        for victims in (1, 4)
    )
    assert torch.allclose(alone[0], among[0], atol=1e-5)
    assert not torch.allclose(among[0], among[1], atol=1e-3)


def search_codes(attack: GIAS, network: Generator, matching: Callable[[torch.Tensor], torch.Tensor], *, victims: int) -> Best:
    starts = torch.randn(victims, attack.options.restarts, 1, attack.options.latent, generator=make_generator(0))
    search = CodeSearch(matching, attack.options, network, starts, silent)
    search.run()
    return search.best


def search_parameters(attack: GIAS, network: Generator, matching: Callable[[torch.Tensor], torch.Tensor], codes: Best) -> torch.Tensor:
    search = ParameterSearch(matching, attack.options, network, codes, silent)
    search.run()
    return search.best.found[0]


def matching_of(observation: Observation) -> Callable[[torch.Tensor], torch.Tensor]:
    objective, labels = Objective(observation, distance="layerwise"), infer_labels(observation)
    return lambda inputs: objective(inputs, labels)


def test_copies_of_a_batch_are_private(data: Data) -> None:
    """Two images with one code and one generator part ways: each has its own parameters."""
    attack = GIAS(**FAST_GIAS)
    observation = observe(data, victims=2)
    network = Generator(data.input_shape, latent=16, channels=4)
    codes = torch.zeros(2, 1, 16)
    images = network(codes.flatten(0, 1)).detach()[:, None]
    start = Best(2, images.device)
    start.offer(start.losses, images, codes)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = search_parameters(attack, network, matching_of(observation), start)
    assert torch.equal(images[0], images[1])
    assert not torch.equal(found[0], found[1])
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("lr", [1e-3, 10.0])
def test_parameters_never_match_worse_than_the_code(data: Data, lr: float) -> None:
    attack = GIAS(**FAST_GIAS, lr=lr)
    observation = observe(data, victims=4)
    network = Generator(data.input_shape, latent=16, channels=4)
    network.load_state_dict(dict(fit(attack, observation)))
    matching = matching_of(observation)
    best = search_codes(attack, network, matching, victims=4)
    (images, codes), losses = best.found, best.losses
    assert torch.allclose(matching(images), losses, atol=1e-5)
    made = network(codes.flatten(0, 1)).detach()
    assert torch.allclose(made, images.flatten(0, 1), atol=1e-5)
    found = search_parameters(attack, network, matching, best)
    assert (matching(found) <= losses + 1e-6).all()
    if lr < 1:
        assert (matching(found) < losses - 1e-6).all()


def test_restarts_are_chosen_by_matching_loss(data: Data) -> None:
    observation = observe(data, victims=4)
    state = fit(GIAS(**FAST_GIAS), observation)

    def losses(restarts: int) -> torch.Tensor:
        attack = GIAS(**{**FAST_GIAS, "restarts": restarts})
        network = Generator(data.input_shape, latent=16, channels=4)
        network.load_state_dict(dict(state))
        return search_codes(attack, network, matching_of(observation), victims=4).losses

    assert losses(6).mean() < losses(1).mean()


def test_adversarial_training_runs_and_keeps_each_network_to_its_own_loss(data: Data) -> None:
    observation = observe(data)
    plain, adversarial = (fit(GIAS(**FAST_GIAS, adversarial=weight), observation) for weight in (0.0, 0.1))
    assert any(not torch.equal(plain[name], adversarial[name]) for name in plain)

    network = Autoencoder(Generator(data.input_shape, latent=4, channels=2), data.input_shape, 4, 2)
    images, codes = data.public.inputs[:8], torch.randn(8, 4, generator=make_generator(0))
    network.adversarial_loss(images, codes).backward()
    judge = torch.nn.functional.softplus(-network.discriminator(images)).mean()
    judge = judge + torch.nn.functional.softplus(network.discriminator(network.generator(codes).detach())).mean()
    expected = torch.autograd.grad(judge, list(network.discriminator.parameters()))
    for parameter, gradient in zip(network.discriminator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)
    fool = torch.nn.functional.softplus(-network.discriminator(network.generator(codes))).mean()
    expected = torch.autograd.grad(fool, list(network.generator.parameters()))
    for parameter, gradient in zip(network.generator.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient, atol=1e-7)


@pytest.mark.parametrize("name", ["lti", "gias"])
@pytest.mark.parametrize("profile", ["quick", "standard", "paper"])
def test_memory_is_known_before_the_attack_starts(name: str, profile: str, data: Data) -> None:
    attack = load_attack(name, profile=profile)
    small, large = (attack.memory(observe(data, victims=victims)) for victims in (1, 8))
    assert 0 < small <= large
