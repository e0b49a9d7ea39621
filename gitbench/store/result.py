"""What a case measured: the JSON file that everything after the measurement is built from."""

from __future__ import annotations

import datetime
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, model_validator

from gitbench.core.errors import nearest
from gitbench.core.text import printable
from gitbench.identity.case import Case
from gitbench.identity.known_metrics import known_metrics

SCHEMA = 1
TIMED_OUT = "timed-out"  # the flag of a case that was stopped by its budget of time
NOT_JUDGED = "not judged yet"  # the reason of a verdict that nobody has given

# Messages hold what users' code wrote: nothing that a terminal would obey, and no lone surrogate, which JSON cannot hold.
Text = Annotated[str, AfterValidator(printable)]
Verdict = Literal["holds", "leaks", "inconclusive"]


class StrictModel(BaseModel):
    """Base of what is stored: frozen, and no field too many."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Measure(StrictModel):
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


class Exposure(StrictModel):
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


class Baselines(StrictModel):
    """What the numbers are compared with: the blind guess, and the undefended control."""

    blind: dict[str, FiniteFloat] = Field(default_factory=dict)
    control: dict[str, FiniteFloat | None] = Field(default_factory=dict)


class Cost(StrictModel):
    """Seconds on the wall; the peak of the process's memory while the case ran, in MiB."""

    fit_seconds: FiniteFloat = 0.0
    attack_seconds: FiniteFloat = 0.0
    peak_memory_mb: FiniteFloat | None = None


class Utility(StrictModel):
    """What the defended update is still good for, measured by the evaluator on the victims' own batches.

    Args:
        alignment: of each victim ``<defended, raw> / |raw|²``: 1 for the raw gradient, about 1 on average for
            unbiased noise, 0 where nothing is left to learn from.
        cosine: of the defended and the raw update, both averaged over the victims first.
        descent: how far one step along the averaged defended update lowers the victims' loss, as a share of
            what the same step lengths along the raw one do. Not positive: training would not progress.
        norm_ratio: median of ``|defended| / |raw|``.
        equal: share of victims whose update was sent as it was.
        random: whether the defense draws random numbers.
    """

    alignment: Measure
    cosine: FiniteFloat | None
    descent: FiniteFloat | None
    norm_ratio: FiniteFloat | None
    equal: FiniteFloat
    random: bool


class Training(StrictModel):
    """What the defense costs: a model that was trained with defended updates, beside the same trained with raw ones.

    Args:
        images: that both were tested on.
        right: of them, classified right after the defended training.
        lost: right after the undefended training alone.
        gained: right after the defended one alone.
        guessed: of the class that most of them have: right for one who always says that class.
        cosine: of the defended and the raw update, both averaged over as many clients of the first round as there are victims; None where
            one of them is zero.
        equal: share of these clients whose update was sent as it was.
        rounds: steps of the server.
        clients: updates of a round.
        batch_size: images of each.
        bytes_sent: of one update, after lossless compression (zlib).
        seconds: that a client takes for one update.
        epsilon: privacy that all rounds spend of one training image (add or remove one), where the defense promises any.
        delta: at which that holds.
    """

    images: Annotated[int, Field(ge=1)]
    right: Annotated[int, Field(ge=0)]
    lost: Annotated[int, Field(ge=0)]
    gained: Annotated[int, Field(ge=0)]
    guessed: Annotated[int, Field(ge=0)]
    cosine: FiniteFloat | None
    equal: FiniteFloat
    rounds: int
    clients: int
    batch_size: int
    bytes_sent: FiniteFloat
    seconds: FiniteFloat
    epsilon: FiniteFloat | None = None
    delta: FiniteFloat | None = None

    @property
    def undefended(self) -> int:
        """Of the images, classified right after the undefended training."""
        return self.right + self.lost - self.gained

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if not (self.gained <= self.right <= self.images and self.lost <= self.images - self.right):
            raise ValueError(f"{self.right} right, {self.lost} lost and {self.gained} gained are no counts of {self.images} images")
        return self


class Environment(StrictModel):
    """Versions and machine that produced the numbers."""

    gitbench: str
    torch: str
    torchvision: str
    python: str
    platform: str
    device: str
    threads: int


class Result(StrictModel):
    """One JSON file: ``<results>/cases/<case_id>.json``."""

    schema_version: int = Field(default=SCHEMA, alias="schema")
    case: Case
    case_id: str
    status: Literal["done", "error"]
    error: Text | None = None
    verdict: Verdict | None
    verdict_reason: Text
    gate: dict[str, FiniteFloat] = Field(default_factory=dict)
    accuracy_drop_limit: FiniteFloat | None = None  # in percent, the most that the defense may cost to hold; None asks for no cost
    metrics: dict[str, Measure] = Field(default_factory=dict)
    exposure: dict[str, Exposure] = Field(default_factory=dict)
    baselines: Baselines = Field(default_factory=Baselines)
    flags: tuple[str, ...] = ()
    utility: Utility | None = None
    training: Training | None = None
    certified: tuple[bool, ...] | None = (
        None  # of each victim (gitbench.measure.certificate); None: the attacker cannot tell, or it was not asked
    )
    local_model: tuple[FiniteFloat, ...] = ()  # gitbench.measure.fingerprint of the client's own model, where it differs
    cost: Cost = Field(default_factory=Cost)
    environment: Environment
    settings: dict[str, str] = Field(default_factory=dict)
    timeout: FiniteFloat | None = None  # seconds, of a case that was stopped by them
    finished_at: str

    @model_validator(mode="after")
    def _identity(self) -> Self:
        if self.case_id != self.case.case_id:
            raise ValueError(f"case_id {self.case_id} does not belong to its case ({self.case.case_id})")
        # Of the metrics one that is not installed here is kept: nothing asks for it. By the gate all is judged.
        unknown = sorted(set(self.gate) - set(known_metrics()))
        if unknown:
            raise ValueError(f"the gate names the unknown metric {unknown[0]!r}.{nearest(unknown[0], known_metrics())}")
        if not _is_time(self.finished_at):
            raise ValueError(f"finished_at {self.finished_at!r} is no time with a zone")
        for name, measure in self.metrics.items():
            if len(measure.values) != self.case.victims:
                raise ValueError(f"{name} has {len(measure.values)} values for {self.case.victims} victims")
        if self.certified is not None and len(self.certified) != self.case.victims:
            raise ValueError(f"certified has {len(self.certified)} values for {self.case.victims} victims")
        return self

    def to_json(self) -> str:
        """Indented JSON with the public key ``schema``."""
        return self.model_dump_json(by_alias=True, indent=1) + "\n"


def failed(message: str) -> dict[str, str]:
    """The fields of a result that say what went wrong."""
    return {"status": "error", "error": message, "verdict_reason": f"error: {message}"}


def _is_time(text: str) -> bool:
    try:
        found = datetime.datetime.fromisoformat(text)
        found.timestamp()
    except (ValueError, OverflowError):
        return False
    return found.tzinfo is not None
