"""What is not granted cannot be read."""

from __future__ import annotations

import pytest
import torch

import gitbench
from gitbench.attacker.players import at_once
from gitbench.clients.data import Data
from gitbench.core.errors import AttackError, NotGrantedError
from gitbench.core.random import make_generator
from gitbench.identity.threat import KNOWLEDGE, THREATS

OPTIONAL = sorted(KNOWLEDGE - {"architecture"})
ATTRIBUTE = {"parameters": "model"}


def observation(data: Data, granted: frozenset[str]) -> gitbench.Observation:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:2][:, None], data.private.labels[:2][:, None]
    return gitbench.Observation(
        update=gitbench.client_update(model, inputs, labels),
        model=model,
        input_shape=data.input_shape,
        labels=labels if "labels" in granted else None,
        public=data.public if "public" in granted else None,
        defense=gitbench.load_defense("none") if "defense" in granted else None,
        batchnorm_statistics={} if "batchnorm_statistics" in granted else None,
        parameters="parameters" in granted,
    )


@pytest.mark.parametrize("threat", sorted(THREATS))
def test_each_threat_model_grants_exactly_what_it_names(threat: str, data: Data) -> None:
    found = observation(data, THREATS[threat])
    assert found.granted == THREATS[threat]
    for name in OPTIONAL:
        if name in THREATS[threat]:
            getattr(found, ATTRIBUTE.get(name, name))
        else:
            with pytest.raises(NotGrantedError, match=repr(name)):
                getattr(found, ATTRIBUTE.get(name, name))


def test_the_architecture_holds_no_values(data: Data) -> None:
    found = observation(data, THREATS["eavesdropper"])
    assert all(parameter.is_meta for parameter in found.architecture.parameters())


def test_an_attack_is_shown_only_what_its_manifest_names(data: Data) -> None:
    class Peeking(gitbench.Attack):
        requires = frozenset({"architecture"})

        def run(self, observation, state, *, generator, progress):
            return observation.labels

    with pytest.raises(NotGrantedError, match="'labels'"):
        Peeking()(observation(data, KNOWLEDGE), generator=make_generator(0))


def test_fitting_sees_no_update(data: Data) -> None:
    class Cheating(gitbench.Attack):
        def fit(self, observation, *, generator, progress, checkpoint):
            return {"update": observation.update.flatten()}

    with pytest.raises(NotGrantedError, match="before it sees any update"):
        Cheating()(observation(data, KNOWLEDGE), generator=make_generator(0))


def test_an_attack_without_its_needs_says_what_is_missing(data: Data) -> None:
    with pytest.raises(NotGrantedError, match="ig needs parameters"):
        gitbench.load_attack("ig")(observation(data, THREATS["eavesdropper"]), generator=make_generator(0))


def test_ridge_needs_no_parameters(data: Data) -> None:
    found = gitbench.load_attack("ridge")(observation(data, THREATS["eavesdropper"]), generator=make_generator(0))
    assert found.inputs.shape == (2, 1, 3, 8, 8)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (lambda shape: None, "returned NoneType"),
        (lambda shape: torch.zeros(1), r"returned \(1,\), expected a tensor \(2, 1, 3, 8, 8\)"),
        (lambda shape: torch.full(shape, torch.nan), "NaN"),
        (lambda shape: torch.full(shape, 2.0), r"values in \[2, 2\]"),
    ],
)
def test_a_malformed_reconstruction_is_named(data: Data, output, message: str) -> None:
    class Malformed(gitbench.Attack):
        def run(self, observation, state, *, generator, progress):
            return output((2, 1, 3, 8, 8))

    with pytest.raises(AttackError, match=message):
        Malformed()(observation(data, KNOWLEDGE), generator=make_generator(0))


def test_public_updates_pass_through_the_defense_with_fresh_randomness(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    found = gitbench.Observation(
        update=gitbench.client_update(model, data.private.inputs[:1][None], data.private.labels[:1][None]),
        model=model,
        input_shape=data.input_shape,
        public=data.public,
        defense=gitbench.load_defense("gaussian_noise(std=0.5)"),
    )
    indices, generator = torch.arange(4)[:, None], make_generator(0)
    raw = found.public_updates(indices, generator=generator, adapt=False).flatten()
    first, second = (found.public_updates(indices, generator=generator).flatten() for _ in range(2))
    assert (first - raw).std().item() == pytest.approx(0.5, rel=0.1)
    assert not torch.allclose(first, second)


def test_what_is_learned_of_public_data_is_learned_once_for_all_victims(data: Data) -> None:
    whole = observation(data, frozenset({"architecture", "parameters", "public", "defense", "labels"}))
    drawn = iter(range(9))

    def learned(one: gitbench.Observation) -> int:
        return one.learned("a number", lambda: next(drawn))

    assert [learned(whole), learned(whole.with_update(whole.update)), learned(whole.restricted(KNOWLEDGE - {"labels"}))] == [0, 0, 0]
    assert [learned(whole.undefended()), learned(whole.restricted(KNOWLEDGE - {"public"})), learned(whole)] == [1, 2, 0]


def test_without_the_model_not_even_its_layers_are_seen(data: Data) -> None:
    blind = observation(data, KNOWLEDGE).without_model()
    assert blind.granted == KNOWLEDGE - {"architecture", "parameters"}
    readings = (
        lambda: blind.architecture, lambda: blind.model_digest, lambda: blind.sent, lambda: blind.entries, lambda: blind.chunk,
        lambda: blind.public_updates(torch.zeros(1, 1, dtype=torch.long), generator=make_generator(0)),
    )  # fmt: skip
    for reading in readings:
        with pytest.raises(NotGrantedError, match="read 'architecture'"):
            reading()
    with pytest.raises(NotGrantedError, match="read 'parameters'"):
        blind.model  # noqa: B018
    assert blind.input_shape == data.input_shape
    assert len(blind.public) == len(data.public)


@pytest.mark.parametrize(("defense", "apart"), [("none", 1), ("dp_sgd(noise_multiplier=1.0)", 4)])
def test_examples_that_are_protected_apart_count_in_what_is_asked_for_at_once(defense: str, apart: int, data: Data) -> None:
    model = gitbench.load_model("mlp(hidden=(2000,))", data)
    inputs, labels = data.private.inputs[None, :4], data.private.labels[None, :4]
    update = gitbench.client_update(model, inputs, labels)
    found = gitbench.Observation(
        update=update, model=model, input_shape=data.input_shape, public=data.public, defense=defense, batch_size=4
    )
    assert found.chunk == at_once(found.entries * apart)
    assert found.chunk < 64


@pytest.mark.parametrize(("entries", "asked"), [(1, 64), (2**18, 64), (2**20, 16), (2**21, 8), (2**22, 8), (2**24, 4), (2**28, 1)])
def test_of_large_models_fewer_updates_are_asked_for_at_once(entries: int, asked: int) -> None:
    assert at_once(entries) == asked
