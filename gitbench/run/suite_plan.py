"""What a run of a suite measures: its data, its budget and its cells, with what the user chose beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from gitbench.core.errors import ConfigError, nearest
from gitbench.core.spec import Kind, parse_spec
from gitbench.core.text import shown
from gitbench.identity.loading import checked_spec
from gitbench.run.config import Config, make_config
from gitbench.run.matrix import Cell, CellSpecs, listed_cells
from gitbench.run.suite import DataNeed, Suite, SuiteLine, SuiteSetting
from gitbench.run.suite_files import find_suite
from gitbench.store.result import StrictModel, Text

_FIXED = ("client", "batch_size", "rounds", "threat")  # the table's own
_NARROWING: tuple[Kind, ...] = ("attack", "defense", "model")
# What of [tool.gitbench] counts for a suite that is named on the command line: the rest is of the project's own matrix.
_PLACES = ("results", "leaderboard", "report", "device", "threads", "timeout", "executor", "memory", "gpus")
_ASSIGNED = re.compile(r"([A-Za-z0-9_-]+)=(?!=)")


class SuiteRun(StrictModel):
    """What a run was, for whoever makes its table: kept beside the results, and within the table.

    Args:
        suite: its name.
        data: need to the SPEC that was given for it.
        public: the same to its public images.
    """

    suite: Text
    data: dict[str, Text]
    public: dict[str, PositiveInt]
    profile: str
    victims: PositiveInt
    seeds: Annotated[PositiveInt, Field(le=10_000)]


@dataclass(frozen=True)
class PlannedLine:
    """A line of the table.

    Args:
        specs: its cell; None where there is none.
        why: why there is none.
    """

    setting: SuiteSetting
    line: SuiteLine
    specs: CellSpecs | None
    why: str = ""


@dataclass(frozen=True)
class SuitePlan:
    """A suite and how it is run.

    Args:
        name: of the suite, and of its table.
        data: need to the SPEC that was given for it, written out.
        config: the options of the run.
        chosen: the cells that are measured: all, or those that the user chose.
        every: all that the given data allow.
    """

    name: str
    suite: Suite
    data: Mapping[str, str]
    config: Config
    chosen: Sequence[CellSpecs]
    every: Sequence[CellSpecs]

    def cells(self, *, every: bool = False) -> list[Cell]:
        """The cells of the run; with ``every`` those that were not chosen too.

        Raises:
            SpecError: a SPEC names something unknown.
        """
        return listed_cells(self.config, self.every if every else self.chosen)

    def run(self, public: Mapping[str, int]) -> SuiteRun:
        """What there is to be known of it, with the number of public images of each data set."""
        config = self.config
        return SuiteRun(
            suite=self.name, data=dict(self.data), public=dict(public), profile=config.profile, victims=config.victims, seeds=config.seeds
        )


def plan_suite(settings: Mapping[str, Any], options: Mapping[str, Any]) -> SuitePlan | None:
    """The plan of a run with these options; None where they name no suite.

    Args:
        settings: ``[tool.gitbench]``.
        options: of the command line; None means that it did not say.

    Raises:
        ConfigError: the suite cannot be found or read, its data are missing, or an option does not go with it.
        SpecError: a SPEC cannot be read or names something unknown.
    """
    said = {key: value for key, value in options.items() if value is not None}
    given = said.get("suite") or settings.get("suite")
    if given is None:
        return None
    if not isinstance(given, str):
        raise ConfigError(f"Expected the name of a suite, got {shown(given)}.")
    own = settings if settings.get("suite") == given else {key: settings[key] for key in _PLACES if key in settings}
    chosen = {**own, **said}
    name, suite = find_suite(given)
    for key in _FIXED:
        if key in chosen:
            option = key.replace("_", "-")
            raise ConfigError(
                f"The suite {name} has a {option} of its own: take {option} away, or write a suite of yours (docs/suites.md)."
            )
    data = _given_data(name, suite, chosen.pop("dataset", ()))
    every = lines = [one.specs for one in planned_lines(suite, data) if one.specs is not None]
    for kind in _NARROWING:
        lines = _narrowed(kind, chosen.pop(kind, None), lines, every, name)
    if not lines:
        raise ConfigError(f"Nothing of the suite {name} is left to be measured. Choose fewer options beside it.")
    return SuitePlan(name, suite, data, _config(suite, chosen, lines), chosen=tuple(lines), every=tuple(every))


def planned_lines(suite: Suite, data: Mapping[str, str]) -> list[PlannedLine]:
    """Every line of a suite with its cell, on the data that are given."""
    found = []
    for setting, line in suite.lines():
        specs = None
        why = line.unavailable or setting.unavailable or ""
        if why:
            why = f"not available: {why}"
        elif setting.data not in data:
            why = f"no data: {setting.data}"
        else:
            assert setting.data is not None
            assert setting.model is not None
            assert line.attack is not None
            specs = CellSpecs(
                dataset=data[setting.data],
                model=setting.model,
                defense=line.defense,
                attack=line.attack,
                client=setting.client,
                batch_size=setting.batch_size,
                rounds=setting.rounds,
            )
        found.append(PlannedLine(setting, line, specs, why))
    return found


def how_to_give(need: DataNeed) -> str:
    """``cifar10: CIFAR-10 (3x32x32, 10 classes): --gitbench-dataset "cifar10=npz(path='cifar10.npz')"``."""
    size = ["x".join(map(str, need.shape))] if need.shape else []
    size += [f"{need.classes} classes"] if need.classes else []
    told = f" ({', '.join(size)})" if size else ""
    spec = need.give.replace('"', '\\"')
    return f'{need.name}: {need.what}{told}: --gitbench-dataset "{need.name}={spec}"'


def _given_data(name: str, suite: Suite, texts: object) -> dict[str, str]:
    """Need to SPEC: a SPEC that names no need is of the first that nobody has named."""
    given = [texts] if isinstance(texts, str) else list(texts) if isinstance(texts, list | tuple) else [shown(texts)]
    needs = [need.name for need in suite.data]
    found: dict[str, str] = {}
    unnamed = []
    for text in map(str, given):
        match = _ASSIGNED.match(text)
        if match is None:
            unnamed.append(text)
            continue
        need = match[1]
        if need not in needs:
            raise ConfigError(f"The suite {name} has no data set {shown(need)}.{nearest(need, needs)}")
        if need in found:
            raise ConfigError(f"The data set {need} of the suite {name} is given twice.")
        found[need] = text[match.end() :]
    free = [need for need in needs if need not in found]
    if len(unnamed) > len(free):
        raise ConfigError(f"The suite {name} needs {len(needs)} data sets ({', '.join(needs)}), {len(given)} are given.")
    found |= dict(zip(free, unnamed, strict=False))
    if not found:
        told = "\n".join(f"  {how_to_give(need)}" for need in suite.data)
        some = " With some of them, the lines of the others are left out." if len(needs) > 1 else ""
        raise ConfigError(f"The suite {name} needs data, and none are given.{some} Nothing is downloaded. It was made with\n{told}")
    return {need: str(checked_spec("dataset", text)) for need, text in found.items()}


def _narrowed(kind: Kind, wanted: object, lines: Sequence[CellSpecs], every: Sequence[CellSpecs], name: str) -> list[CellSpecs]:
    if wanted is None:
        return list(lines)
    texts = [wanted] if isinstance(wanted, str) else list(wanted) if isinstance(wanted, list | tuple) else [shown(wanted)]
    known = list(dict.fromkeys(getattr(one, kind) for one in every))
    kept: set[str] = set()
    for text in texts:
        matching = {one for one in known if _named(kind, str(text), one)}
        if not matching:
            raise ConfigError(f"The suite {name} has no {kind} {shown(text)}.{nearest(str(text), known)}")
        kept |= matching
    return [one for one in lines if getattr(one, kind) in kept]


def _named(kind: Kind, wanted: str, text: str) -> bool:
    """Whether a SPEC is the one that is wanted, or has its name where the wanted one has no options."""
    chosen, one = parse_spec(kind, wanted), parse_spec(kind, text)
    if any(part.arguments for part in chosen.parts):
        return str(chosen) == str(one)
    return [part.target for part in chosen.parts] == [part.target for part in one.parts]


def _config(suite: Suite, chosen: Mapping[str, Any], lines: Sequence[CellSpecs]) -> Config:
    profile = chosen.get("profile", suite.profile)
    budget = suite.budgets.get(profile) if isinstance(profile, str) else None
    sizes: dict[str, Any] = {} if budget is None else {"victims": budget.victims, "seeds": budget.seeds}
    axes = {
        key: tuple(dict.fromkeys(getattr(one, key) for one in lines))
        for key in ("dataset", "model", "defense", "attack", "client", "batch_size", "rounds")
    }
    usual = {"profile": profile, "known_leaks": ("*",)}  # the paper's attacks leak: that is what is compared
    config = make_config({}, {**usual, **sizes, **chosen, **axes, "threat": suite.threat})
    if config.sequential:
        raise ConfigError("Expected a number of victims, got 'auto': a suite compares figures, and judges nothing.")
    return config
