"""Rotations of flattened inputs: the separable one against its matrix written out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gitbench.attacker.tools import rotations
from gitbench.attacker.tools.priors import Gaussian, Whitened, of_spectrum
from gitbench.attacker.tools.rotations import Dense, Rotation, Separable
from gitbench.core.random import make_generator


def orthogonal(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))[0]


def both(sides: tuple[int, int, int], seed: int) -> tuple[Separable, Dense]:
    """The same rotation in its two forms."""
    generator = make_generator(seed)
    factors = [orthogonal(size, generator) for size in sides]
    return Separable(*factors), Dense(torch.kron(factors[0], torch.kron(factors[1], factors[2])).T)


SIDES = st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5))


@settings(max_examples=30, deadline=None)
@given(sides=SIDES, count=st.integers(0, 4), seed=st.integers(0, 99))
def test_a_separable_rotation_is_its_matrix(sides: tuple[int, int, int], count: int, seed: int) -> None:
    fast, slow = both(sides, seed)
    size = sides[0] * sides[1] * sides[2]
    rows = torch.randn(2, count, size, generator=make_generator(seed, "rows"), dtype=torch.float64)
    values = torch.rand(size, generator=make_generator(seed, "values"), dtype=torch.float64)
    torch.testing.assert_close(fast.coordinates(rows), slow.coordinates(rows))
    torch.testing.assert_close(fast.rows(rows), slow.rows(rows))
    torch.testing.assert_close(fast.rows(fast.coordinates(rows)), rows)
    torch.testing.assert_close(fast.squared().rows(rows), slow.squared().rows(rows))
    torch.testing.assert_close(fast.scaled(values), slow.scaled(values))
    torch.testing.assert_close(fast.rows(values), slow.rows(values))


@pytest.mark.parametrize("index", [0, 1], ids=["separable", "dense"])
def test_a_rotation_is_stored_and_read(index: int) -> None:
    rotation: Rotation = both((3, 4, 2), 0)[index]
    found = rotations.stored(rotation.tensors("image"), "image")
    assert type(found) is type(rotation)
    rows = torch.eye(24, dtype=torch.float64)
    torch.testing.assert_close(found.rows(rows), rotation.rows(rows), atol=1e-6, rtol=0)
    assert rotations.stored({}, "image") is None


def test_a_prior_of_the_spectrum_is_small_and_equals_its_written_out_form() -> None:
    images = torch.rand(12, 3, 6, 4, generator=make_generator(0))
    prior = of_spectrum(images)
    assert isinstance(prior.directions, Separable)
    assert sum(tensor.numel() for tensor in prior.tensors("image").values()) < 3 * images[0].numel()
    dense = Gaussian(prior.mean, prior.spread, Dense(prior.directions.rows(torch.eye(72, dtype=torch.float64)).T))
    torch.testing.assert_close(prior.variance, dense.variance)
    torch.testing.assert_close(prior.precision(), dense.precision())
    rows = images[:3].flatten(1).double()
    torch.testing.assert_close(prior.weighted(rows), rows @ dense.precision())
    torch.testing.assert_close(prior.drawn(2, make_generator(1)), dense.drawn(2, make_generator(1)))
    shown = images.reshape(4, 3, 3, 6, 4)
    one, other = Whitened(prior), Whitened(dense)
    torch.testing.assert_close(one.coordinates(shown), other.coordinates(shown), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.images(one.coordinates(shown), shown.shape), shown, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.slope(shown), other.slope(shown), atol=1e-5, rtol=1e-4)
