"""Which task is next: what was learned by one is waited for by all others that need it. No cluster, no clock and no disk in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from gitbench.identity.case import Case
from gitbench.measure.task import TaskKind

Key = tuple[TaskKind, str]
"""What is to be done of a case, and the case's id."""


@dataclass(eq=False)
class Job:
    """A task to be done, again and again until nothing is missing.

    Args:
        case: of which.
        kind: what of it.
        learns: the state that it is for; None does the case itself.
        origin: the job that lacked that state first.
        states: names of those that go with it.
        missing: of them, those that are being learned.
        own: names of states that it learns itself, because it could not be done for all.
    """

    case: Case
    kind: TaskKind
    learns: str | None = None
    origin: Job | None = None
    states: dict[str, None] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    own: set[str] = field(default_factory=set)

    @property
    def key(self) -> Key:
        return self.kind, self.case.case_id


class Schedule:
    """Jobs that are ready, in the order in which they were asked for, and jobs that wait for a state.

    Args:
        there: whether a state has been learned; asked when a job turns out to need it.
    """

    def __init__(self, there: Callable[[str], bool]) -> None:
        self._there = there
        self._ready: deque[Job] = deque()
        self._waiting: dict[str, list[Job]] = {}  # by the state that is being learned
        self._open: set[Key] = set()

    def __contains__(self, key: Key) -> bool:
        return key in self._open

    def __len__(self) -> int:
        return len(self._open)

    def add(self, case: Case, kind: TaskKind, *, first: bool = False) -> None:
        """A case to be done, once however often it is asked for.

        Args:
            case: which.
            kind: what of it.
            first: before all that is ready.
        """
        job = Job(case, kind)
        if job.key not in self._open:
            self._open.add(job.key)
            self._set_ready([job], first=first)

    @property
    def ready(self) -> bool:
        """Whether there is a job that can be done now."""
        return bool(self._ready)

    def next(self) -> Job:
        """The first of those that can be done now."""
        return self._ready.popleft()

    def done(self, key: Key) -> None:
        """That is no job any more."""
        self._open.discard(key)
        for jobs in self._waiting.values():
            jobs[:] = [job for job in jobs if job.key != key or job.learns is not None]

    def lacks(self, job: Job, names: Iterable[str]) -> None:
        """A job came back for want of states: it goes again when they are there, and they are learned first."""
        for name in names:
            job.states[name] = None
            if self._there(name):
                continue
            job.missing.add(name)
            if name not in self._waiting:
                self._waiting[name] = []
                self._learn(name, job)
            self._waiting[name].append(job)
        if not job.missing:
            self._set_ready([job], first=True)

    def learned(self, name: str) -> None:
        """A state is there."""
        freed = []
        for job in self._waiting.pop(name, ()):
            job.missing.discard(name)
            if not job.missing:
                freed.append(job)
        self._set_ready(freed, first=True)

    def not_learned(self, job: Job, *, by_itself: bool) -> None:
        """A state could not be learned by the job that was for it: somebody else tries, who may have more success with it.

        Args:
            job: which was for it.
            by_itself: whether the case that lacked it goes on and learns it on its way, to tell what is wrong; else it is done.
        """
        name, origin = job.learns, job.origin
        assert name is not None
        assert origin is not None
        waiting = self._waiting.pop(name, [])
        if origin in waiting:
            waiting.remove(origin)
            if by_itself:
                origin.missing.discard(name)
                origin.states.pop(name, None)
                origin.own.add(name)
                if not origin.missing:
                    self._set_ready([origin], first=True)
        if waiting:
            self._waiting[name] = waiting
            self._learn(name, waiting[0])

    def given_up(self, job: Job) -> list[Key]:
        """A job will not be done; what cannot be done without it either.

        Returns:
            The cases that are done with this, and what of them.
        """
        found = [job.key] if job.learns is None else []
        for waiting in self._waiting.pop(job.learns, []) if job.learns is not None else []:
            found += self.given_up(waiting)
        for key in found:
            self.done(key)
        return found

    def _learn(self, name: str, origin: Job) -> None:
        others = {state: None for state in origin.states if state != name and state not in origin.missing}
        self._set_ready([Job(origin.case, origin.kind, learns=name, origin=origin, states=others, own=set(origin.own))], first=True)

    def _set_ready(self, jobs: list[Job], *, first: bool) -> None:
        if first:
            self._ready.extendleft(reversed(jobs))
        else:
            self._ready.extend(jobs)
