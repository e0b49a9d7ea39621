"""Options of a run: profiles, ``[tool.gitbench]`` and the command line, in that order of growing weight."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
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
from gitbench.core.modality import Modality
from gitbench.core.spec import KINDS
from gitbench.core.text import shown
from gitbench.identity.case import Setting, several_rounds
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.known_modalities import modality_of
from gitbench.identity.threat import THREATS
from gitbench.judge.cost import ACCURACY_DROP
from gitbench.judge.sequential import FIRST, looks
from gitbench.run.profiles import PROFILES, profile_for

_CHOOSING = {"attack", "model", "dataset", "client"}


def _without_controls(path: Path) -> Path:
    if any(ord(char) < 32 or ord(char) == 127 for char in str(path)):
        raise ValueError("expected a path without control characters")
    return path


def _known_executor(text: str) -> str:
    where, equals, address = text.partition("=")
    if not (text in ("local", "ray") or (where == "ray" and equals and address.strip() == address != "")):
        raise ValueError("expected local, ray or ray=ADDRESS, for example ray=auto or ray=10.0.0.1:6379")
    return text


_Path = Annotated[Path, AfterValidator(_without_controls)]


class Config(BaseModel):
    """Every option of a run, checked. Field names are the keys of ``[tool.gitbench]``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str | None = None
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
    executor: Annotated[str, AfterValidator(_known_executor)] = "local"
    memory: Annotated[FiniteFloat, Field(gt=0)] = 2.0  # GiB of a cell on a cluster; on one machine it takes what it needs
    gpus: Annotated[FiniteFloat, Field(gt=0, le=64)] = 1.0  # of a cell on a cluster that computes on GPUs

    @property
    def on_cluster(self) -> bool:
        """Whether the cells of this run are measured by the workers of a cluster."""
        return self.executor != "local"

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
    profile = profile_for(name, _modality(given.get("dataset")))
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


def _modality(datasets: object) -> type[Modality]:
    """Of the datasets that somebody chose; of what is no SPEC that of images, for what follows to refuse it."""
    texts = [datasets] if isinstance(datasets, str) else datasets if isinstance(datasets, list | tuple) else []
    return modality_of([text for text in texts if isinstance(text, str)])


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


def __getattr__(name: str) -> Any:
    """In 0.1 the matrix was made here, which is now :mod:`gitbench.run.matrix`."""
    if name not in ("Cell", "make_cell", "make_cells"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("gitbench.run.matrix"), name)
