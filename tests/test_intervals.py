"""Intervals of the mean over victims and seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.judge.statistics import FEW, Interval, interval, student

UNKNOWN = Interval(None, None, None)
finite = st.floats(-100, 100)


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_the_interval_covers_the_mean_at_sixteen_victims(kind: str) -> None:
    random = np.random.default_rng(0)
    draw = random.normal if kind == "normal" else random.exponential
    mean = 0.0 if kind == "normal" else 1.0
    found = [interval([draw(size=16).tolist()]) for _ in range(400)]
    covered = sum(one.low <= mean <= one.high for one in found) / len(found)
    assert 0.90 <= covered <= 0.99


def test_the_interval_covers_the_mean_over_several_seeds() -> None:
    random = np.random.default_rng(1)
    found = [interval(random.normal(size=(3, 8)).tolist()) for _ in range(200)]
    assert sum(one.low <= 0 <= one.high for one in found) / len(found) >= 0.90


def test_the_same_values_give_the_same_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    np.random.seed(1)  # noqa: NPY002 - whatever others do to the global state
    first = interval([values])
    np.random.seed(2)  # noqa: NPY002
    assert interval([values]) == first
    assert first.mean == pytest.approx(6.2)
    assert interval([values, values]) == interval([values, values])


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [[]],
        [[1.0], []],
        [[None]],
        [[1.0, None, 2.0]],
        [[1.0, 2.0], [3.0, None]],
        [[1.0, math.nan]],
        [[math.inf, 1.0]],
        [[-math.inf, 1.0]],
    ],
)
def test_a_missing_value_leaves_no_number(groups: list[list[float | None]]) -> None:
    assert interval(groups) == UNKNOWN


def test_one_value_has_a_mean_but_no_interval() -> None:
    assert interval([[2.5]]) == Interval(2.5, None, None)
    assert interval([[2.5], [3.5]]).low is not None


def test_equal_values_have_an_interval_without_width() -> None:
    assert interval([[2.5] * 4]) == Interval(2.5, 2.5, 2.5)
    assert interval([[2.5] * 4, [2.5] * 2]) == Interval(2.5, 2.5, 2.5)


def test_more_victims_narrow_the_interval_and_differing_seeds_widen_it() -> None:
    random = np.random.default_rng(0)
    few, many = (interval([random.normal(size=size).tolist()]) for size in (8, 200))
    assert many.high - many.low < (few.high - few.low) / 2
    values = random.normal(size=(3, 30)) * 0.1
    alike, apart = interval(values.tolist()), interval((values + np.array([[-5.0], [0.0], [5.0]])).tolist())
    assert apart.high - apart.low > 10 * (alike.high - alike.low)


def test_seeds_with_unlike_numbers_of_victims_weigh_by_victim() -> None:
    found = interval([[0.0] * 9, [1.0]])
    assert found.mean == pytest.approx(0.1)
    assert found.low <= 0.1 <= found.high


@given(groups=st.lists(st.lists(finite, min_size=1, max_size=12), min_size=1, max_size=3))
def test_the_interval_encloses_the_mean_and_that_of_one_seed_lies_within_the_values(groups: list[list[float]]) -> None:
    found, values = interval(groups), [value for group in groups for value in group]
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    if len(values) > 1:
        assert found.low <= found.mean <= found.high
    if len(values) >= FEW and len(groups) == 1:  # seeds that differ say more of other seeds than their values do
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


@given(values=st.lists(finite, min_size=2, max_size=FEW - 1))
def test_a_few_victims_have_at_least_students_interval(values: list[float]) -> None:
    found, exact = interval([values]), student([values])
    assert found.low <= exact.low + 1e-9 * max(map(abs, values))
    assert found.high >= exact.high - 1e-9 * max(map(abs, values))
