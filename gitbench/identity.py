"""What an object is, as text: two defenses that behave differently must not be taken for one, whatever they print."""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

_PLAIN = (type(None), bool, int, float, complex, str, bytes, PurePath, type(Ellipsis))
_DEEPEST = 40


def digest_of_object(found: object) -> str | None:
    """Digest (16 hex digits) of an object's class, with its functions, and of all that it holds; None where it cannot be told.

    Of classes, those of gitbench and of libraries are named only: their sources are digested elsewhere.
    """
    try:
        lines = "\n".join(_described(found, (), classes=True))
    except Exception:  # noqa: BLE001 - whatever an object's own code raises when it is looked at
        return None
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()[:16]


def _described(found: Any, seen: tuple[int, ...], *, classes: bool = False) -> Iterator[str]:
    if isinstance(found, _PLAIN):
        yield f"{type(found).__name__} {found!r}"
        return
    if id(found) in seen:
        yield f"again {seen.index(id(found))}"
        return
    if len(seen) > _DEEPEST:
        raise TypeError(f"nested deeper than {_DEEPEST}")
    seen = (*seen, id(found))
    yield f"{_named(type(found))} ("
    if isinstance(found, type):
        yield from _class(found, seen)
    elif isinstance(found, enum.Enum):
        yield found.name
    elif isinstance(found, list | tuple):
        for item in found:
            yield from _described(item, seen)
    elif isinstance(found, set | frozenset):
        yield from sorted("\n".join(_described(item, seen)) for item in found)
    elif isinstance(found, Mapping):
        for key, value in found.items():
            yield from _described(key, seen)
            yield from _described(value, seen)
    elif isinstance(found, types.FunctionType):
        yield from _function(found, seen)
    elif isinstance(found, types.MethodType | staticmethod | classmethod):
        yield from _described(found.__func__, seen)
        yield from _described(getattr(found, "__self__", None), seen)
    elif isinstance(found, property):
        yield from _described((found.fget, found.fset), seen)
    elif isinstance(found, functools.partial):
        yield from _described((found.func, found.args, found.keywords), seen)
    elif isinstance(found, types.ModuleType | types.BuiltinFunctionType | types.CodeType):
        yield repr(found.co_code) if isinstance(found, types.CodeType) else found.__name__
    elif hasattr(found, "detach") and hasattr(found, "cpu"):  # a tensor
        yield from _array(found.detach().cpu().numpy())
    elif hasattr(found, "tobytes") and hasattr(found, "dtype"):
        yield from _array(found)
    elif hasattr(found, "__dict__"):
        if classes:
            yield from _class(type(found), seen)
        slots = {name: getattr(found, name, None) for cls in type(found).__mro__ for name in getattr(cls, "__slots__", ())}
        yield from _described({**slots, **_own(vars(found))}, seen)
    elif " at 0x" not in repr(found):
        yield repr(found)
    else:
        raise TypeError(f"cannot tell what {found!r} holds")
    yield ")"


def _own(attributes: Mapping[str, object]) -> dict[str, object]:
    """Without how it was asked for: the part of a SPEC says nothing that the attributes do not."""
    return {name: value for name, value in attributes.items() if name != "_part"}


def _named(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _class(cls: type, seen: tuple[int, ...]) -> Iterator[str]:
    fields = [field.default for field in dataclasses.fields(cls)] if dataclasses.is_dataclass(cls) else []
    yield from (repr(default) for default in fields if isinstance(default, _PLAIN))
    for base in cls.__mro__:
        yield _named(base)
        if base.__module__.partition(".")[0] in ("builtins", "abc", "typing", "gitbench", "torch", "numpy", "enum"):
            continue
        for name, value in vars(base).items():
            if name.startswith("__") and name not in ("__init__", "__call__"):
                continue
            if isinstance(value, types.MemberDescriptorType | types.GetSetDescriptorType) or name.startswith("_abc_"):
                continue
            yield name
            yield from _described(value, seen)


def _function(found: types.FunctionType, seen: tuple[int, ...]) -> Iterator[str]:
    yield from _code(found.__code__)
    yield from _described((found.__defaults__, found.__kwdefaults__), seen)
    for cell in found.__closure__ or ():
        try:
            content = cell.cell_contents
        except ValueError:  # not filled yet
            continue
        yield from _described(content, seen)
    # A setting of its module that a test has patched is no edit of any file.
    for name in found.__code__.co_names:
        value = found.__globals__.get(name)
        if isinstance(value, _PLAIN):
            yield f"{name} {value!r}"


def _code(code: types.CodeType) -> Iterator[str]:
    yield f"{code.co_name} {code.co_code!r} {code.co_names!r} {code.co_varnames!r}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code(constant)
        else:
            yield repr(constant)


def _array(found: Any) -> Iterator[str]:
    if found.dtype == object:
        raise TypeError("cannot tell what an array of objects holds")
    yield f"{found.dtype} {found.shape} {hashlib.sha256(found.tobytes()).hexdigest()}"
