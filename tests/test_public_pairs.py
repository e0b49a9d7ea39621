"""Public pairs: what a defense draws for them."""

from __future__ import annotations

import pytest
import torch

import gitbench
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.clients.data import Data
from gitbench.core.progress import silent
from gitbench.core.random import make_generator


class RareCoin(gitbench.Defense):
    """Leaves most victims' updates as they are, and zeroes a few that it draws."""

    def protect(self, update: gitbench.Update, *, generator: torch.Generator) -> gitbench.Update:
        kept = torch.rand(len(update), generator=generator) > 0.03
        return update.map(lambda _, tensor: tensor * kept.reshape(-1, *(1,) * (tensor.ndim - 1)))


def observed(data: Data, defense: str | gitbench.Defense | None) -> gitbench.Observation:
    model = gitbench.load_model("mlp", data)
    update = gitbench.client_update(model, data.private.inputs[:1][:, None], data.private.labels[:1][:, None])
    return gitbench.Observation(update=update, model=model, input_shape=data.input_shape, public=data.public, defense=defense)


@pytest.mark.parametrize(
    ("defense", "expected"),
    [(None, False), ("none", False), ("pruning(rate=0.5)", False), ("gaussian_noise(std=0.01)", True), (RareCoin(), True)],
)
def test_pairs_know_whether_the_defense_draws(data: Data, defense: str | gitbench.Defense | None, expected: bool) -> None:
    pairs = PublicPairs(observed(data, defense), torch.arange(8)[:, None], generator=make_generator(0), progress=silent, what="test")
    assert pairs.random is expected


@pytest.mark.parametrize("defense", [None, "pruning(rate=0.5)", "gaussian_noise(std=0.01)"])
def test_gradients_that_are_computed_again_are_those_that_are_kept(data: Data, defense: str | None) -> None:
    observation, order, rows = observed(data, defense), torch.arange(12)[:, None], torch.arange(3, 10)
    kept, again = (
        PublicPairs(observation, order, generator=make_generator(0), progress=silent, what="test", budget=budget) for budget in (2**30, 0)
    )
    for found, expected in (
        (again.gradients(rows), kept.gradients(rows)),
        (again.updates(rows, generator=make_generator(1)), kept.updates(rows, generator=make_generator(1))),
    ):
        assert found.tensors.keys() == expected.tensors.keys()
        for name, tensor in expected.tensors.items():
            torch.testing.assert_close(found.tensors[name], tensor)


@pytest.mark.parametrize("budget", [0, 2**30])
def test_some_tensors_alone_are_asked_for(data: Data, budget: int) -> None:
    observation, order, rows = observed(data, None), torch.arange(6)[:, None], torch.arange(4)
    every = PublicPairs(observation, order, generator=make_generator(0), progress=silent, what="test", budget=budget)
    name = list(observation.sent)[-1]
    alone = PublicPairs(observation, order, generator=make_generator(0), progress=silent, what="test", budget=budget, names=[name])
    for found in (alone.gradients(rows), every.gradients(rows, [name])):
        assert list(found.tensors) == [name]
        torch.testing.assert_close(found.tensors[name], every.gradients(rows).tensors[name])
