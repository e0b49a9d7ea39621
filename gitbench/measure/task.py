"""What travels between a run and the workers of its cluster: texts, numbers and bytes. Nothing is imported that computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TaskKind = Literal["run", "training"]
"""What a task does of its case: attack it, or train under its defense."""


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What all tasks of a run share.

    Args:
        device: ``cpu`` or ``cuda``: one for all workers.
        threads: CPU threads of a task.
        timeout: seconds that a case may take; None for no limit.
        registered: kind, name and target of components that were registered for this run.
    """

    device: str
    threads: int
    timeout: float | None = None
    registered: tuple[tuple[str, str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Task:
    """What one worker does at once.

    Args:
        case: as JSON.
        kind: what of it.
        states: names of what was learned before and comes with the task.
        learns: learn the state of this name, and do no more.
        own: names of states that it may learn on its way. Any other one that it lacks ends it.
        checkpoint: of the state that it learns, where an earlier attempt left one.
    """

    case: str
    kind: TaskKind
    states: tuple[str, ...] = ()
    learns: str | None = None
    own: frozenset[str] = frozenset()
    checkpoint: bytes | None = None


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a worker sends back.

    Args:
        result: of the case as JSON, not judged; of a task that learns only where its time was up.
        picture: of the case, as PNG.
        training: what the defense costs, as JSON.
        late: the time was up.
        lacks: names of the states without which it cannot go on; nothing was measured then.
        learned: name to content of the states that it learned.
        checkpoint: of a state that was not learned to its end.
        failed: what went wrong while a state was learned, or in the training.
        refused: why this worker must not measure this case.
        warnings: what the user's code and gitbench warned of.
        seconds: that the task took on the worker.
    """

    result: str | None = None
    picture: bytes | None = None
    training: str | None = None
    late: bool = False
    lacks: tuple[str, ...] = ()
    learned: tuple[tuple[str, bytes], ...] = ()
    checkpoint: bytes | None = None
    failed: str | None = None
    refused: str | None = None
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
