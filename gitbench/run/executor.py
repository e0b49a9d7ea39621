"""Where cases are measured: by this process, or by the workers of a cluster, whose replies are written here."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from safetensors import SafetensorError, safe_open

from gitbench.core.errors import ClusterError, ConfigError, DefenseError
from gitbench.core.progress import Progress, silent
from gitbench.identity.case import Case
from gitbench.measure.task import Reply, Task
from gitbench.run.plan import Plan
from gitbench.run.schedule import Job, Key, Schedule
from gitbench.store.folder import Store, write_atomic
from gitbench.store.result import Result, Training

if TYPE_CHECKING:
    from gitbench.clients.defense import Defense

Handle = object
"""What a cluster calls a task, or content, that it keeps."""


class Executor(Protocol):
    """Measures cases. :class:`gitbench.measure.evaluator.Evaluator` is the one that does so in this process."""

    def run(self, case: Case, defense: Defense | None = None) -> Result:
        """Measure one case, not judged yet."""

    def training(self, case: Case, defense: Defense | None = None) -> Training | None:
        """What the defense of a case costs; None where its time is up."""


class Cluster(Protocol):
    """Does tasks somewhere else, each at least once and whatever dies: scheduling and retries are its own."""

    def put(self, content: bytes) -> Handle:
        """Keep content for the tasks that need it."""

    def start(self, task: Task, states: Sequence[Handle]) -> Handle:
        """Have a task done as soon as a worker is free."""

    def finished(self, tasks: Sequence[Handle], *, seconds: float) -> Sequence[Handle]:
        """Those that are done; after so many seconds perhaps none."""

    def reply(self, task: Handle) -> Reply:
        """Of a task that is done.

        Raises:
            ClusterError: it was given up.
        """

    def slots(self) -> int:
        """Tasks that can be done at once."""

    def close(self, tasks: Sequence[Handle]) -> None:
        """Cancel these, and let go of the cluster."""


@dataclass(frozen=True)
class _Found:
    """What is to be had of a case that is through; a result that is done is in the store."""

    failed_result: Result | None = None
    training: Training | None = None
    failed: str | None = None


class ClusterExecutor:
    """Measures cases on a cluster. All results, pictures and states are written here, whatever the workers can reach.

    Replies are taken, and written, while this waits for one of them: an interrupted run keeps all that came back.

    Args:
        open_cluster: called once there is work to do.
        store: where everything is kept.
        fresh: take no state from the store that this run has not learned.
        cost: whether each case is followed by the training under its defense.
        progress: told how many cases are through.
    """

    def __init__(
        self,
        open_cluster: Callable[[], Cluster],
        store: Store,
        *,
        fresh: bool = False,
        cost: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._open_cluster = open_cluster
        self._opened: Cluster | None = None
        self._store = store
        self._fresh = fresh
        self._cost = cost
        self._progress = progress
        self._schedule = Schedule(self._there)
        self._running: dict[Handle, Job] = {}
        self._over: dict[Key, _Found] = {}  # until it is asked for
        self._lost: dict[Key, str] = {}
        self._states: dict[str, Handle] = {}
        self._own: set[str] = set()  # states that this run has begun to learn
        self._through = 0
        self._plan: Plan | None = None

    def ask(
        self,
        cells: Sequence[Sequence[Case]],
        *,
        known: Callable[[Case], Result | None],
        planned: Sequence[int],
        gate: Mapping[str, float],
    ) -> None:
        """Have cells measured in this order, with their controls, before anybody waits for them.

        Args:
            cells: the cases of each.
            known: the result of a case that is stored.
            planned: growing numbers of victims, of which as many are measured as the verdict takes.
            gate: metric to threshold.
        """
        self._plan = Plan(cells, planned, gate, known=lambda case: self._arrived(case) or known(case))
        for cell in range(len(cells)):
            self._ask_for(self._plan, cell)
        self._fill()

    def run(self, case: Case, defense: Defense | None = None) -> Result:
        """The result of a case, not judged yet, when it is there.

        Raises:
            ClusterError: its workers died again and again, or no worker may measure it.
        """
        if defense is not None:
            raise ConfigError(f"The defense {defense!r} is an object of this process, which no worker can reach. Give its SPEC.")
        failed = self._wait(case, ("run", case.case_id)).failed_result
        return failed or self._store.load(case.case_id) or self.run(case)

    def training(self, case: Case, defense: Defense | None = None) -> Training | None:
        """What the defense of a case costs, when it is known.

        Raises:
            ClusterError: its workers died again and again.
            DefenseError: it raised.
        """
        key: Key = ("training", case.case_id)
        found = self._wait(case, key)
        if found.failed is not None:
            raise DefenseError(found.failed)
        self._over[key] = found  # asked again, one that had no time would have none again
        return found.training

    def close(self) -> None:
        """Keep what has come back, and cancel the rest."""
        if self._opened is None:
            return
        try:
            for task in self._cluster.finished(list(self._running), seconds=0) if self._running else ():
                self._take(task)
        finally:
            cluster, self._opened = self._opened, None
            cluster.close(list(self._running))
            self._running = {}

    # ---------------------------------------------------------------- asking

    def _ask_for(self, plan: Plan, cell: int) -> None:
        for case in plan.wanted(cell):
            if ("run", case.case_id) not in self._lost:
                self._schedule.add(case, "run")
        if self._cost:
            for case in plan.lacking_cost(cell):
                self._schedule.add(case, "training")

    def _arrived(self, case: Case) -> Result | None:
        found = self._over.get(("run", case.case_id))
        return None if found is None else found.failed_result or self._store.load(case.case_id)

    def _wait(self, case: Case, key: Key) -> _Found:
        if key not in self._over and key not in self._lost:
            self._schedule.add(case, key[0], first=True)
        while key not in self._over:
            if key in self._lost:
                raise ClusterError(self._lost[key])
            self._step()
        return self._over.pop(key)

    def _step(self) -> None:
        self._fill()
        if not self._running:
            raise ClusterError("Nothing is left to be done on the cluster, and yet a cell waits for it. Please report this.")
        self._progress("on the cluster: cases", self._through, self._through + len(self._schedule))
        for task in self._cluster.finished(list(self._running), seconds=1.0):
            self._take(task)

    @property
    def _cluster(self) -> Cluster:
        if self._opened is None:
            self._opened = self._open_cluster()
        return self._opened

    def _fill(self) -> None:
        """As many tasks as keep all workers busy, and no more: one that turns out to be urgent should not have to queue up."""
        while self._schedule.ready and len(self._running) < 2 * self._cluster.slots() + 2:
            job = self._schedule.next()
            states = [self._states[name] for name in job.states]
            task = Task(
                case=job.case.model_dump_json(),
                kind=job.kind,
                states=tuple(job.states),
                learns=job.learns,
                own=frozenset(job.own),
                checkpoint=None if job.learns is None else self._checkpoint(job.learns),
            )
            self._running[self._cluster.start(task, states)] = job

    # ---------------------------------------------------------------- replies

    def _take(self, task: Handle) -> None:
        """Interrupted, a reply is still there to be taken when this is closed."""
        job = self._running[task]
        try:
            reply = self._cluster.reply(task)
        except ClusterError as error:
            self._give_up(job, f"{job.case.cell}: {error}")
        else:
            self._receive(job, reply)
        del self._running[task]

    def _receive(self, job: Job, reply: Reply) -> None:
        for name, content in reply.learned:
            self._learned(name, content)
        if job.learns is not None:
            self._take_learning(job, reply)
        elif reply.refused is not None:
            self._give_up(job, f"A worker cannot measure {job.case.cell}: {reply.refused}. docs/cluster.md says what all nodes need.")
        elif reply.lacks:
            self._schedule.lacks(job, reply.lacks)
        else:
            self._take_done(job, reply)
        for text in reply.warnings:
            _warn(f"{job.case.cell}: {text}")

    def _take_learning(self, job: Job, reply: Reply) -> None:
        assert job.learns is not None
        if job.learns in dict(reply.learned):
            return
        if reply.checkpoint is not None:
            self._own.add(job.learns)
            write_atomic(self._checkpoint_path(job.learns), reply.checkpoint)
        if reply.lacks:
            self._schedule.lacks(job, reply.lacks)
            return
        self._schedule.not_learned(job, by_itself=not reply.late)
        if reply.late and job.key in self._schedule:
            self._take_done(job, reply)

    def _take_done(self, job: Job, reply: Reply) -> None:
        case, result = job.case, None
        if reply.result is not None:
            result = Result.model_validate_json(reply.result)
        if result is not None and result.status == "done":
            if reply.picture is not None:
                self._store.save_picture(case.case_id, reply.picture)
            self._store.save(result)
        training = None if reply.training is None else Training.model_validate_json(reply.training)
        failed = result if result is not None and result.status == "error" else None
        self._over[job.key] = _Found(failed, training, reply.failed)
        self._through += 1
        self._schedule.done(job.key)
        if job.kind == "run":
            if self._cost and failed is None:
                self._schedule.add(case, "training", first=True)
            if self._plan is not None:
                for cell in self._plan.concerned(case):
                    self._ask_for(self._plan, cell)

    def _give_up(self, job: Job, why: str) -> None:
        for key in self._schedule.given_up(job):
            self._lost[key] = why
            self._through += 1

    # ---------------------------------------------------------------- states

    def _learned(self, name: str, content: bytes) -> None:
        write_atomic(self._state_path(name), content)
        with contextlib.suppress(OSError):
            self._checkpoint_path(name).unlink(missing_ok=True)
        self._states[name] = self._cluster.put(content)
        self._schedule.learned(name)

    def _there(self, name: str) -> bool:
        """Whether a state has been learned, by this run or by one before."""
        if name not in self._states and not self._fresh:
            content = _whole(self._state_path(name))
            if content is not None:
                self._states[name] = self._cluster.put(content)
        return name in self._states

    def _checkpoint(self, name: str) -> bytes | None:
        if self._fresh and name not in self._own:
            return None
        return _whole(self._checkpoint_path(name))

    def _state_path(self, name: str) -> Path:
        return self._store.models / f"{name}.safetensors"

    def _checkpoint_path(self, name: str) -> Path:
        return self._store.models / f"{name}.checkpoint.safetensors"


def _whole(path: Path) -> bytes | None:
    """The content of a file of tensors; None of one that is not there, or damaged."""
    try:
        with safe_open(path, framework="numpy"):
            return path.read_bytes()
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as error:
        _warn(f"{path} is damaged ({type(error).__name__}: {error}): it is made again.")
        return None


def _warn(text: str) -> None:
    """A warning of what a worker met: where warnings are errors, it is no error of the cell that is waited for just now."""
    try:
        warnings.warn(text, stacklevel=3)
    except UserWarning:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(text, stacklevel=3)
