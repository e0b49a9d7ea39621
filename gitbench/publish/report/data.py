"""What the report says, as data: embedded in the page, and written by ``gitbench report --json``. ``schema.json`` is its JSON Schema."""

from __future__ import annotations

import json
import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FiniteFloat

from gitbench.store.result import StrictModel, Text

Rounded = Annotated[FiniteFloat, AfterValidator(lambda value: float(f"{value:.6g}"))]
"""Six digits: enough to draw and to compare. The result files have all of them."""
Known = Annotated[Rounded | None, BeforeValidator(lambda value: None if isinstance(value, float) and not math.isfinite(value) else value)]
"""None where it is not known: also what is infinite in the end, as the mean of a result that claims to be huge."""
Standing = Literal["holds", "leaks", "undecided", "no success", "no control", "timed out", "error", "not tested", "n/a"]


class Bounds(StrictModel):
    """A mean and its 95 % interval; None where it cannot be known."""

    mean: Known = None
    low: Known = None
    high: Known = None


class ShareFound(StrictModel):
    """A share of victims with Wilson's 95 % interval: ``high`` is the upper bound where none was found.

    Args:
        share: from 0 to 1.
        victims: of how many.
    """

    share: Rounded
    low: Rounded
    high: Rounded
    victims: int


class MetricShown(StrictModel):
    """How a metric is read.

    Args:
        higher_leaks: whether a larger value means more leakage.
        digits: behind the point.
        threshold: of the gate; None where it is not gated.
    """

    name: str
    unit: str
    higher_leaks: bool
    digits: int
    summary: str
    threshold: Known = None


class SeedMeasured(StrictModel):
    """One seed of a cell: a value of each victim, in their order.

    Args:
        case_id: name of the result file.
        values: of the gated metric.
        identified: share of each victim's images that are recognised among all private ones; None: not tested.
        certified: whether the attacker knows without the truth that it is right; None: not tested.
        truth: names of the pictures of the first victims; empty where none are kept, or where they are left out.
        found: the reconstructions of the same.
    """

    seed: int
    case_id: str
    values: tuple[Known, ...]
    identified: tuple[Known, ...] | None = None
    certified: tuple[bool, ...] | None = None
    truth: tuple[Text, ...] = ()
    found: tuple[Text, ...] = ()


class CellMeasured(StrictModel):
    """One defense against one attack in one setting.

    Args:
        id: within this report.
        setting: the position of its setting in ``settings``.
        standing: the verdict in a word.
        next: what to do about it.
        value: of the gated metric.
        past: share of victims past the threshold.
        identified: share of victims recognised among all private images; None: not tested.
        certified: share of victims of which the attacker can tell that it is right; None: not tested.
        metrics: all that were measured, over all seeds.
        options: of the attack and the model.
        code: digests of the sources of defense and attack.
    """

    id: str
    setting: int
    defense: Text
    attack: Text
    standing: Standing
    reason: Text
    next: str = ""
    value: Bounds = Bounds()
    past: ShareFound | None = None
    identified: ShareFound | None = None
    certified: Known = None
    metrics: dict[Text, Bounds] = Field(default_factory=dict)
    flags: tuple[Text, ...] = ()
    seeds: tuple[SeedMeasured, ...] = ()
    options: dict[Text, Text] = Field(default_factory=dict)
    code: dict[Text, Text] = Field(default_factory=dict)
    fit_seconds: Known = None
    attack_seconds: Known = None
    by_others: bool = False
    finished_at: str | None = None


class DefenseCost(StrictModel):
    """What a defense costs in one setting. Shares are percent.

    Args:
        accuracy: of a model trained under it.
        lost: percentage points less than without it, paired.
        front: no other defense of the setting leaks less and costs less.
    """

    accuracy: Bounds
    lost: Bounds
    front: bool
    bytes_sent: Known
    seconds: Known
    epsilon: Known = None
    delta: Known = None


class DefenseInSetting(StrictModel):
    """One row of the matrix.

    Args:
        worst: of each victim the most that any attack got: an evaluator's upper bound on these attacks.
        auto: what the attack got that must choose without the truth.
        strongest: id of the cell with the highest mean.
        incomplete: attacks that do not speak for all victims, and why.
        left_to_learn: cosine of the defended and the raw update; None: not measured.
        cost: None: not tested.
    """

    defense: Text
    standing: Standing
    sentence: Text
    next: str
    worst: Bounds
    auto: Bounds
    strongest: str | None
    working: tuple[Text, ...]
    without_control: tuple[Text, ...]
    incomplete: dict[Text, Text]
    left_to_learn: Known = None
    cost: DefenseCost | None = None


class SettingMeasured(StrictModel):
    """What the cells of one table share.

    Args:
        name: as a path.
        private_images: N, among which victims are identified; None where the results do not say.
        redacted: whether pictures of it are left out.
        command: that measures its cells again.
        metric: that is gated first, and shown.
        gate: every threshold.
        knowledge: what the attacker was granted.
        blind: metrics of the guess that needs no gradient.
        machines: versions and devices that measured.
        code: digests of the sources.
    """

    name: Text
    dataset: Text
    model: Text
    client: Text
    batch_size: int
    rounds: int
    threat: Text
    knowledge: tuple[Text, ...]
    profile: Text
    victims: int
    seeds: tuple[int, ...]
    private_images: int | None
    redacted: bool
    command: Text
    metric: MetricShown
    gate: dict[Text, Rounded]
    blind: dict[Text, Rounded]
    machines: tuple[Text, ...]
    code: dict[Text, Text]
    defenses: tuple[DefenseInSetting, ...] = ()
    attacks: tuple[Text, ...] = ()


class DefenseOverall(StrictModel):
    """A defense over all settings: as good as its worst."""

    defense: Text
    standing: Standing
    sentence: Text
    identified: Text
    sure: Text
    costs: Text
    next: str
    command: Text
    cell: str | None


class CurvePoint(StrictModel):
    """Leakage at one value of an axis."""

    at: int
    value: Bounds
    cell: str


class Curve(StrictModel):
    """One defense against one attack, along one axis.

    Args:
        axis: ``batch_size``, ``rounds``, ``trained_epochs`` or ``steps``.
        title: of the axis.
        where: the setting but for the axis.
    """

    axis: str
    title: str
    where: Text
    defense: Text
    attack: Text
    points: tuple[CurvePoint, ...]


class FlagExplained(StrictModel):
    """A flag that was raised, with its meaning."""

    name: Text
    cells: int
    raised: str = ""
    why: str = ""
    what_to_do: str = ""
    blocks: bool = False


class ReportData(StrictModel):
    """All of it.

    Args:
        version: of this format.
        sentence: the verdict.
        standing: of the worst defense.
        command: that was run; empty where nobody said.
        pictures_left_out: cells whose pictures would have made the page too large.
    """

    version: Literal[1] = 1
    made_by: str
    made_at: str
    sentence: Text
    standing: Standing
    command: Text = ""
    defenses: tuple[DefenseOverall, ...]
    settings: tuple[SettingMeasured, ...]
    cells: tuple[CellMeasured, ...]
    curves: tuple[Curve, ...] = ()
    flags: tuple[FlagExplained, ...] = ()
    pictures_left_out: int = 0

    def to_json(self) -> str:
        """On one line."""
        return self.model_dump_json()


def schema() -> dict[str, Any]:
    """The JSON Schema of :class:`ReportData`."""
    found = ReportData.model_json_schema(mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found, "title": "gitbench report"}


def schema_text() -> str:
    """As it is kept in ``schema.json``."""
    return json.dumps(schema(), indent=1, ensure_ascii=False) + "\n"
