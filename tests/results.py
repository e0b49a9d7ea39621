"""Results with made-up numbers, as the chain would write them, and tables of them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from gitbench.judge.statistics import interval
from gitbench.publish.leaderboard import Table
from gitbench.run.bench import case_of
from gitbench.store.folder import Store
from gitbench.store.result import Baselines, Cost, Environment, Measure, Result, Training

GATE = {"psnr_gain": 3.0}
LEAKING, SAFE = (8.0, 9.0, 10.0, 9.0), (0.0, 0.5, 1.0, 0.5)
SETTING: dict[str, object] = {"threat": "server", "profile": "quick", "victims": 4, "batch_size": 1, "seeds": 1}
# Cases are hashed from sources: made once, they are copied for every test.
CASE = case_of(
    attack="ig", defense="none", model="lenet", dataset="photos", threat="server", profile="quick", victims=4, batch_size=1, seed=0
)


def measure(values: Sequence[float | None]) -> Measure:
    bounds = interval([values])
    return Measure(mean=bounds.mean, low=bounds.low, high=bounds.high, values=tuple(values))


def result(
    values: Sequence[float | None] = LEAKING,
    *,
    metric: str = "psnr_gain",
    at: str = "2025-01-01T00:00:00+00:00",
    error: str | None = None,
    **case: object,
) -> Result:
    """A result with made-up numbers, as the chain would write it."""
    found = CASE.model_copy(update={"victims": len(values), **case})
    return Result(
        case=found,
        case_id=found.case_id,
        status="error" if error else "done",
        error=error,
        verdict="inconclusive" if error else "leaks",
        verdict_reason="made up",
        gate=GATE,
        metrics={} if error else {metric: measure(values)},
        baselines=Baselines(blind={"psnr": 12.0, "mse": 0.06}, control={metric: 9.0}),
        flags=("few-victims",),
        cost=Cost(fit_seconds=1.5, attack_seconds=2.5, peak_memory_mb=None),
        environment=Environment(
            gitbench="0.1", torch="2.6", torchvision="0.21", python="3.11", platform="Linux x86_64", device="cpu", threads=2
        ),
        settings={"iterations": "100"},
        finished_at=at,
    )


def table(
    results: dict[tuple[str, str], list[Result]] | None = None, *, dataset: str = "photos", model: str = "lenet", **options: object
) -> Table:
    found = (
        {("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): [result(SAFE, defense="pruning(rate=0.9)")]}
        if results is None
        else results
    )
    return Table(dataset, model, found, conditions=SETTING, gate=GATE, **options)


def rows(text: str) -> list[list[str]]:
    """Cells of the Markdown tables: split at pipes that are not escaped."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]


def every_attack(text: str) -> list[list[str]]:
    """Cells of the second table of a leaderboard: a column for each attack."""
    return rows(text.partition("## Every attack")[2].partition("\n## ")[0])


def first_table(text: str) -> list[dict[str, str]]:
    """The first table of a leaderboard, by its headings."""
    head, _, *found = rows(text.partition("![")[0])
    return [dict(zip(head, row, strict=True)) for row in found]


VALID = result().to_json().encode()


def stored(store: Store, content: bytes | str, case_id: str = CASE.case_id) -> Path:
    path = store.case_path(case_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def changed(found: Result, **changes: object) -> str:
    return json.dumps({**json.loads(found.to_json()), **changes})


def trained_result(*, defense: str = "none", gain: float = 9.0, training: Training | None = None, limit: float | None = None) -> Result:
    """A result with eight victims, and what its defense costs."""
    found = result([gain, gain + 0.1, gain - 0.1, gain] * 2, defense=defense)
    return found.model_copy(update={"training": training, "accuracy_drop_limit": limit})


def make_training(**changes: object) -> Training:
    """Made-up counts of test images, as a training would find them."""
    given = {"images": 100, "right": 60, "lost": 5, "gained": 2, "guessed": 15, "cosine": 0.5, "equal": 0.0}
    return Training.model_validate({**given, "rounds": 10, "clients": 8, "batch_size": 8, "bytes_sent": 1.0, "seconds": 0.1, **changes})


def cost_results() -> list[Result]:
    """Of a table with one attack: what is on the front, what is dominated, what trains nothing, and the undefended row."""
    rows = {
        "none": (20.0, make_training(images=1000, right=700, lost=0, gained=0)),
        "pruning(rate=0.9)": (5.0, make_training(images=1000, right=650, lost=60, gained=10)),
        "pruning(rate=0.5)": (6.0, make_training(images=1000, right=600, lost=110, gained=10)),  # leaks more and costs more
        "clipping(max_norm=1.0)": (0.0, make_training(images=1000, right=150, lost=560, gained=10, guessed=150)),
    }
    return [trained_result(defense=defense, gain=gain, training=training) for defense, (gain, training) in rows.items()]
