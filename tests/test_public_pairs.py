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


@pytest.mark.parametrize(
    ("defense", "expected"),
    [(None, False), ("none", False), ("pruning(rate=0.5)", False), ("gaussian_noise(std=0.01)", True), (RareCoin(), True)],
)
def test_pairs_know_whether_the_defense_draws(data: Data, defense: str | gitbench.Defense | None, expected: bool) -> None:
    model = gitbench.load_model("mlp", data)
    update = gitbench.client_update(model, data.private.inputs[:1][:, None], data.private.labels[:1][:, None])
    observation = gitbench.Observation(update=update, model=model, input_shape=data.input_shape, public=data.public, defense=defense)
    pairs = PublicPairs(observation, torch.arange(8)[:, None], generator=make_generator(0), progress=silent, what="test")
    assert pairs.random is expected
