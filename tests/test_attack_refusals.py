"""What an attack may not do: need more memory than there is, or learn what is no tensor."""

from __future__ import annotations

import pytest

import gitbench
from gitbench.attacker.attack import Hybrid, load_attack
from gitbench.attacker.observation import Observation
from gitbench.clients.data import Data
from gitbench.core.errors import AttackError
from gitbench.core.random import make_generator


def observation_of(data: Data, *, batch_size: int = 1, **granted: object) -> Observation:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[: 2 * batch_size], data.private.labels[: 2 * batch_size]
    update = gitbench.client_update(model, inputs.reshape(2, batch_size, *data.input_shape), labels.reshape(2, batch_size))
    return Observation(update=update, model=model, input_shape=data.input_shape, batch_size=batch_size, public=data.public, **granted)


def test_an_attack_that_needs_more_memory_than_there_is_is_refused(data: Data) -> None:
    class Huge(gitbench.Attack):
        fitted = 0

        def memory(self, observation: Observation) -> int:
            return observation.update.victims * 2**60

        def fit(self, observation, *, generator, progress, checkpoint):
            self.fitted += 1
            return {}

    attack = Huge()
    for refused in (attack, Hybrid(prior=attack, refiner=load_attack("ig(iterations=1)"))):  # type: ignore[arg-type]
        with pytest.raises(AttackError, match=r"needs about 2147483648\.0 GiB, [\d.]+ GiB are available: lower limit="):
            refused(observation_of(data), generator=make_generator(0))
    assert not attack.fitted


def test_what_is_learned_must_be_tensors(data: Data) -> None:
    class Wrong(gitbench.Attack):
        def fit(self, observation, *, generator, progress, checkpoint):
            return {"weight": 1.0}

    with pytest.raises(AttackError, match=r"Wrong.*expected tensors by name, got weight: float"):
        Wrong()(observation_of(data), generator=make_generator(0))
