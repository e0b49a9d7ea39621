"""A suite: a published table as data, to be run again and set beside what is measured. docs/suites.md explains the file."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, PositiveInt, ValidationError, model_validator

from gitbench.core.errors import ConfigError, GitbenchError, nearest
from gitbench.core.spec import Kind, parse_spec
from gitbench.core.text import printable, shown
from gitbench.identity.case import PLAIN_CLIENT, UNDEFENDED
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.threat import THREATS
from gitbench.run.profiles import PROFILES
from gitbench.store.folder import read_file
from gitbench.store.result import StrictModel

FULL = "paper"
"""The profile whose budget is the suite's own; any other is a reduced one."""

_LARGEST = 2**20  # bytes of a file
_MOST_LINES = 2000
_DIGITS = 8  # behind the point of a published figure


def _visible(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError("expected visible characters")
    return text.strip()


def _spec(kind: Kind, text: str) -> str:
    """A SPEC in its one spelling. A suite comes from strangers: it names what is installed, and no code of its own."""
    try:
        spec = parse_spec(kind, text)
    except GitbenchError as error:
        raise ValueError(str(error)) from None
    for part in spec.parts:
        if ":" in part.target:
            raise ValueError(f"expected the name of an installed {kind}, got {shown(part.target)}: code that a suite names is not run")
    return str(spec)


def _known(name: str, known: Callable[[], Any], what: str) -> str:
    if name not in known():
        raise ValueError(f"unknown {what} {shown(name)}.{nearest(name, known())}")
    return name


def _figure(value: Decimal) -> Decimal:
    exponent = value.as_tuple().exponent
    if not isinstance(exponent, int) or not -_DIGITS <= exponent <= 0 or abs(value) >= 10**6:
        raise ValueError(f"expected a figure below 1,000,000 with at most {_DIGITS} digits behind the point")
    return value


_Words = Annotated[str, Field(max_length=2000), AfterValidator(_visible)]
_Short = Annotated[str, Field(max_length=120), AfterValidator(_visible)]
_Figure = Annotated[Decimal, AfterValidator(_figure)]
_Need = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,39}$")]
_Metric = Annotated[str, AfterValidator(functools.partial(_known, known=known_metrics, what="metric"))]
_Threat = Annotated[str, AfterValidator(functools.partial(_known, known=lambda: THREATS, what="threat model"))]
_ProfileName = Annotated[str, AfterValidator(functools.partial(_known, known=lambda: PROFILES, what="profile"))]
_Attack = Annotated[str, AfterValidator(functools.partial(_spec, "attack"))]
_Defense = Annotated[str, AfterValidator(functools.partial(_spec, "defense"))]
_Model = Annotated[str, AfterValidator(functools.partial(_spec, "model"))]
_Client = Annotated[str, AfterValidator(functools.partial(_spec, "client"))]


class Source(StrictModel):
    """Where the published figures stand.

    Args:
        paper: its name, as tables print it.
        table: which of its tables.
        arxiv: its number there.
        budget: what the paper says of its training images, victims and iterations, and what it does not say.
    """

    paper: _Words
    table: _Short
    arxiv: Annotated[str, Field(pattern=r"^\d{4}\.\d{4,5}$")] | None = None
    budget: _Words


class DataNeed(StrictModel):
    """A data set that the table was made with. Whoever runs the suite gives it.

    Args:
        name: how ``--gitbench-dataset NAME=SPEC`` calls it.
        what: the data set in words.
        give: a SPEC that reads it, as an example.
        shape: of its images ``(C, H, W)``, where that is known; other data are refused.
        classes: how many, likewise.
        public: images that the paper's attackers learn from; fewer are a reduced run.
    """

    name: _Need
    what: _Words
    give: _Words
    shape: tuple[PositiveInt, PositiveInt, PositiveInt] | None = None
    classes: PositiveInt | None = None
    public: PositiveInt | None = None


class Budget(StrictModel):
    """How much is attacked with a profile."""

    victims: Annotated[PositiveInt, Field(le=1_000_000)]
    seeds: Annotated[PositiveInt, Field(le=10_000)] = 1


class SuiteLine(StrictModel):
    """An attack on a defense, and what was published of it.

    Args:
        attack: SPEC of ours; none where it is unavailable.
        paper: what the paper calls it.
        row: what the paper's row says beside it, for example a noise's strength.
        published: metric to figure, with the digits that were printed.
        public: public images that the line is about: with fewer there is nothing to compare.
        unavailable: why it cannot be measured here; it is printed.
    """

    paper: _Short
    attack: _Attack | None = None
    defense: _Defense = UNDEFENDED
    row: Annotated[str, Field(max_length=120)] = ""
    published: Annotated[dict[_Metric, _Figure], Field(min_length=1, max_length=20)]
    public: PositiveInt | None = None
    unavailable: _Words | None = None

    @model_validator(mode="after")
    def _possible(self) -> Self:
        for name, value in self.published.items():
            metric = known_metrics()[name]
            low, high = metric.low, metric.high
            if (low is not None and value < low) or (high is not None and value > high):
                raise ValueError(f"{name} {value} of {self.paper}: expected a value from {low} to {'any' if high is None else high}")
        return self


class SuiteSetting(StrictModel):
    """A part of the table: one data set, one model, one kind of client.

    Args:
        title: in words.
        data: the need that it is measured on; none where it is unavailable, and no model.
        rows: what the paper's rows differ in, the heading of their column.
        unavailable: why none of it can be measured here.
    """

    title: _Short
    data: _Need | None = None
    model: _Model | None = None
    client: _Client = PLAIN_CLIENT
    batch_size: Annotated[PositiveInt, Field(le=1_000_000)] = 1
    rounds: Annotated[PositiveInt, Field(le=10_000)] = 1
    rows: Annotated[str, Field(max_length=120)] = ""
    unavailable: _Words | None = None
    lines: Annotated[tuple[SuiteLine, ...], Field(min_length=1, max_length=_MOST_LINES)]


class Suite(StrictModel):
    """A published table, and how it is run here.

    Args:
        title: of the table, in words.
        threat: what the attackers are granted.
        profile: what is run where nobody chooses one.
        budgets: profile to sizes; that of ``paper`` is the full one.
        data: what must be given.
        notes: what differs between the paper's setting and ours.
        contradictions: what the paper says in two ways.
    """

    schema_version: Literal[1] = Field(alias="schema")
    title: _Words
    source: Source
    threat: _Threat = "server"
    profile: _ProfileName = FULL
    budgets: dict[_ProfileName, Budget]
    data: Annotated[tuple[DataNeed, ...], Field(min_length=1, max_length=50)]
    settings: Annotated[tuple[SuiteSetting, ...], Field(min_length=1, max_length=200)]
    notes: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()
    contradictions: Annotated[tuple[_Words, ...], Field(max_length=100)] = ()

    @property
    def full(self) -> Budget:
        """The sizes that are not reduced."""
        return self.budgets[FULL]

    def lines(self) -> Iterator[tuple[SuiteSetting, SuiteLine]]:
        """All of them, in the order of the file."""
        for setting in self.settings:
            for line in setting.lines:
                yield setting, line

    def need(self, name: str) -> DataNeed:
        """The data set of this name."""
        return next(need for need in self.data if need.name == name)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        for profile in (FULL, self.profile):
            if profile not in self.budgets:
                raise ValueError(f"budgets has no {profile!r}: say its victims and seeds")
        names = [need.name for need in self.data]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two data sets are called {twice!r}")
        unknown = next((setting.data for setting in self.settings if setting.data and setting.data not in names), None)
        if unknown is not None:
            raise ValueError(f"a setting names the data set {unknown!r}, which data does not list.{nearest(unknown, names)}")
        if sum(1 for _ in self.lines()) > _MOST_LINES:
            raise ValueError(f"expected at most {_MOST_LINES} lines")
        for setting, line in self.lines():
            given = {"data": setting.data, "model": setting.model, "attack": line.attack}
            missing = [key for key, value in given.items() if value is None]
            if missing and not (line.unavailable or setting.unavailable):
                raise ValueError(f"{setting.title}, {line.paper}: expected {' and '.join(missing)}, or unavailable with the reason")
        return self


def read_suite(path: Path) -> Suite:
    """Read a suite's file. Nothing that it names is imported.

    Raises:
        ConfigError: nothing there, or no suite; the message names the file, the place in it and what is wrong.
    """
    try:
        content = tomllib.loads(read_file(path, most=_LARGEST).decode(), parse_float=Decimal)
        return Suite.model_validate(content)
    except FileNotFoundError:
        raise ConfigError(f"Expected a suite at {path}, found no such file.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = printable(".".join(str(part) for part in first["loc"]), keep="")[:200]
        value = "" if first["type"] in ("missing", "value_error") and isinstance(first["input"], dict) else f", got {shown(first['input'])}"
        reason = printable(first["msg"].removeprefix("Value error, "), keep="")
        raise ConfigError(f"{path} is no suite: {where + ': ' if where else ''}{reason}{value}. docs/suites.md has the format.") from None
    except GitbenchError as error:
        raise ConfigError(str(error)) from None
    except (ValueError, ArithmeticError, RecursionError) as error:  # no UTF-8, no TOML, a number without end, nested too deep
        raise ConfigError(f"{path} is no suite: {printable(str(error), keep='')}. docs/suites.md has the format.") from None
