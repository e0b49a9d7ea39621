"""Ridge regression: the normal equations of more rows, and a penalty that is chosen before the map is computed."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gitbench.attacker.tools.regression import LinearFit, _NormalEquations, fit_linear
from gitbench.core.random import make_generator


def rows_of(count: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = make_generator(seed)
    inputs = torch.randn(count, width, generator=generator, dtype=torch.float64) + 3
    return inputs, inputs @ torch.randn(width, 4, generator=generator, dtype=torch.float64) - 2


@settings(deadline=None)
@given(first=st.integers(1, 12), more=st.integers(1, 12), width=st.integers(1, 8), seed=st.integers(0, 99))
def test_equations_of_more_rows_are_those_of_all_rows(first: int, more: int, width: int, seed: int) -> None:
    inputs, targets = rows_of(first + more, width, seed)
    extended = _NormalEquations.of(inputs[:first], targets[:first]).extended(inputs[first:], targets[first:])
    whole = _NormalEquations.of(inputs, targets)
    found, slow = extended.solved(1e-2), whole.solved(1e-2)
    assert found is not None and slow is not None
    torch.testing.assert_close(extended.scale, whole.scale)
    torch.testing.assert_close(found(inputs), slow(inputs), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("thorough", [True, False])
@pytest.mark.parametrize("width", [5, 60], ids=["many rows", "few rows"])
def test_a_fit_knows_its_error_and_computes_its_map_when_asked(thorough: bool, width: int) -> None:
    inputs, targets = rows_of(40, width, 0)
    held = torch.arange(40) >= 30
    options = {"held": held, "bounds": (-math.inf, math.inf), "thorough": thorough}
    fit = LinearFit(inputs, targets, **options)
    assert "_fitted" not in vars(fit)
    assert fit.error == pytest.approx(fit_linear(inputs, targets, **options).error)
    assert ("_fitted" in vars(fit)) != thorough
    if width == 5:
        torch.testing.assert_close(fit.map(inputs), targets, rtol=1e-3, atol=1e-3)
