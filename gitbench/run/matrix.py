"""The matrix of a run: its cells, and the cases of each, made of the options' SPECs."""

from __future__ import annotations

import fnmatch
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, overload

from gitbench.core.errors import ConfigError
from gitbench.core.spec import KINDS, Kind, Spec
from gitbench.identity.case import UNDEFENDED, Case, CellLabels, Setting, code_digest, make_case
from gitbench.identity.loading import checked_spec
from gitbench.identity.names import Target
from gitbench.identity.sources import Written, written
from gitbench.run.config import Config

_NAMED: tuple[Kind, ...] = ("dataset", "model", "defense", "attack")


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix: its SPECs, and one case per seed."""

    dataset: Spec
    model: Spec
    defense: Spec
    attack: Spec
    cases: Sequence[Case]
    labels: CellLabels
    known_leak: bool = False

    @functools.cached_property
    def name(self) -> str:
        """``dataset/model/defense/attack``, with client, batch size and rounds before the defense where they are not the plainest."""
        return str(self.labels)

    @property
    def setting(self) -> Setting:
        """Of the table that this cell belongs to."""
        return self.labels.setting

    @property
    def is_control(self) -> bool:
        return str(self.defense) == UNDEFENDED


def make_cells(config: Config) -> list[Cell]:
    """The whole matrix, controls first. Every SPEC is checked; nothing is imported for it.

    Raises:
        SpecError: a SPEC cannot be read or names something unknown.
        ConfigError: two cells would have the same name.
    """
    read = functools.cache(written)  # as long as the matrix: a hundred SPECs may name one component
    axes = {kind: _axis(kind, getattr(config, kind), read) for kind in KINDS}
    axes["defense"].sort(key=lambda one: one.text != UNDEFENDED)
    maker = _Maker(config)
    attacks = {config.attack: axes["attack"]}  # and other ones on batches
    cells = []
    for dataset, model, client in itertools.product(axes["dataset"], axes["model"], axes["client"]):
        for size, rounds in itertools.product(dict.fromkeys(config.batch_size), dict.fromkeys(config.rounds)):
            texts = config.attacks_on(size)
            if texts not in attacks:
                attacks[texts] = _axis("attack", texts, read)
            for defense, attack in itertools.product(axes["defense"], attacks[texts]):
                entries: dict[Kind, _Entry] = {"dataset": dataset, "model": model, "defense": defense, "attack": attack, "client": client}
                cells.append(maker.cell(entries, batch_size=size, rounds=rounds))
    return cells


def _axis(kind: Kind, texts: Sequence[str], read: Callable[[Target], Written]) -> list[_Entry]:
    entries = {entry.text: entry for entry in (_Entry(checked_spec(kind, text), read) for text in texts)}
    if len({entry.label for entry in entries.values()}) < len(entries):
        raise ConfigError(f"Two entries of the {kind} axis have one name: {', '.join(texts)}. Rename a class or file.")
    return list(entries.values())


@dataclass(frozen=True)
class CellSpecs:
    """A cell by its SPECs, as texts."""

    dataset: str
    model: str
    defense: str
    attack: str
    client: str
    batch_size: int
    rounds: int


def listed_cells(config: Config, listed: Sequence[CellSpecs]) -> list[Cell]:
    """Cells that are no product of axes, each once, in their order.

    Raises:
        SpecError: a SPEC cannot be read or names something unknown.
        ConfigError: two of them would have the same name.
    """
    read = functools.cache(written)
    entry = functools.cache(lambda kind, text: _Entry(checked_spec(kind, text), read))
    maker, cells = _Maker(config), []
    for one in dict.fromkeys(listed):
        entries: dict[Kind, _Entry] = {kind: entry(kind, getattr(one, kind)) for kind in KINDS}
        cells.append(maker.cell(entries, batch_size=one.batch_size, rounds=one.rounds))
    twice = next((name for name, count in Counter(cell.name for cell in cells).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(f"Two cells have the name {twice}. Rename a class or file.")
    return cells


def make_cell(
    config: Config,
    *,
    dataset: str,
    model: str,
    defense: str,
    attack: str,
    client: str | None = None,
    batch_size: int | None = None,
    rounds: int | None = None,
) -> Cell:
    """One cell with the options of a run, from SPECs. Client, batch size and rounds are the first of the run where they are None.

    Raises:
        SpecError: a SPEC cannot be read or names something unknown.
    """
    entries: dict[Kind, _Entry] = {
        "dataset": _Entry(checked_spec("dataset", dataset)),
        "model": _Entry(checked_spec("model", model)),
        "defense": _Entry(checked_spec("defense", defense)),
        "attack": _Entry(checked_spec("attack", attack)),
        "client": _Entry(checked_spec("client", client or config.client[0])),
    }
    return _Maker(config).cell(entries, batch_size=batch_size or config.batch_size[0], rounds=rounds or config.rounds[0])


class _Entry:
    """One SPEC of an axis, and what each of its cells asks of it: found once, and as long as there is such a cell."""

    def __init__(self, spec: Spec, read: Callable[[Target], Written] = written) -> None:
        self.spec = spec
        self._read = read
        self.text = str(spec)
        self.label = spec.label

    @functools.cached_property
    def code(self) -> str:
        return code_digest(self.spec, read=self._read)

    def digested(self) -> Self:
        """Itself, once it is known that all behind it can be digested.

        Raises:
            SpecError: it cannot.
        """
        assert self.code
        return self


class _Maker:
    """Makes cells of one run. Thousands of them are made of a few SPECs and the same conditions.

    Args:
        config: the options of the run.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._first: Case | None = None

    def cell(self, entries: Mapping[Kind, _Entry], *, batch_size: int, rounds: int) -> Cell:
        """The cell of one SPEC of each kind.

        Raises:
            SpecError: what stands behind one of them cannot be digested.
        """
        if self._first is None:
            self._first = self._stamped(entries)
        found = tuple(entry.digested() for entry in entries.values())
        cases = _Cases(self._first, found, batch_size, rounds, self._config.seeds)
        written: dict[str, str] = {kind: entry.label for kind, entry in entries.items()}
        labels = CellLabels(**written, batch_size=batch_size, rounds=rounds)
        dataset, model, defense, attack = (entries[kind].spec for kind in _NAMED)
        cell = Cell(dataset, model, defense, attack, cases, labels)
        patterns = () if cell.is_control else self._config.known_leaks
        known = any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in patterns)
        return replace(cell, known_leak=True) if known else cell

    def _stamped(self, entries: Mapping[Kind, _Entry]) -> Case:
        config = self._config
        return make_case(
            dataset=entries["dataset"].spec,
            model=entries["model"].spec,
            defense=entries["defense"].spec,
            attack=entries["attack"].spec,
            client=entries["client"].spec,
            threat=config.threat,
            profile=config.profile,
            victims=config.victims,
            batch_size=1,
            seed=0,
        )


@dataclass(frozen=True, slots=True)
class _Cases(Sequence[Case]):
    """The cases of one cell, one per seed. They are made when they are asked for: thousands of cells wait, and few run at a time."""

    first: Case
    entries: tuple[_Entry, ...]
    batch_size: int
    rounds: int
    seeds: int

    def __len__(self) -> int:
        return self.seeds

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Case]: ...
    def __getitem__(self, index: int | slice) -> Case | Sequence[Case]:
        if isinstance(index, slice):
            return [self[seed] for seed in range(self.seeds)[index]]
        # Of the first case the version, the measuring chain and what the threat model grants are those of all others.
        first: dict[str, Any] = vars(self.first)
        texts: dict[str, str] = {entry.spec.kind: entry.text for entry in self.entries}
        codes: dict[str, str] = {entry.spec.kind: entry.code for entry in self.entries}
        own = {"batch_size": self.batch_size, "rounds": self.rounds, "seed": range(self.seeds)[index], "code": {**first["code"], **codes}}
        return Case(**{**first, **texts, **own})
