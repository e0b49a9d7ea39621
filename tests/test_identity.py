"""Objects that behave differently have different digests, equal ones the same in every process, and what cannot be told has none."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import logging
import operator
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from gitbench.identity.objects import digest_of_object

STD = 1.0
CONFIG = {"std": 1.0}


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Holder:
    def __init__(self, value: object) -> None:
        self.value = value


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value: object) -> None:
        self.value = value


@dataclasses.dataclass(slots=True)
class Data:
    value: object


class Pair(NamedTuple):
    first: object
    second: object


class Grown(list):
    extra: object = None


def closure(value: object) -> Callable[[], object]:
    return lambda: value


def made(value: object) -> object:
    class Made:
        def get(self) -> object:
            return value

    return Made()


def marked(value: object) -> Callable[[], None]:
    def function() -> None: ...

    function.value = value  # type: ignore[attr-defined]
    return function


def grown(value: object) -> Grown:
    found = Grown([1])
    found.extra = value
    return found


WAYS: dict[str, Callable[[int], object]] = {
    "number": lambda value: value,
    "tensor": lambda value: torch.arange(2000.0) + torch.tensor([0.0] * 1000 + [float(value)] * 1000),
    "array": lambda value: np.arange(5) + value,
    "module": lambda value: nn.ReLU() if value else nn.Tanh(),
    "dtype": lambda value: torch.float32 if value else torch.float64,
    "enum": lambda value: Colour.RED if value else Colour.BLUE,
    "path": lambda value: Path(str(value)),
    "set": lambda value: {"a", "b", str(value)},
    "deque": lambda value: collections.deque([torch.full((2000,), float(value))]),
    "view": lambda value: {"a": value}.values(),
    "partial": lambda value: functools.partial(print, value),
    "closure": closure,
    "local class": made,
    "class": lambda value: type("Local", (), {"scale": value}),
    "instance": lambda value: type("Local", (), {"scale": value})(),
    "slots": Slotted,
    "dataclass": lambda value: Data(torch.full((2000,), float(value))),
    "bound builtin": lambda value: {"a": value}.get,
    "bound method": lambda value: Holder(value).__init__,
    "function's attribute": marked,
    "list's attribute": grown,
    "random": random.Random,
    "bfloat16": lambda value: torch.full((3,), float(value), dtype=torch.bfloat16),
    "named tuple": lambda value: Pair(value, 2),
    "cached property": lambda value: type("Local", (), {"scale": functools.cached_property(closure(value))})(),
    "ufunc": lambda value: np.tanh if value else np.exp,
    "method": lambda value: torch.Tensor.mul if value else torch.Tensor.add,
    "builtin": lambda value: torch.relu if value else torch.tanh,
    "logger": lambda value: logging.getLogger(str(value)),
    "getter": operator.itemgetter,
    "nested": lambda value: Holder([Holder({"a": (value,)})]),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_differs_has_another_digest_and_what_is_equal_the_same(way: str) -> None:
    one, again, other = (digest_of_object(Holder(WAYS[way](value))) for value in (0, 0, 1))
    assert one is not None
    assert one == again != other


class Reading:
    def plain(self) -> float:
        return STD

    def nested(self) -> float:
        def inner() -> float:
            return STD

        return inner()

    def table(self) -> float:
        return CONFIG["std"]

    def module(self) -> float:
        return settings.STD

    def helped(self) -> float:
        return helper()


def helper() -> float:
    return STD


settings = sys.modules[__name__]


@pytest.mark.parametrize("way", ["plain", "nested", "table", "module", "helped"])
def test_what_a_test_patches_in_a_module_is_seen(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    alone = type("Alone", (), {"get": vars(Reading)[way]})
    before = digest_of_object(alone())
    if way == "table":
        monkeypatch.setitem(CONFIG, "std", 2.0)
    else:
        monkeypatch.setattr(settings, "STD", 2.0)
    assert before is not None
    assert digest_of_object(alone()) != before


@pytest.mark.parametrize("value", [object(), torch.Generator(), iter([]), np.array([object()]), open])
def test_what_does_not_show_what_it_holds_has_none_or_a_name(value: object) -> None:
    digest = digest_of_object(Holder(value))
    assert (digest is None) == (value is not open)


def test_cycles_end() -> None:
    found = Holder(None)
    found.value = [found]
    assert digest_of_object(found) is not None


def test_the_digest_is_the_same_in_every_process(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    kinds = {'a', 'b', 'c'}\n"
        "    def protect(self, name): return name in {'weight', 'bias', 'other'} or name in ({'x', 'y'}, (1, {2, 3}))\n"
    )
    code = "from mine import Mine; from gitbench.identity.objects import digest_of_object; print(digest_of_object(Mine()))"
    told = set()
    for seed in ("1", "2", "3"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join([str(tmp_path), *sys.path])}
        told.add(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment).stdout)
    assert len(told) == 1
    assert told != {"None\n"}
