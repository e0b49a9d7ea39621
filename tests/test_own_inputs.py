"""Batches whose last layer is solved: what is known of each example, and what auto makes of it."""

from __future__ import annotations

import pytest
import torch

import gitbench
from gitbench import Observation
from gitbench.attacker.attacks.auto.attack import _BUDGETS
from gitbench.attacker.attacks.auto.own_inputs import OwnInputs, _Variation
from gitbench.attacker.attacks.auto.search import EnsembleSearch
from gitbench.attacker.tools.features import forward_features
from gitbench.attacker.tools.priors import of_samples
from gitbench.clients.data import Data
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data

VICTIMS, BATCH = 2, 4
MODELS = ["lenet(layers=1)", "lenet(layers=1, activation='leaky_relu', init='default')"]


@pytest.fixture(scope="module")
def ten() -> Data:
    return make_data(classes=10, public=300, private=64, size=8)


def observe(data: Data, model: str, defense: str = "none") -> tuple[Observation, torch.Tensor, torch.Tensor]:
    """An observation, its images, and their labels."""
    network = gitbench.load_model(model, data)
    inputs, labels = gitbench.draw_victims(data.private, victims=VICTIMS, batch_size=BATCH, seed=0)
    labels, order = labels.sort(dim=1)
    inputs = torch.stack([batch[rows] for batch, rows in zip(inputs, order, strict=True)])
    update = gitbench.client_update(network, inputs, labels, defense=defense, generator=make_generator(0), public=data.public)
    shape = data.input_shape
    return (
        Observation(update=update, model=network, input_shape=shape, batch_size=BATCH, public=data.public, defense=defense),
        inputs,
        labels,
    )


def known(data: Data, model: str, defense: str = "none") -> tuple[OwnInputs, torch.Tensor]:
    observation, inputs, labels = observe(data, model, defense)
    features, _ = forward_features(observation.model, inputs.flatten(0, 1))
    prior = of_samples(data.public.inputs.split(100), hidden=False)
    return OwnInputs(observation, labels, features.unflatten(0, labels.shape), prior), inputs


@pytest.mark.parametrize("defense", ["none", "pruning(rate=0.5)", "clipping(max_norm=0.5)"])
def test_the_truth_does_not_depart_from_what_is_known(ten: Data, defense: str) -> None:
    own, inputs = known(ten, MODELS[0], defense)
    wrong = own.departures(inputs.flip(1))
    for truth, other in zip(own.departures(inputs), wrong, strict=True):
        assert truth.norm() < 1e-2 * other.norm()
    assert (own.value(inputs) < own.value(inputs.flip(1))).all()


@pytest.mark.parametrize(("model", "left"), [(MODELS[0], 1e-3), (MODELS[1], 0.6)])  # Adam takes more than these 30 steps
def test_a_search_comes_nearer_to_the_images(ten: Data, model: str, left: float) -> None:
    own, inputs = known(ten, model)
    start = (inputs + ten.public.inputs.mean(0)) / 2
    found = own.search(start, iterations=30, progress=silent)
    assert (own.value(found) < own.value(start)).all()
    error = [float((images - inputs).square().mean()) for images in (start, found)]
    assert error[1] < left * error[0]


@pytest.mark.parametrize("entries", [6, 5000])
def test_departures_are_in_units_of_how_public_images_vary(entries: int) -> None:
    generator = make_generator(0)
    mixing = torch.randn(entries, generator=generator) if entries > 100 else torch.randn(entries, entries, generator=generator)
    rows = torch.randn(4000 if entries < 100 else 300, entries, generator=generator)
    rows = rows * mixing if entries > 100 else rows @ mixing
    variation = _Variation()
    for chunk in rows.split(100):
        variation.see(chunk)
    measured = variation.norm(4)(rows - rows.mean(0))
    assert float(measured.square().mean()) == pytest.approx(4.0, rel=0.05)  # of single images: an average of four varies less


@pytest.mark.parametrize("defense", ["gaussian_noise(std=0.01)", "none"])
def test_only_what_is_solved_and_not_noisy_is_searched(ten: Data, defense: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(OwnInputs, "search", lambda self, start, **_: asked.append(len(start)) or start)
    observation, inputs, _ = observe(ten, MODELS[0], defense)
    search = EnsembleSearch(observation, prior=None, generator=make_generator(0), progress=silent, seconds=None)
    search.own_inputs(inputs, _BUDGETS["quick"])
    assert asked == ([VICTIMS] if defense == "none" else [])
    assert torch.equal(search.best, inputs) == (defense == "none")
