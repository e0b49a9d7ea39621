"""An update is a stack of victims: it can be cut, joined and mapped, and nothing of it is lost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gitbench import Update


def made(victims: int, *, examples: int | None = None) -> Update:
    generator = torch.Generator().manual_seed(victims)
    tensors = {"a": torch.randn(victims, 2, 3, generator=generator), "b": torch.randn(victims, generator=generator)}
    if examples is None:
        return Update(tensors)
    return Update(tensors, {name: tensor[:, None].expand(victims, examples, *tensor.shape[1:]) for name, tensor in tensors.items()})


def same(one: Update, other: Update) -> bool:
    pairs = [(one.tensors, other.tensors), (one.per_example or {}, other.per_example or {})]
    return all(mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine) for mine, theirs in pairs)


@given(victims=st.integers(1, 6), cut=st.integers(0, 6), examples=st.sampled_from([None, 1, 2]))
def test_what_is_cut_can_be_joined(victims: int, cut: int, examples: int | None) -> None:
    update = made(victims, examples=examples)
    cut = min(cut, victims)
    parts = [update[:cut], update[torch.arange(cut, victims)]]
    assert [len(part) for part in parts] == [cut, victims - cut]
    assert same(Update.cat(parts), update)


def test_booleans_choose_victims() -> None:
    update = made(3, examples=2)
    found = update[torch.tensor([True, False, True])]
    assert found.victims == 2
    assert found.per_example is not None
    assert torch.equal(found.per_example["a"], torch.stack([update.per_example["a"][0], update.per_example["a"][2]]))  # type: ignore[index]


def test_examples_are_joined_only_where_all_have_them() -> None:
    assert Update.cat([made(2, examples=1), made(1)]).per_example is None


def test_an_update_of_nothing_has_no_victims() -> None:
    assert len(Update({})) == 0


@pytest.mark.parametrize("examples", [None, 2])
def test_a_map_reaches_every_tensor(examples: int | None) -> None:
    update = made(2, examples=examples)
    assert same(update.map_all(lambda tensor: tensor * 2).map_all(lambda tensor: tensor / 2), update)
