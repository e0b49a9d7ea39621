"""In which shares candidates are believed: those that serve played victims best."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gitbench.attacker.tools.trust import chosen_shares, fitted_shares
from gitbench.core.random import make_generator


def test_the_shares_of_the_candidates_are_those_that_serve_played_victims_best() -> None:
    generator = make_generator(0)
    truth = torch.rand(8, 1, 1, 4, 4, generator=generator)
    noise = torch.randn(3, *truth.shape, generator=generator) * torch.tensor([0.1, 0.1, 1.0]).reshape(3, 1, 1, 1, 1, 1)
    found = fitted_shares(truth + noise, truth)
    assert torch.allclose(found, torch.tensor([0.5, 0.5, 0.0]), atol=0.1)
    exact = fitted_shares(torch.stack([truth, truth + noise[0]]), truth)
    assert torch.equal(exact, torch.tensor([1.0, 0.0]))


@given(seed=st.integers(0, 1000), count=st.integers(1, 3))
def test_the_chosen_shares_are_those_of_the_lowest_mean_logarithm_of_the_error(seed: int, count: int) -> None:
    generator = make_generator(seed)
    candidates, truth = torch.rand(count, 5, 1, 2, 3, generator=generator), torch.rand(5, 1, 2, 3, generator=generator)
    choices = torch.rand(7, count, generator=generator)
    choices = choices / choices.sum(1, keepdim=True)
    mixed = torch.einsum("nk,krbij->nrbij", choices.double(), candidates.double())
    scores = (mixed - truth).square().flatten(2).mean(2).log().mean(1)
    assert torch.equal(chosen_shares(candidates, truth, choices), choices[int(scores.argmin())])
