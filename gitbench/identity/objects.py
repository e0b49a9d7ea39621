"""What an object is, as text: two defenses that behave differently must not be taken for one, whatever they print."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import functools
import hashlib
import logging
import operator
import random
import re
import sys
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from gitbench.identity.libraries import holds_libraries

_PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath, type(Ellipsis))
# Whose text says all. Other things must show what they hold.
_TOLD = (
    *(range, slice, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, fractions.Fraction, re.Pattern),
    *(logging.Logger, operator.itemgetter, operator.attrgetter, operator.methodcaller),
)
_TOLD_NAMES = ("torch.dtype", "torch.device", "torch.Size", "torch.layout", "torch.memory_format", "numpy.ufunc")
_DESCRIPTORS = (types.MemberDescriptorType, types.GetSetDescriptorType)
_LISTS = (list, tuple, collections.deque, collections.abc.KeysView, collections.abc.ValuesView, collections.abc.ItemsView)


def digest_of_object(found: object) -> str | None:
    """Digest (16 hex digits) of an object's class, with its functions, and of all that it holds; None where it cannot be told.

    Classes and functions of gitbench and of libraries are named only: their sources are digested elsewhere, or are not one's own.
    """
    try:
        lines = "\n".join(_Description().of(found))
    except Exception:  # noqa: BLE001 - whatever an object's own code raises when it is looked at
        return None
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


class _Description:
    """Remembers what it has described, so that cycles end and what is shared is told once."""

    def __init__(self) -> None:
        self._seen: dict[int, int] = {}
        self._kept: list[object] = []  # no address is given to a second thing meanwhile

    def of(self, found: Any) -> Iterator[str]:
        """Lines that say what a thing is.

        Raises:
            TypeError: it does not show what it holds.
        """
        if isinstance(found, _PLAIN):
            yield f"{type(found).__name__} {found!r}"
            return
        if id(found) in self._seen:
            yield f"again {self._seen[id(found)]}"
            return
        self._seen[id(found)] = len(self._seen)
        self._kept.append(found)
        yield f"{_named(type(found))} ("
        yield from self._content(found)
        yield ")"

    def _content(self, found: Any) -> Iterator[str]:
        if isinstance(found, type):
            yield from self._class(found)
        elif isinstance(found, types.ModuleType):
            yield found.__name__
        elif isinstance(found, types.FunctionType):
            yield from self._function(found)
        elif isinstance(found, types.CodeType):
            yield from self._code(found)
        elif isinstance(found, types.BuiltinFunctionType | types.MethodWrapperType):
            yield found.__qualname__
            yield from self.of(found.__self__)
        elif isinstance(found, types.MethodDescriptorType | types.WrapperDescriptorType | types.ClassMethodDescriptorType):
            yield f"{_named(found.__objclass__)} {found.__name__}"
        elif isinstance(found, functools.cached_property):
            yield from self.of(found.func)
        elif isinstance(found, types.MethodType):
            yield from self.of((found.__func__, found.__self__))
        elif isinstance(found, staticmethod | classmethod):
            yield from self.of(found.__func__)
        elif isinstance(found, property):
            yield from self.of((found.fget, found.fset))
        elif isinstance(found, functools.partial):
            yield from self.of((found.func, found.args, found.keywords))
        elif isinstance(found, enum.Enum):
            yield f"{found.name} {found.value!r}"
        elif hasattr(found, "detach") and hasattr(found, "cpu"):  # a tensor; numpy has no bfloat16
            plain = found.detach().cpu()
            yield str(found.dtype)
            yield from _array((plain.double() if plain.is_floating_point() else plain).numpy())
        elif hasattr(found, "tobytes") and hasattr(found, "dtype"):
            yield from _array(found)
        elif isinstance(found, _TOLD) or _named(type(found)) in _TOLD_NAMES:
            yield repr(found)
        else:
            yield from self._held(found)

    def _held(self, found: Any) -> Iterator[str]:
        slots = {name for cls in type(found).__mro__ for name in _names(vars(cls).get("__slots__", ()))} - {"__dict__", "__weakref__"}
        attributes = {name: getattr(found, name) for name in sorted(slots) if hasattr(found, name)}
        # The part of a SPEC says how it was asked for, which the attributes say too.
        attributes |= {name: value for name, value in getattr(found, "__dict__", {}).items() if name != "_part"}
        if isinstance(found, _LISTS):
            yield from (line for item in found for line in self.of(item))
        elif isinstance(found, set | frozenset):
            yield from sorted("\n".join(_Description().of(item)) for item in found)
        elif isinstance(found, Mapping):
            yield from (line for pair in found.items() for one in pair for line in self.of(one))
        elif isinstance(found, random.Random):
            yield repr(found.getstate())
        elif not slots and not hasattr(found, "__dict__"):
            raise TypeError(f"cannot tell what {found!r} holds")
        yield from (line for name, value in attributes.items() for line in (name, *self.of(value)))
        yield from self.of(type(found))

    def _class(self, cls: type) -> Iterator[str]:
        for base in cls.__mro__:
            yield _named(base)
            if not _is_own(base.__module__):
                continue
            for name, value in vars(base).items():
                if name.startswith("__") and name not in ("__init__", "__call__", "__getattr__", "__getattribute__"):
                    continue
                # Slots, and the fields of a named tuple, are told with what they hold.
                if not isinstance(value, _DESCRIPTORS) and type(value).__name__ != "_tuplegetter" and not name.startswith("_abc_"):
                    yield name
                    yield from self.of(value)
            fields = dataclasses.fields(base) if dataclasses.is_dataclass(base) else ()
            yield from (line for field in fields if isinstance(field.default, _PLAIN) for line in self.of(field.default))

    def _function(self, found: types.FunctionType) -> Iterator[str]:
        yield f"{found.__module__}.{found.__qualname__}"
        if not _is_own(found.__module__):
            return
        yield from self.of(found.__code__)
        yield from self.of((found.__defaults__, found.__kwdefaults__, dict(found.__dict__)))
        for cell in found.__closure__ or ():
            try:
                content = cell.cell_contents
            except ValueError:  # not filled yet
                continue
            yield from self.of(content)
        # A setting or a helper that a test has patched is no edit of any file.
        names = sorted(_mentioned(found.__code__))
        for name in names:
            value = found.__globals__.get(name)
            if isinstance(value, types.ModuleType):
                if _is_own(value.__name__):
                    yield from (f"{name}.{one} {vars(value)[one]!r}" for one in names if isinstance(vars(value).get(one), _PLAIN))
            elif value is not None:
                yield name
                yield from self.of(value)

    def _code(self, code: types.CodeType) -> Iterator[str]:
        yield f"{code.co_name} {code.co_code!r} {code.co_names!r} {code.co_varnames!r} {code.co_freevars!r}"
        for constant in code.co_consts:
            yield from self.of(constant)


def _mentioned(code: types.CodeType) -> set[str]:
    """Names that a function, and those within it, may take from its module."""
    within = [_mentioned(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return {*code.co_names, *(name for names in within for name in names)}


def _names(slots: str | Iterable[str]) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _named(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


@functools.cache
def _is_own(module: str) -> bool:
    """Whether a module is neither gitbench's, nor Python's, nor of an installed package."""
    top = module.partition(".")[0]
    if top in ("gitbench", "gitbench_defenses", "pytest_gitbench") or top in sys.stdlib_module_names:
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None:
        return True
    return not any(holds_libraries(folder) for folder in Path(file).parents)


def _array(found: Any) -> Iterator[str]:
    if found.dtype == object:
        raise TypeError("cannot tell what an array of objects holds")
    yield f"{found.dtype} {found.shape} {hashlib.sha256(found.tobytes()).hexdigest()}"
