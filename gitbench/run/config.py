"""Options of a run: profiles, ``[tool.gitbench]`` and the command line, in that order of growing weight."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PositiveInt,
    ValidationError,
)

from gitbench.core.errors import ConfigError, nearest
from gitbench.core.spec import KINDS, Kind, Spec
from gitbench.core.text import shown
from gitbench.identity.case import UNDEFENDED, Case, CellLabels, Setting, make_case, several_rounds
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.loading import checked_spec
from gitbench.identity.threat import THREATS
from gitbench.judge.cost import ACCURACY_DROP
from gitbench.judge.sequential import FIRST, looks
from gitbench.run.profiles import PROFILES

_CHOOSING = {"attack", "model", "dataset", "client"}


def _without_controls(path: Path) -> Path:
    if any(ord(char) < 32 or ord(char) == 127 for char in str(path)):
        raise ValueError("expected a path without control characters")
    return path


_Path = Annotated[Path, AfterValidator(_without_controls)]


class Config(BaseModel):
    """Every option of a run, checked. Field names are the keys of ``[tool.gitbench]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    profile: str
    attack: tuple[str, ...] = Field(min_length=1)
    defense: tuple[str, ...] = Field(min_length=1)
    model: tuple[str, ...] = Field(min_length=1)
    dataset: tuple[str, ...] = Field(min_length=1)
    client: tuple[str, ...] = Field(min_length=1)
    seeds: Annotated[PositiveInt, Field(le=10_000)]
    victims: PositiveInt
    sequential: bool = False
    batch_size: tuple[PositiveInt, ...] = Field(min_length=1)
    rounds: tuple[Annotated[PositiveInt, Field(le=10_000)], ...] = Field(min_length=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threat: str = "server"
    threshold: dict[str, FiniteFloat]
    accuracy_drop_limit: FiniteFloat | None = None
    cost: bool = False
    results: _Path = Path(".gitbench")
    leaderboard: _Path | None = Path("leaderboards")
    report: _Path | None = None
    fresh: bool = False
    baseline: _Path | None = None
    tolerance: FiniteFloat = Field(default=0.5, ge=0)
    threads: Annotated[PositiveInt, Field(le=1024)] = 1
    timeout: Annotated[FiniteFloat, Field(gt=0)] | None = None
    known_leaks: tuple[str, ...] = ()

    @property
    def looks(self) -> tuple[int, ...]:
        """The numbers of victims that a verdict may take; one where it is fixed."""
        return looks(self.victims, PROFILES[self.profile].most_victims) if self.sequential else (self.victims,)

    def conditions(self, setting: Setting) -> dict[str, object]:
        """What must be equal for two tables to be comparable."""
        return {
            "threat": self.threat,
            "profile": self.profile,
            "client": setting.client,
            "victims": self.number_of_victims,
            "batch_size": setting.batch_size,
            **several_rounds(setting.rounds),
            "seeds": self.seeds,
        }

    def attacks_on(self, batch_size: int) -> tuple[str, ...]:
        """The attacks on batches of one size."""
        profile = PROFILES[self.profile]
        own = (self.attack, self.batch_size) != (profile.attack, profile.batch_size)
        return self.attack if own or batch_size == 1 else profile.batch_attack

    @property
    def number_of_victims(self) -> int | Literal["auto"]:
        """Of each seed; ``auto`` where the verdict decides."""
        return "auto" if self.sequential else self.victims


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix: its SPECs, and one case per seed."""

    dataset: Spec
    model: Spec
    defense: Spec
    attack: Spec
    cases: tuple[Case, ...]
    known_leak: bool

    @property
    def labels(self) -> CellLabels:
        return self.cases[0].labels

    @property
    def name(self) -> str:
        """``dataset/model/defense/attack``, with client, batch size and rounds before the defense where they are not the plainest."""
        return str(self.labels)

    @property
    def setting(self) -> Setting:
        """Of the table that this cell belongs to."""
        return self.labels.setting

    @property
    def is_control(self) -> bool:
        return self.cases[0].is_control


def make_config(settings: Mapping[str, Any], options: Mapping[str, Any], *, costs: bool = False) -> Config:
    """Merge ``[tool.gitbench]`` and the command line over a profile.

    Args:
        settings: the table from pyproject.toml.
        options: what the command line gave; None means that it did not.
        costs: whether a run that chooses none of its axes but the defenses trains under them, where nobody says.

    Raises:
        ConfigError: unknown key, profile, threat model or metric, or a value of the wrong kind.
    """
    options_of_a_run = Config.model_fields.keys() - {"accuracy_drop_limit"}  # which is one of the thresholds
    unknown = sorted(str(key) for key in set(settings) - options_of_a_run)
    if unknown:
        raise ConfigError(f"[tool.gitbench] has no option {shown(unknown[0])}.{nearest(unknown[0], sorted(options_of_a_run))}")
    given = {**settings, **{key: value for key, value in options.items() if value is not None}}
    name = given.get("profile", "quick")
    if not isinstance(name, str) or name not in PROFILES:
        raise ConfigError(f"Unknown profile {shown(name)}.{nearest(str(name), PROFILES)}")
    profile = PROFILES[name]
    merged: dict[str, Any] = {key: value for key, value in vars(profile).items() if key in Config.model_fields} | {"profile": name}
    if _CHOOSING & given.keys():
        merged["batch_size"] = (1,)
    for key, value in given.items():
        single = isinstance(value, str) if key in KINDS else key in ("batch_size", "rounds") and not isinstance(value, list | tuple)
        merged[key] = (value,) if single else value
    if "defense" in given and "known_leaks" not in given:
        merged["known_leaks"] = ()  # only the built-in matrix declares its weak defenses
    if merged["victims"] == "auto" or merged.get("sequential") is True:
        merged |= {"victims": FIRST, "sequential": True}
    if "cost" not in given:
        merged["cost"] = costs and not _CHOOSING & given.keys()
    thresholds = parse_thresholds(merged["threshold"])
    merged["accuracy_drop_limit"] = thresholds.pop(ACCURACY_DROP, None)
    merged["threshold"] = thresholds or dict(profile.threshold)
    for key in ("leaderboard", "report", "timeout"):
        if isinstance(merged.get(key), str) and merged[key].lower() == "none":
            merged[key] = None
    if str(merged.get("threat", "server")) not in THREATS:
        raise ConfigError(f"Unknown threat model {shown(merged['threat'])}.{nearest(str(merged['threat']), THREATS)}")
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in (first["loc"] if first["loc"][0] in KINDS else first["loc"][:1]))
        raise ConfigError(f"The option {key.replace('_', '-')} is {shown(first['input'])}: {first['msg']}.") from None


def parse_thresholds(value: object) -> dict[str, float]:
    """Read thresholds: a table, or ``METRIC=VALUE`` strings; ``accuracy_drop`` is one of cost, in percent.

    Raises:
        ConfigError: no such metric, or no number.
    """
    if isinstance(value, str):
        value = [value]
    if isinstance(value, list | tuple):
        pairs = []
        for text in value:
            metric, equals, number = str(text).partition("=")
            if not equals:
                raise ConfigError(f"Expected a threshold METRIC=VALUE, got {shown(text)}, for example psnr_gain=3.")
            pairs.append((metric.strip(), number.strip()))
    elif isinstance(value, Mapping):
        pairs = [(str(metric), number if isinstance(number, str) else shown(number)) for metric, number in value.items()]
    else:
        raise ConfigError(f"Expected thresholds METRIC=VALUE, got {shown(value)}.")
    found, known = {}, (*known_metrics(), ACCURACY_DROP)
    for metric, number in pairs:
        if metric not in known:
            raise ConfigError(f"Unknown metric {shown(metric)} in a threshold.{nearest(metric, known)}")
        try:
            found[metric] = float(number)
        except ValueError:
            raise ConfigError(f"Expected a number as the threshold of {metric}, got {shown(number)}.") from None
        if not abs(found[metric]) < float("inf"):
            raise ConfigError(f"Expected a finite number as the threshold of {metric}, got {shown(number)}.")
    if not found:
        raise ConfigError("Expected at least one threshold METRIC=VALUE, got none: nothing would be judged.")
    return found


def make_cells(config: Config) -> list[Cell]:
    """The whole matrix, controls first. Every SPEC is checked; nothing is imported for it.

    Raises:
        SpecError: a SPEC cannot be read or names something unknown.
        ConfigError: two cells would have the same name.
    """
    axes = {kind: _axis(kind, getattr(config, kind)) for kind in KINDS}
    axes["defense"].sort(key=lambda spec: str(spec) != UNDEFENDED)
    return [
        _cell(config, dataset, model, defense, attack, client=client, batch_size=size, rounds=rounds)
        for dataset, model, client in itertools.product(axes["dataset"], axes["model"], axes["client"])
        for size, rounds in itertools.product(dict.fromkeys(config.batch_size), dict.fromkeys(config.rounds))
        for defense, attack in itertools.product(axes["defense"], _axis("attack", config.attacks_on(size)))
    ]


def _axis(kind: Kind, texts: Sequence[str]) -> list[Spec]:
    specs = {str(spec): spec for spec in (checked_spec(kind, text) for text in texts)}
    if len({spec.label for spec in specs.values()}) < len(specs):
        raise ConfigError(f"Two entries of the {kind} axis have one name: {', '.join(texts)}. Rename a class or file.")
    return list(specs.values())


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
    return _cell(
        config,
        checked_spec("dataset", dataset),
        checked_spec("model", model),
        checked_spec("defense", defense),
        checked_spec("attack", attack),
        client=checked_spec("client", client or config.client[0]),
        batch_size=batch_size or config.batch_size[0],
        rounds=rounds or config.rounds[0],
    )


def _cell(config: Config, dataset: Spec, model: Spec, defense: Spec, attack: Spec, *, client: Spec, batch_size: int, rounds: int) -> Cell:
    cases = tuple(
        make_case(
            dataset=dataset,
            model=model,
            defense=defense,
            attack=attack,
            client=client,
            threat=config.threat,
            profile=config.profile,
            victims=config.victims,
            batch_size=batch_size,
            rounds=rounds,
            seed=seed,
        )
        for seed in range(config.seeds)
    )
    cell = Cell(dataset, model, defense, attack, cases, known_leak=False)
    known = not cell.is_control and any(fnmatch.fnmatchcase(cell.name, pattern) for pattern in config.known_leaks)
    return replace(cell, known_leak=known)
