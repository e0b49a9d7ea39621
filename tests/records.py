"""Records and results with made-up numbers, for comparisons of two runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gitbench.publish.baseline import Cells, Record
from gitbench.run.bench import case_of
from gitbench.store.folder import Store
from gitbench.store.result import Environment, Measure, Result

VALUES = [1.23456789, 5.0, 9.25, 2.5, 3.125, 4.0]
ENVIRONMENT = Environment(
    gitbench="0.1.0", torch="2.7", torchvision="0.22", python="3.12", platform="Linux x86_64", device="cpu", threads=1
)


def record(values: Mapping[str, list[float | None]] | list[float | None], *, seed: int = 0, **changes: object) -> Record:
    found = {"psnr_gain": values} if isinstance(values, list) else dict(values)
    count = len(next(iter(found.values())))
    fields: dict[str, object] = {
        "dataset": "photos", "model": "lenet", "defense": "pruning(rate=0.5)", "attack": "ridge", "threat": "server", "profile": "quick",
        "batch_size": 1, "seed": seed, "victims": count, "verdict": "leaks", "reason": "because", "gate": {"psnr_gain": 3.0},
        "environment": ENVIRONMENT, "code": {"defense": "aa", "attack": "bb"}, "settings": {"limit": "2048"}, "values": found,
        "blind": [float(index % 7) + 10 for index in range(count)],
    }  # fmt: skip
    return Record.model_validate({**fields, **changes})


def cells(*entries: Record) -> Cells:
    found: dict = {}
    for one in entries:
        found.setdefault(one.key, {})[one.seed] = one
    return found


def result(
    values: list[float], *, attack: str = "ridge", defense: str = "pruning(rate=0.5)", seed: int = 0, when: str = "2026-01-01"
) -> Result:
    case = case_of(
        attack=attack, defense=defense, model="mlp", dataset="photos", threat="server", profile="quick", victims=len(values),
        batch_size=1, seed=seed,
    )  # fmt: skip
    psnr = [value + 13.5 for value in values]
    metrics = {name: Measure(mean=0.0, low=0.0, high=0.0, values=tuple(one)) for name, one in (("psnr_gain", values), ("psnr", psnr))}
    return Result(
        case=case, case_id=case.case_id, status="done", verdict="leaks", verdict_reason="because", gate={"psnr_gain": 3.0}, metrics=metrics,
        environment=ENVIRONMENT, settings={"limit": "2048"}, finished_at=f"{when}T00:00:00.000+00:00",
    )  # fmt: skip


def stored(folder: Path, *results: Result) -> Path:
    for one in results:
        Store(folder).save(one)
    return folder
