"""The SPEC language: how components are named on the command line, in files and in results.

``name``, ``name(key=value, ...)`` with Python literals, ``package.module:Name(...)`` or
``path/to/file.py:Name(...)``; defenses compose with ``|``, a prior and a refiner with ``+``.
Values are literals only: nothing is evaluated.
"""

from __future__ import annotations

import ast
import json
import math
import re
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal, get_args

from gitbench.core.errors import SpecError

Kind = Literal["attack", "defense", "model", "dataset", "client", "metric", "modality"]
KINDS: tuple[Kind, ...] = ("attack", "defense", "model", "dataset", "client")  # what names a cell; the others follow from these
OPERATORS: dict[Kind, str] = {"attack": "+", "defense": "|"}

_A: dict[Kind, str] = {kind: f"an {kind}" if kind == "attack" else f"a {kind}" for kind in get_args(Kind)}
_LITERALS = "None, True, False, numbers, strings, and lists, tuples or dicts of these"
_MAX_LENGTH = 4096
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_TARGET = re.compile(r"(?:[A-Za-z_][\w.]*|[^:|()]+\.py):[A-Za-z_]\w*\Z")


@dataclass(frozen=True)
class Part:
    """One component: what is named (``target``) and its keyword arguments, as typed."""

    target: str
    arguments: tuple[tuple[str, object], ...] = ()

    @property
    def label(self) -> str:
        """The part as people read it: a file is shown without its folder."""
        path, colon, name = self.target.rpartition(":")
        target = f"{PurePath(path).name}:{name}" if colon and path.endswith(".py") else self.target
        return _call(target, self.arguments)

    def __str__(self) -> str:
        return _call(self.target, self.arguments)


@dataclass(frozen=True)
class Spec:
    """One entry of an axis of the matrix: one part, or several joined by the kind's operator."""

    kind: Kind
    parts: tuple[Part, ...]

    @property
    def label(self) -> str:
        return self._joined([part.label for part in self.parts])

    def __str__(self) -> str:
        return self._joined([str(part) for part in self.parts])

    def _joined(self, texts: list[str]) -> str:
        operator = OPERATORS.get(self.kind, "")
        return (f" {operator} " if operator == "|" else operator).join(texts)


def parse_spec(kind: Kind, text: str) -> Spec:
    """Read one SPEC.

    Raises:
        SpecError: the text is no SPEC; the message shows the text and what was expected.
    """
    if not text.strip():
        raise SpecError(f"Expected the SPEC of {_A[kind]}, for example name(key=value), got an empty string.")
    if len(text) > _MAX_LENGTH:
        raise SpecError(f"Expected the SPEC of {_A[kind]} of at most {_MAX_LENGTH} characters, got {len(text)}.")
    operator = OPERATORS.get(kind)
    try:
        pieces = split_outside(text, operator) if operator else [text]
    except ValueError as error:
        raise SpecError(f"Cannot read the {kind} {text!r}: {error}.") from None
    spec = Spec(kind, tuple(_parse_part(kind, piece.strip(), text) for piece in pieces))
    try:
        length = len(str(spec))
    except ValueError:  # Python writes no integers of more than 4300 digits
        length = _MAX_LENGTH + 1
    if length > _MAX_LENGTH:  # results are stored under the canonical text: it must be readable too
        raise SpecError(f"Expected the SPEC of {_A[kind]} of at most {_MAX_LENGTH} characters when written out, got more.")
    return spec


def _call(target: str, arguments: tuple[tuple[str, object], ...]) -> str:
    if not arguments:
        return target
    return f"{target}({', '.join(f'{key}={value!r}' for key, value in arguments)})"


def split_outside(text: str, separator: str) -> list[str]:
    """Split at a character, but not inside brackets or quotes.

    Raises:
        ValueError: a bracket or quote is left open.
    """
    pieces, depth, quote, start, escaped = [], 0, "", 0, False
    for position, char in enumerate(text):
        if quote:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == quote:
                quote = ""
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == separator and depth == 0:
            pieces.append(text[start:position])
            start = position + 1
    if depth or quote:
        raise ValueError("a bracket or quote is left open")
    return [*pieces, text[start:]]


def _parse_part(kind: Kind, piece: str, whole: str) -> Part:
    target, bracket, rest = piece.partition("(")
    target = target.strip()
    path, colon, name = target.rpartition(":")
    if path.endswith(".py"):
        target = f"{PurePath(path)}{colon}{name}"  # ./mine.py is mine.py
    if not target.isprintable():  # it is shown in terminals and tables
        raise SpecError(f"Cannot read the {kind} {whole!r}: expected a name without control or other invisible characters, got {target!r}.")
    if not (_NAME.match(target) or _TARGET.match(target)):
        raise SpecError(
            f"Cannot read the {kind} {whole!r}: expected name, package.module:Name or path/to/file.py:Name, "
            f"each with (key=value, ...) if need be, got {piece!r}."
        )
    if not bracket:
        return Part(target)
    try:
        call = ast.parse(f"_({rest}", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise SpecError(f"Cannot read the {kind} {whole!r}: {piece!r} is not name(key=value, ...).") from None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise SpecError(f"Cannot read the {kind} {whole!r}: arguments must be given as key=value, got {piece!r}.")
    arguments: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise SpecError(f"Cannot read the {kind} {whole!r}: ** is not allowed, write key=value.")
        if keyword.arg in arguments:
            raise SpecError(f"Cannot read the {kind} {whole!r}: {keyword.arg!r} is given twice.")
        try:
            value = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            value = ...
        if not _plain(value):
            raise SpecError(f"Cannot read the {kind} {whole!r}: the value of {keyword.arg!r} must be a literal ({_LITERALS}).")
        arguments[keyword.arg] = value
    return Part(target, tuple(arguments.items()))


def _plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, bool | int | str):
        return True
    if isinstance(value, list | tuple):
        return all(_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _plain(item) for key, item in value.items())
    return False


def canonical_json(value: object) -> str:
    """JSON with one spelling for each value: sorted keys, no spaces, no NaN."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
