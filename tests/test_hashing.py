"""Feature hashing: linear, repeatable, and as large as what it hashes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gitbench.attacker.tools.hashing import Hashing
from gitbench.core.random import make_generator

shuffles = pytest.mark.parametrize("shuffled", [True, False])


def hashing(entries: int, bins: int, seed: int, shuffled: bool) -> Hashing:
    return Hashing(entries, bins, generator=make_generator(seed), shuffled=shuffled)


@shuffles
@given(entries=st.integers(2, 50), seed=st.integers(0, 100), data=st.data())
def test_hashing_is_linear_and_the_same_for_the_same_seed(shuffled: bool, entries: int, seed: int, data: st.DataObject) -> None:
    bins = data.draw(st.integers(1, entries - 1))
    first, second = torch.randn(2, 4, entries, generator=torch.Generator().manual_seed(seed)).double()
    hashed = hashing(entries, bins, seed, shuffled)
    assert hashed(first).shape == (4, bins)
    assert torch.allclose(hashed(2 * first - second), 2 * hashed(first) - hashed(second))
    assert torch.equal(hashed(first), hashing(entries, bins, seed, shuffled)(first))


@shuffles
def test_every_entry_goes_to_one_bin_with_a_sign(shuffled: bool) -> None:
    matrix = hashing(20, 5, 0, shuffled)(torch.eye(20)) * 2  # the square root of the entries in a bin
    assert torch.equal(matrix.abs().sum(1), torch.ones(20))
    assert torch.equal(matrix.abs().sum(0), torch.full((5,), 4.0))
    assert {3, 4} == set((hashing(20, 6, 0, shuffled)(torch.eye(20)) != 0).sum(0).tolist())


@shuffles
def test_a_sum_is_as_large_as_one_entry(shuffled: bool) -> None:
    vector = torch.rand(1, 40, generator=torch.Generator().manual_seed(0)) + 1
    found = torch.stack([hashing(40, 10, seed, shuffled)(vector).square().mean() for seed in range(2000)]).mean()
    assert found == pytest.approx(float(vector.square().mean()), rel=0.03)
