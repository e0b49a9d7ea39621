"""What a case measured: the JSON file that everything after the measurement is built from."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from gitbench.case import Case

SCHEMA = 1

# File names that are no UTF-8 reach messages as lone surrogates, which JSON cannot hold.
Text = Annotated[str, AfterValidator(lambda text: text.encode("utf-8", "backslashreplace").decode())]
Verdict = Literal["holds", "leaks", "inconclusive"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Measure(_Model):
    """One metric of one case.

    Args:
        mean: over victims; None when any victim could not be measured.
        low: lower end of the 95 % interval of the mean; None with fewer than two victims.
        high: upper end.
        values: one per victim, the mean over its batch; None where it could not be measured.
    """

    mean: FiniteFloat | None
    low: FiniteFloat | None
    high: FiniteFloat | None
    values: tuple[FiniteFloat | None, ...]


class Exposure(_Model):
    """What the mean does not say: how many victims are past the threshold of a metric, and the worst of them.

    Args:
        leaked: victims past the threshold.
        victims: all that could be measured.
        share: ``leaked / victims``.
        low: lower end of Wilson's 95 % interval of the share.
        high: upper end.
        worst: the value of the victim that leaks most.
        worst_victim: its number, counted from 0.
        worst_seed: its seed.
    """

    leaked: int
    victims: int
    share: FiniteFloat
    low: FiniteFloat
    high: FiniteFloat
    worst: FiniteFloat
    worst_victim: int
    worst_seed: int


class Baselines(_Model):
    """What the numbers are compared with: the blind guess, and the undefended control."""

    blind: dict[str, FiniteFloat] = Field(default_factory=dict)
    control: dict[str, FiniteFloat | None] = Field(default_factory=dict)


class Cost(_Model):
    """Seconds on the wall; the peak of the process's memory while the case ran, in MiB."""

    fit_seconds: FiniteFloat = 0.0
    attack_seconds: FiniteFloat = 0.0
    peak_memory_mb: FiniteFloat | None = None


class Environment(_Model):
    """Versions and machine that produced the numbers."""

    gitbench: str
    torch: str
    torchvision: str
    python: str
    platform: str
    device: str
    threads: int


class Result(_Model):
    """One JSON file: ``<results>/cases/<case_id>.json``."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    case: Case
    case_id: str
    status: Literal["done", "error"]
    error: Text | None = None
    verdict: Verdict | None
    verdict_reason: Text
    gate: dict[str, FiniteFloat] = Field(default_factory=dict)
    metrics: dict[str, Measure] = Field(default_factory=dict)
    exposure: dict[str, Exposure] = Field(default_factory=dict)
    baselines: Baselines = Field(default_factory=Baselines)
    flags: tuple[str, ...] = ()
    cost: Cost = Field(default_factory=Cost)
    environment: Environment
    settings: dict[str, str] = Field(default_factory=dict)
    finished_at: str

    @model_validator(mode="after")
    def _identity(self) -> Self:
        if self.case_id != self.case.case_id:
            raise ValueError(f"case_id {self.case_id} does not belong to its case ({self.case.case_id})")
        for name, measure in self.metrics.items():
            if len(measure.values) != self.case.victims:
                raise ValueError(f"{name} has {len(measure.values)} values for {self.case.victims} victims")
        return self

    def to_json(self) -> str:
        """Indented JSON with the public key ``schema``."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"
