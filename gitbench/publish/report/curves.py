"""Leakage along an axis, wherever stored results differ in nothing else: batch size, rounds, epochs of training, local steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gitbench.core.errors import SpecError
from gitbench.core.spec import Kind, Part, Spec, parse_spec
from gitbench.publish.report.data import CellMeasured, Curve, CurvePoint, SettingMeasured


@dataclass(frozen=True)
class CurveAxis:
    """One of the quantities that leakage is drawn against.

    Args:
        name: in the data.
        title: below the chart.
        how: the options that measure it.
        kind: the SPEC that has it as an option; None: the setting itself has it.
        absent: its value where the SPEC does not name it; None where it has none then.
    """

    name: str
    title: str
    how: str
    kind: Kind | None = None
    absent: int | None = None


AXES = (
    CurveAxis("batch_size", "images of each client", "--gitbench-batch-size 1 --gitbench-batch-size 4"),
    CurveAxis("rounds", "updates of the same victims that the attacker sees", "--gitbench-rounds 1 --gitbench-rounds 16"),
    CurveAxis(
        "trained_epochs",
        "epochs that the model was trained before",
        '--gitbench-model lenet --gitbench-model "lenet(trained_epochs=5)"',
        kind="model",
        absent=0,
    ),
    CurveAxis(
        "steps",
        "local steps of each client",
        '--gitbench-client "fedavg(steps=1)" --gitbench-client "fedavg(steps=5)"',
        kind="client",
    ),
)


def curves_of(settings: Sequence[SettingMeasured], cells: Sequence[CellMeasured]) -> tuple[Curve, ...]:
    """A curve for each axis, defense and attack that were measured at two values at least."""
    found = []
    for axis in AXES:
        groups: dict[tuple[str, str, str], dict[int, CellMeasured]] = {}
        places = [_place(axis, setting) for setting in settings]
        for cell in cells:
            place = places[cell.setting]
            if place is not None and cell.value.mean is not None:
                groups.setdefault((place[0], cell.defense, cell.attack), {})[place[1]] = cell
        found += [
            Curve(
                axis=axis.name,
                title=axis.title,
                where=where,
                defense=defense,
                attack=attack,
                points=tuple(CurvePoint(at=at, value=one.value, cell=one.id) for at, one in sorted(points.items())),
            )
            for (where, defense, attack), points in groups.items()
            if len(points) > 1
        ]
    return tuple(found)


def _place(axis: CurveAxis, setting: SettingMeasured) -> tuple[str, int] | None:
    """The setting but for the axis, and where it stands on it."""
    parts: dict[str, object] = {
        "dataset": setting.dataset, "model": setting.model, "client": setting.client, "batch size": setting.batch_size,
        "rounds": setting.rounds, "threat": setting.threat, "profile": setting.profile,
    }  # fmt: skip
    if axis.kind is None:
        at = parts.pop(axis.name.replace("_", " "))
        assert isinstance(at, int)
    else:
        taken = _without(axis, axis.kind, str(parts[axis.kind]))
        if taken is None:
            return None
        parts[axis.kind], at = taken
    usual = {"client": "fedsgd", "batch size": 1, "rounds": 1, "threat": "server", "profile": "quick"}
    told = [str(value) if key in ("dataset", "model") else f"{key} {value}" for key, value in parts.items() if value != usual.get(key)]
    return ", ".join(told), at


def _without(axis: CurveAxis, kind: Kind, text: str) -> tuple[str, int] | None:
    try:
        first, *others = parse_spec(kind, text).parts
    except SpecError:
        return None
    at = dict(first.arguments).get(axis.name, axis.absent)
    if not isinstance(at, int):
        return None
    rest = tuple(item for item in first.arguments if item[0] != axis.name)
    return str(Spec(kind, (Part(first.target, rest), *others))), at
