"""The polish against noise: its model of the gradient, its descent, and what it gains."""

from __future__ import annotations

import math

import pytest
import torch

import gitbench
from gitbench.attacker.attacks.git.attack import Git
from gitbench.attacker.attacks.git.polish import Polish, fit_polish
from gitbench.attacker.layers.chain import Chain, read_chain
from gitbench.attacker.layers.passes import simulate
from gitbench.attacker.tools.lbfgs import descend
from gitbench.clients.client import client_update, gradients
from gitbench.clients.data import Data
from gitbench.clients.defense import Defense, Expectation, load_defense
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data(size=12, public=200, private=16)


def known(model: torch.nn.Module, data: Data) -> tuple[Chain, dict[str, torch.Tensor]]:
    chain = read_chain(model, data.input_shape)
    assert chain is not None
    return chain, {name: parameter.detach() for name, parameter in model.named_parameters()}


def polish_of(model: torch.nn.Module, data: Data, defense: Defense, std: float) -> Polish:
    chain, weights = known(model, data)
    public = data.public
    raw = gradients(model, public.inputs[:64, None], public.labels[:64, None]).tensors
    found = fit_polish(
        chain,
        weights,
        dict.fromkeys(raw, std**2),
        Expectation(defense),
        raw=raw,
        inputs=public.inputs,
        labels=public.labels,
        progress=silent,
    )
    assert found is not None
    return found


@pytest.mark.parametrize("spec", ["lenet", "lenet(activation='tanh', layers=2)", "lenet(bias=False)"])
def test_simulated_updates_are_the_clients(spec: str, data: Data) -> None:
    model = gitbench.load_model(spec, data)
    chain, weights = known(model, data)
    weights.setdefault(f"{chain.layers[-1].name}.bias", torch.zeros(data.classes))
    inputs, labels = data.public.inputs[:5], data.public.labels[:5]
    truth = gradients(model, inputs[:, None], labels[:, None]).tensors
    found = simulate(chain, weights, inputs, labels)
    assert set(found) == set(truth)
    for name, tensor in truth.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("spec", ["gaussian_noise(std=0.05)", "dp_sgd(noise_multiplier=0.02, max_grad_norm=2.0)"])
def test_polish_comes_closer_to_the_images(spec: str, data: Data) -> None:
    model, defense = gitbench.load_model("lenet", data), load_defense(spec)
    truth, labels = data.private.inputs[:16], data.private.labels[:16]
    update = client_update(model, truth[:, None], labels[:, None], defense=defense, generator=make_generator(1)).tensors
    polish = polish_of(model, data, defense, 0.05)
    start = polish.tensors["mean"].expand(16, -1)

    def error(iterations: int) -> float:
        found = polish(update, start, labels, iterations=iterations)
        assert found.shape == (16, len(polish.tensors["deviations"]) + data.classes)
        images = found[:, : -data.classes] @ polish.tensors["components"].T + polish.tensors["mean"]
        return float((images - truth.flatten(1)).square().mean())

    assert error(12) < 0.5 * error(0)


def test_descent_of_a_quadratic_reaches_its_minimum_and_never_rises() -> None:
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(6, 8, 8, generator=generator, dtype=torch.float64)
    curvature = root @ root.transpose(1, 2) + torch.eye(8)
    aim = torch.randn(6, 8, generator=generator, dtype=torch.float64)

    def objective(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        slope = torch.einsum("nij,nj->ni", curvature, points - aim)
        return (slope * (points - aim)).sum(1) / 2, slope

    before, values = objective(torch.zeros_like(aim))[0], []
    for iterations in (2, 5, 20, 60):
        values.append(objective(descend(torch.zeros_like(aim), objective, lambda vectors: vectors / 8, iterations))[0])
    assert all((later <= earlier).all() for earlier, later in zip([before, *values], values, strict=False))
    assert float(values[-1].max()) < 1e-6


def test_a_descent_that_is_stuck_ends() -> None:
    points = torch.zeros(3, 4)

    def rising(there: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        asked.append(len(there))
        return there.abs().sum(1), torch.ones_like(there)

    asked: list[int] = []
    assert torch.equal(descend(points, rising, lambda vectors: vectors, 1000), points)
    assert len(asked) < 30


@pytest.mark.parametrize(("growth", "next_length"), [(math.inf, 1.0), (3.0, 1 / 9), (1.0, 1 / 27)])
def test_steps_grow_back_as_fast_as_they_are_allowed_to(growth: float, next_length: float) -> None:
    lengths, stands = [], [0.0]

    def sloping(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of slope 1 everywhere, which says nothing of curvature; steps longer than 0.1 lead up."""
        lengths.append(stands[-1] - float(points))
        if lengths[-1] > 0.1:
            return torch.full((1,), math.inf), torch.ones(1, 1)
        stands.append(float(points))
        return points[:, 0], torch.ones(1, 1)

    descend(torch.zeros(1, 1), sloping, lambda vectors: vectors, 5, growth=growth)
    assert lengths == pytest.approx([0, 1, 1 / 3, 1 / 9, 1 / 27, next_length])


def test_a_first_layer_without_known_weights_is_not_polished(data: Data) -> None:
    model = gitbench.load_model("lenet", data)
    chain, weights = known(model, data)
    weights.pop(f"{chain.layers[0].name}.weight")
    raw = gradients(model, data.public.inputs[:4, None], data.public.labels[:4, None]).tensors
    variance = dict.fromkeys(raw, 0.01)
    found = fit_polish(
        chain, weights, variance, Expectation(Defense()), raw=raw, inputs=data.public.inputs, labels=data.public.labels, progress=silent
    )
    assert found is None


@pytest.mark.slow
def test_git_gains_from_the_polish(data: Data) -> None:
    big = make_data(size=16, public=600, private=24)
    generator = torch.Generator().manual_seed(9)
    rough = [
        gitbench.Split((0.8 * split.inputs + 0.2 * torch.rand(split.inputs.shape, generator=generator)).clamp(0, 1), split.labels)
        for split in (big.public, big.private)
    ]
    model, defense = gitbench.load_model("lenet", big), load_defense("gaussian_noise(std=0.05)")
    truth, labels = rough[1].inputs[:, None], rough[1].labels[:, None]
    update = client_update(model, truth, labels, defense=defense, generator=make_generator(1))
    observation = gitbench.Observation(update=update, model=model, input_shape=(3, 16, 16), public=rough[0], defense=defense)
    errors = []
    for polish in (0, 6):
        attack = Git(variant="exact", limit=600, epochs=1, width=16, draws=1, polish=polish)
        found = attack(observation, generator=make_generator(2)).inputs
        errors.append(float((found - truth).square().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_bad_polish_is_named() -> None:
    with pytest.raises(ValueError, match="polish"):
        Git(polish=-1)
