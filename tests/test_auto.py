"""Auto finds what defenses that mislead other attacks do not hide; and claims nothing where there is nothing."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gitbench import Defense, Observation, client_update, load_attack, load_model
from gitbench.attacker.attack import Fitted
from gitbench.attacker.attacks.auto.attack import Auto
from gitbench.attacker.attacks.auto.criterion import Criterion
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.rehearsal import Rehearsal, rehearse, rescaled
from gitbench.clients.client import batchnorm_statistics
from gitbench.clients.data import Data
from gitbench.clients.update import Update
from gitbench.core.random import make_generator, randn_like
from gitbench.measure.scoring import score

VICTIMS = 6


class Rounds(Defense):
    def __init__(self, *, step: float = 1e-3):
        self.step = step

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: (tensor / self.step).round() * self.step)


class RandomScale(Defense):
    def protect(self, update, *, generator):
        return update.map(
            lambda name, tensor: tensor * (2 * torch.randn(len(tensor), generator=generator)).exp().reshape(-1, *[1] * (tensor.ndim - 1))
        )


class HidesTheLastLayer(Defense):
    def protect(self, update, *, generator):
        last = list(update.tensors)[-2:]
        return update.map(lambda name, tensor: torch.zeros_like(tensor) if name in last else tensor)


class Seeded:
    """Fits with a generator of their own, as in a run; it remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, frozenset[str]]] = []

    def get(self, attack, observation, fit):
        self.asked.append((repr(attack), observation.granted))
        return Fitted(fit(make_generator(0), NoCheckpoint()), 1.0)


MISLEADING = {"no-slope": Rounds(), "random-scale": RandomScale(), "hides-labels": HidesTheLastLayer()}


@pytest.fixture(scope="module")
def model(data: Data) -> torch.nn.Module:
    return load_model("lenet", data, seed=0)


def observe(model: torch.nn.Module, data: Data, defense: Defense | str = "none", *, rows: slice = slice(VICTIMS)) -> Observation:
    inputs, labels = data.private.inputs[rows, None], data.private.labels[rows, None]
    update = client_update(model, inputs, labels, defense=defense, generator=make_generator(0, "defense"), public=data.public)
    shape = tuple(inputs.shape[2:])
    return Observation(update=update, model=model, input_shape=shape, public=data.public, defense=defense)


def gain(found: torch.Tensor, data: Data, *, rows: slice = slice(VICTIMS)) -> float:
    """Mean PSNR above the blind guess, in dB."""
    truth = data.private.inputs[rows]
    errors = [(image - truth).square().flatten(1).mean(1) for image in (found[:, 0], data.public.inputs.mean(0).expand_as(truth))]
    return float(10 * (errors[1] / errors[0].clamp_min(1e-10)).log10().mean())


def attacked(name: str, observation: Observation) -> torch.Tensor:
    return load_attack(name, profile="quick")(observation, generator=make_generator(0, "attack")).inputs


@pytest.mark.parametrize("flag", MISLEADING)
def test_a_defense_that_only_misleads_is_seen_through(flag: str, model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data, MISLEADING[flag])
    misled = {"no-slope": "ig", "random-scale": "dlg", "hides-labels": "ridge"}[flag]
    assert gain(attacked(misled, observation), data) < 3
    assert gain(attacked("auto", observation), data) > 6
    assert rehearse(observation, generator=make_generator(0)).flags == {flag}


def test_batchnorm_statistics_that_are_granted_are_entries_to_explain(data: Data) -> None:
    network = load_model("resnet(width=4)", data, seed=0)
    inputs, labels = data.private.inputs[:VICTIMS, None], data.private.labels[:VICTIMS, None]
    update = client_update(network, inputs, labels, defense="gaussian_noise(std=1.0)", public=data.public)  # says nothing
    shared = {
        "update": update,
        "model": network,
        "input_shape": data.input_shape,
        "public": data.public,
        "defense": "gaussian_noise(std=1.0)",
    }
    blind = Observation(**shared)
    known = Observation(**shared, batchnorm_statistics=batchnorm_statistics(network, inputs))
    rehearsal = rehearse(blind, generator=make_generator(0))
    without, criterion = Criterion(blind, rehearsal), Criterion(known, rehearsal)
    assert (criterion.entries > without.entries).all()
    added = [criterion.misfit(images, labels) - without.misfit(images, labels) for images in (inputs, inputs.roll(1, 0))]
    assert (added[0].abs() < 1e-3 * added[1]).all()
    start, rows = data.public.inputs.mean(0).expand_as(inputs), torch.arange(VICTIMS)
    options = {"rows": rows, "iterations": 30, "whitened": True, "tell": lambda done: None}
    gains = [gain(one.minimised(start, labels, **options).clamp(0, 1), data) for one in (without, criterion)]
    assert gains[1] > gains[0] + 1, gains


@pytest.mark.parametrize("batch_size", [1, 2])
def test_labels_that_are_granted_are_taken_as_they_are(batch_size: int, model: torch.nn.Module, data: Data) -> None:
    inputs, labels = (part[: 2 * VICTIMS].unflatten(0, (-1, batch_size))[:VICTIMS] for part in (data.private.inputs, data.private.labels))
    update = client_update(model, inputs, labels, defense=HidesTheLastLayer(), public=data.public)

    def observed(labels: torch.Tensor | None) -> Observation:
        return Observation(
            update=update, model=model, input_shape=data.input_shape, batch_size=batch_size, labels=labels, defense=HidesTheLastLayer()
        )  # fmt: skip

    known = observed(labels)
    assert torch.equal(infer_labels(known), labels.sort(dim=1).values)
    assert not torch.equal(infer_labels(observed(None)), labels.sort(dim=1).values)
    gains = [
        float(score(attacked("auto", one), inputs, blind=data.public.inputs.mean(0))["psnr_gain"].mean()) for one in (observed(None), known)
    ]
    assert gains[1] >= gains[0] - 0.3, gains


def test_auto_is_at_least_as_good_as_its_parts(model: torch.nn.Module, data: Data) -> None:
    for defense in ("none", "gaussian_noise(std=0.01)", "pruning(rate=0.5)"):
        observation = observe(model, data, defense)
        parts = [gain(attacked(name, observation), data) for name in ("ridge", "lti", "git", "ig")]
        assert gain(attacked("auto", observation), data) > max(parts) - 0.3, (defense, parts)


def test_another_images_update_says_nothing(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data)
    found = attacked("auto", observation)
    assert gain(found.roll(1, dims=0), data) <= 0.5
    truth, labels = data.private.inputs[:VICTIMS, None], data.private.labels[:VICTIMS, None]
    criterion = Criterion(observation, rehearse(observation, generator=make_generator(0)))
    own, other = (criterion.misfit(images, targets) for images, targets in ((truth, labels), (truth.roll(1, 0), labels.roll(1, 0))))
    assert (other > 1e3 * own).all()
    assert (other > criterion.misfit(found, labels)).all()


def test_noise_of_the_same_norms_says_nothing_and_is_not_matched(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data)
    generator = make_generator(1)

    def noise(_: str, tensor: torch.Tensor) -> torch.Tensor:
        drawn = randn_like(tensor, generator)
        lengths = [part.flatten(1).norm(dim=1).reshape(-1, *[1] * (part.ndim - 1)) for part in (tensor, drawn)]
        return drawn * lengths[0] / lengths[1]

    noisy = observation.with_update(observation.update.map(noise))
    found = attacked("auto", noisy)
    assert gain(found, data) <= 0.5
    criterion = Criterion(noisy, rehearse(noisy, generator=make_generator(0)))
    assert not criterion.matched(criterion.misfit(found, data.private.labels[:VICTIMS, None])).any()


def test_more_time_never_gives_less(model: torch.nn.Module, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = observe(model, data, "gaussian_noise(std=0.01)")
    gains = []
    for seconds in (1, 10, 40, 160):
        ticks = itertools.count()  # a second passes with every look at the clock: the machine's speed does not matter
        monkeypatch.setattr("gitbench.attacker.attacks.auto.search.time.monotonic", lambda ticks=ticks: next(ticks))
        auto = Auto(seconds=seconds, profile="quick")
        gains.append(gain(auto(observation, generator=make_generator(0), fits=Seeded()).inputs, data))
    # What more time finds is weighed on the few images that play victims here: a tenth of a dB is their noise.
    assert all(later >= earlier - 0.3 for earlier, later in itertools.pairwise(gains)), gains


def test_no_attack_is_fitted_on_the_images_that_play_victims(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data)
    kept = {tuple(image.flatten().tolist()) for image in data.public.inputs[observation.kept]}
    fitted = observation.without_update().public
    assert len(kept) == len(data.public) // 8
    assert len(fitted) == len(data.public) - len(kept)
    assert not kept & {tuple(image.flatten().tolist()) for image in fitted.inputs}


def test_other_attacks_are_candidates_where_they_are_asked_for(model: torch.nn.Module, data: Data) -> None:
    observation, seen = observe(model, data, "gaussian_noise(std=0.01)"), []
    auto = Auto(profile="quick", also=("gifd",))
    assert auto.requires == {"architecture", "parameters", "public"}
    auto(observation, generator=make_generator(0), fits=Seeded(), progress=lambda what, done, total: seen.append(what.partition(":")[0]))
    assert {"gifd", "recursion", "auto"} <= set(seen)


@pytest.mark.parametrize("also", ["gifd", ("ig",), ("gifd", "auto")])
def test_other_attacks_are_named_and_known(also: object) -> None:
    with pytest.raises(ValueError, match=r"expected also to name attacks out of gias, gifd, gradinversion, such as \('gifd',\), got"):
        Auto(also=also)


def test_without_parameters_the_strongest_attack_on_public_pairs_is_all(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data).restricted(frozenset({"architecture", "public", "defense"}))
    auto, git = (load_attack(name, profile="quick")(observation, generator=make_generator(0), fits=Seeded()) for name in ("auto", "git"))
    assert torch.equal(auto.inputs, git.inputs)


def test_without_public_data_the_search_starts_from_grey(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data).restricted(frozenset({"architecture", "parameters"}))
    assert gain(attacked("auto", observation), data) > 0


def test_what_auto_learns_is_shared_with_its_parts(model: torch.nn.Module, data: Data) -> None:
    fits = Seeded()
    found = load_attack("auto", profile="quick")(observe(model, data), generator=make_generator(0), fits=fits)
    assert found.fit_seconds == len(fits.asked)
    together = list(fits.asked)
    for name in ("ridge", "lti", "git"):
        load_attack(name, profile="quick")(observe(model, data), generator=make_generator(0), fits=fits)
    assert set(fits.asked[len(together) :]) <= set(together)


@pytest.mark.parametrize("options", [{"seconds": 0.0}, {"seconds": float("nan")}, {"profile": "huge"}])
def test_options_are_checked(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected (seconds|profile)"):
        Auto(**options)


# What it rests on


def test_the_noise_of_a_defense_shows_when_it_is_rehearsed(model: torch.nn.Module, data: Data) -> None:
    found = rehearse(observe(model, data, "gaussian_noise(std=0.02)"), generator=make_generator(0))
    assert all(0.015 < value < 0.025 for name, value in found.deviation.items() if name.endswith("weight"))
    assert found.flags == frozenset()
    for spec in ("none", "pruning(rate=0.5)", "clipping(max_norm=0.1)", "dp_sgd(noise_multiplier=0.0, max_grad_norm=0.1)"):
        plain = rehearse(observe(model, data, spec), generator=make_generator(0))
        assert (plain.sloped, plain.scale) == (True, "known"), spec
        assert max(plain.deviation.values()) < 1e-6, spec


def test_a_defense_that_is_not_known_may_have_any_scale(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data).restricted(frozenset({"architecture", "parameters", "public"}))
    assert rehearse(observation, generator=make_generator(0)).scale == "update"


def test_a_free_scale_is_fitted_by_least_squares() -> None:
    generator = make_generator(0)
    update = Update({name: torch.randn(3, 4, 2, generator=generator).double() for name in "ab"})
    aim = update.map(lambda name, tensor: tensor * {"a": 2.0, "b": -3.0}[name])
    assert rescaled(update, aim, "known") is update
    by_tensor = rescaled(update, aim, "tensor")
    assert all(torch.allclose(by_tensor.tensors[name], aim.tensors[name]) for name in "ab")
    by_update = rescaled(update, aim, "update").flatten() / update.flatten()
    oracle = [float(torch.linalg.lstsq(update.flatten()[row, :, None], aim.flatten()[row, :, None]).solution) for row in range(3)]
    assert torch.allclose(by_update, torch.tensor(oracle, dtype=torch.float64)[:, None].expand_as(by_update))


def test_the_truth_has_about_one_squared_deviation_per_entry(model: torch.nn.Module, data: Data) -> None:
    observation = observe(model, data, "gaussian_noise(std=0.02)")
    criterion = Criterion(observation, rehearse(observation, generator=make_generator(0)))
    misfit = criterion.misfit(data.private.inputs[:VICTIMS, None], data.private.labels[:VICTIMS, None])
    assert torch.allclose(misfit / criterion.entries, torch.ones(VICTIMS), atol=0.1)


def test_the_prior_prefers_images_like_the_public_ones(model: torch.nn.Module, data: Data) -> None:
    images = data.private.inputs[:VICTIMS, None]
    noise = torch.rand(images.shape, generator=make_generator(0))
    observation = observe(model, data)
    for known in (observation, observation.restricted(frozenset({"architecture", "parameters"}))):
        criterion = Criterion(known, Rehearsal(dict.fromkeys(known.update.tensors, 0.0)))
        assert (criterion.prior(images) < criterion.prior(noise)).all()


@given(ratios=st.lists(st.floats(0, 1e12), min_size=2, max_size=2))
def test_a_better_match_counts_more_whatever_the_scale(ratios: list[float]) -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    update = Update({name: tensor[None].expand(2, *tensor.shape) for name, tensor in model.named_parameters()})
    observation = Observation(update=update, model=model, input_shape=(1, 2, 2), batch_size=1)
    criterion = Criterion(observation, Rehearsal(dict.fromkeys(update.tensors, 0.0)))
    low, high = criterion.energy(torch.tensor(sorted(ratios)) * criterion.entries).tolist()
    assert low <= high
    assert criterion.energy(criterion.entries.float()).tolist() == (criterion.entries / 2).tolist()


def test_rehearsals_can_be_compared() -> None:
    plain = Rehearsal({"a": 0.0})
    assert dataclasses.replace(plain, labels=0.2).flags == {"hides-labels"}
