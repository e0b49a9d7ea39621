"""Records: what a comparison needs of earlier results of our own, from a results folder or the one JSON file that is committed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, FiniteFloat, PositiveInt, ValidationError, model_validator

from gitbench.core.errors import ConfigError, StoreError, nearest
from gitbench.identity.case import PLAIN_CLIENT, Case, Setting
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.verdict import DEFAULT_GATE
from gitbench.store.folder import LARGEST, read_file, read_result
from gitbench.store.result import TIMED_OUT, Environment, Result, StrictModel, Text

KIND = "gitbench baseline"
SCHEMA = 1
DIGITS = 6
Values = tuple[FiniteFloat | None, ...]


class Record(StrictModel):
    """What a comparison needs of one case.

    Args:
        verdict: of the case, or ``error``.
        code: digests of the sources that measured it.
        settings: the attack's options as they took effect.
        values: metric to one value per victim.
        blind: PSNR of the blind guess per victim, in dB: it tells whether two runs saw the same images.
        local_model: fingerprint of the client's own model, where it is not the one that the attacker knows.
    """

    dataset: str
    model: str
    defense: str
    attack: str
    threat: str
    profile: str
    client: str = PLAIN_CLIENT
    batch_size: PositiveInt
    rounds: PositiveInt = 1
    seed: int
    victims: PositiveInt
    verdict: Literal["holds", "leaks", "inconclusive", "error"]
    reason: Text
    gate: dict[str, FiniteFloat]
    environment: Environment
    code: dict[str, str]
    settings: dict[str, str]
    values: dict[str, Values]
    blind: Values
    local_model: tuple[FiniteFloat, ...] = ()

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        for name, values in {**self.values, "blind": self.blind}.items():
            if values and len(values) != self.victims:
                raise ValueError(f"{name} has {len(values)} values for {self.victims} victims")
        unknown = sorted({*self.values, *self.gate} - set(known_metrics()))
        if unknown:
            raise ValueError(f"unknown metric {unknown[0]!r}.{nearest(unknown[0], known_metrics())}")
        return self

    @property
    def key(self) -> CellKey:
        return key_of(self)


@dataclass(frozen=True, order=True)
class CellKey:
    """What two runs must share for a cell to be compared; seeds and victims are paired as far as both have them."""

    dataset: str
    model: str
    defense: str
    attack: str
    threat: str
    profile: str
    batch_size: int
    client: str
    rounds: int = 1

    def __str__(self) -> str:
        return f"{self.cell} ({self.threat}, {self.profile})"

    @property
    def cell(self) -> str:
        return f"{Setting(self.dataset, self.model, self.client, self.batch_size, self.rounds)}/{self.defense}/{self.attack}"


def key_of(case: Case | Record) -> CellKey:
    """The cell that a case belongs to, for comparisons."""
    return CellKey(
        case.dataset, case.model, case.defense, case.attack, case.threat, case.profile, case.batch_size, case.client, case.rounds
    )


Cells = Mapping[CellKey, Mapping[int, Record]]
"""Cell to seed to record."""


class _File(StrictModel):
    """The committed file. Environments stand once; records name them by number."""

    kind: Literal["gitbench baseline"]
    schema_version: int = Field(alias="schema")
    environments: tuple[Environment, ...]
    cases: tuple[dict[str, object], ...]


def record_of(result: Result) -> Record:
    """What a comparison needs of a result. Values are rounded to six digits, so that files stay small.

    One that timed out has none: what it had by then says as little about a change as about a leak.
    """
    case = result.case
    metrics = {} if TIMED_OUT in result.flags else result.metrics
    psnr, gain = (metrics[name].values if name in metrics else () for name in ("psnr", "psnr_gain"))
    blind = tuple(None if a is None or b is None else round(a - b, 3) for a, b in zip(psnr, gain, strict=True)) if psnr and gain else ()
    return Record(
        **case.model_dump(exclude={"knowledge", "code"}),
        verdict="error" if result.status == "error" else result.verdict or "inconclusive",
        reason=result.error or result.verdict_reason,
        gate=result.gate,
        environment=result.environment,
        code=case.code,
        settings=result.settings,
        values={name: tuple(map(_rounded, measure.values)) for name, measure in metrics.items() if name in known_metrics()},
        blind=blind,
        local_model=result.local_model,
    )


def cells_of(results: Iterable[Result]) -> Cells:
    """Sort results into cells; of several measurements of one seed the latest counts."""
    return _sorted(record_of(result) for result in sorted(results, key=lambda result: (result.finished_at, result.case_id)))


def dump(cells: Cells) -> str:
    """The file for committing: the order is that of the names, and every list of values is one line.

    Of the metrics only those are kept that the cell was judged by, and ``psnr_gain``.
    """
    records = [record for key in sorted(cells) for _, record in sorted(cells[key].items())]
    environments = sorted({record.environment for record in records}, key=lambda one: one.model_dump_json())
    cases = []
    for record in records:
        wanted = {*record.gate, *DEFAULT_GATE}
        content = record.model_copy(update={"values": {name: one for name, one in record.values.items() if name in wanted}}).model_dump(
            mode="json"
        )
        content["environment"] = environments.index(record.environment)
        lines = ",\n".join(f"   {json.dumps(name)}: {_compact(value)}" for name, value in content.items())
        cases.append(f"  {{\n{lines}\n  }}")
    head = ",\n".join(f"  {_compact(environment.model_dump(mode='json'))}" for environment in environments)
    body = ",\n".join(cases)
    return f'{{\n "kind": "{KIND}",\n "schema": {SCHEMA},\n "environments": [\n{head}\n ],\n "cases": [\n{body}\n ]\n}}\n'


def load_baseline(path: Path, *, errors: bool = False) -> Cells:
    """Read a results folder, or the file that ``gitbench baseline`` wrote.

    Args:
        path: the folder or file. One result, or a list of them, is taken too.
        errors: keep cases that ended in an error, as the later side of a comparison must.

    Raises:
        ConfigError: nothing there, or nothing that can be read as results.
    """
    if not path.exists():
        raise ConfigError(f"Expected a baseline at {path}: a results folder or a JSON file. Nothing is there.")
    try:
        cells = _of_folder(path) if path.is_dir() else _of_file(path)
    except (ValidationError, ValueError, StoreError, OSError, RecursionError) as error:
        raise ConfigError(f"The baseline {path} cannot be read as gitbench results: {_first(error)}. Measure it again.") from None
    finished = {key: {seed: one for seed, one in seeds.items() if one.verdict != "error"} for key, seeds in cells.items()}
    finished = {key: seeds for key, seeds in finished.items() if seeds}
    if not finished:
        raise ConfigError(f"The baseline {path} holds no finished result. Expected a results folder of an earlier run.")
    return cells if errors else finished


def _of_folder(path: Path) -> Cells:
    return cells_of([read_result(file) for file in sorted((path / "cases").glob("*.json"), key=str)])


def _of_file(path: Path) -> Cells:
    content = json.loads(read_file(path, most=LARGEST))
    if isinstance(content, list) or (isinstance(content, dict) and "case" in content):
        return cells_of([Result.model_validate(item) for item in (content if isinstance(content, list) else [content])])
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise ValueError("expected a results folder, or what gitbench baseline wrote")
    schema = content.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise ValueError(f"it has schema {schema}, and this gitbench reads up to {SCHEMA}: upgrade gitbench")
    found = _File.model_validate(content)
    records = []
    for case in found.cases:
        number = case.get("environment")
        if not isinstance(number, int) or not 0 <= number < len(found.environments):
            raise ValueError(f"expected the number of an environment, got {number!r}")
        records.append(Record.model_validate({**case, "environment": found.environments[number]}))
    return _sorted(records)


def _sorted(records: Iterable[Record]) -> Cells:
    cells: dict[CellKey, dict[int, Record]] = {}
    for record in records:
        cells.setdefault(record.key, {})[record.seed] = record
    return cells


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.{DIGITS}g}")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(", ", ": "), sort_keys=True, ensure_ascii=False)


def _first(error: BaseException) -> str:
    """The first thing that is wrong, in one line."""
    if isinstance(error, ValidationError):
        one: Sequence[object] = error.errors()
        first = error.errors()[0] if one else {"loc": (), "msg": str(error)}
        where = ".".join(str(part) for part in first["loc"])
        return f"{where}: {first['msg']}" if where else str(first["msg"])
    return str(error).splitlines()[0] if str(error) else type(error).__name__
