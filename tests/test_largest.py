"""The largest entries of a row: the same as by a stable sort, whatever is equal, and in whatever way they are looked for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gitbench.clients.largest import largest


def by_sorting(rank: torch.Tensor, count: int) -> torch.Tensor:
    """The slow, obvious way."""
    order = rank.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(rank).scatter_(1, order[:, :count], 1.0)


@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.5, 2.0, float("nan"), float("inf")]), min_size=1, max_size=12),
    count=st.integers(0, 12),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_as_many_as_are_asked_for_are_the_largest(values: list[float], count: int, dtype: torch.dtype) -> None:
    rank = torch.tensor([values, values[::-1]], dtype=dtype)
    count = min(count, len(values))
    mask = largest(rank, count)
    assert mask.dtype == dtype and mask.sum(1).tolist() == [count, count]
    assert torch.equal(mask, by_sorting(rank, count))


@pytest.mark.parametrize("kind", ["smooth", "many are equal", "most are zero", "some are no numbers", "sorted"])
@pytest.mark.parametrize("share", [0.0001, 0.01, 0.5, 0.9, 0.99999, 1.0])
def test_in_a_long_row_a_sample_says_where_to_look(kind: str, share: float) -> None:
    rank = torch.randn(3, 40_000, generator=torch.Generator().manual_seed(0)).abs()
    if kind == "many are equal":
        rank = (20 * rank).round()
    elif kind == "most are zero":
        rank[rank < 2] = 0
    elif kind == "some are no numbers":
        rank[:, ::7] = torch.nan
    elif kind == "sorted":
        rank = rank.sort(dim=1).values
    count = round(share * rank.shape[1])
    assert torch.equal(largest(rank, count), by_sorting(rank, count))


def test_a_sample_that_misleads_changes_nothing() -> None:
    rank = torch.rand(1, 2048 * 16, generator=torch.Generator().manual_seed(0))
    rank[:, ::16] = 5.0  # all that the sample sees
    assert torch.equal(largest(rank, 9000), by_sorting(rank, 9000))
