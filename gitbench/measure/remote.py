"""Tasks of a run on a worker: the evaluator without a results folder. What was learned comes with a task, and goes back with its reply."""

from __future__ import annotations

import contextlib
import functools
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from gitbench._version import __version__
from gitbench.attacker.attack import Attack, Fit, Fits, Fitted, load_attack
from gitbench.attacker.observation import Observation
from gitbench.clients.data import Data
from gitbench.clients.model import trained_name
from gitbench.clients.update import Update
from gitbench.core.deadline import Deadline
from gitbench.core.errors import GitbenchError, told
from gitbench.core.memory import keep_freed_memory
from gitbench.core.progress import Progress, TimeUp, silent
from gitbench.core.random import make_generator
from gitbench.core.spec import KINDS, Kind, parse_spec
from gitbench.identity.case import Case, code_digest, core_digest
from gitbench.identity.known_metrics import digest_of_metrics
from gitbench.identity.names import register
from gitbench.measure.evaluator import EVERY_MODEL, Evaluator, observed, warm_up
from gitbench.measure.task import Conditions, Reply, Task
from gitbench.store.folder import Store
from gitbench.store.result import TIMED_OUT, Result


class StateMissing(BaseException):  # so that no ``except Exception`` of a user's code swallows it
    """A task lacks a state that somebody has to learn first."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class StateLearned(BaseException):
    """A task has learned the state that it was for."""


class TaskStore(Store):
    """The results folder of one task: a temporary one that holds the states that came with it.

    The lock of a state is asked for by whoever is about to take or to learn it. So this is where a task ends that would
    learn what another one learns for all.
    """

    def __init__(self) -> None:
        super().__init__(Path())
        self._task = Task(case="", kind="run")
        self.picture: bytes | None = None
        self.learned: dict[str, bytes] = {}
        self.checkpoint: bytes | None = None

    def begin(self, folder: Path, task: Task, states: Sequence[bytes]) -> None:
        """Another task in another folder, which is empty."""
        self.root, self._task = folder, task
        self.picture, self.learned, self.checkpoint = None, {}, None
        self.models.mkdir(parents=True)
        for name, content in zip(task.states, states, strict=True):
            self._state(name).write_bytes(content)
        if task.learns is not None and task.checkpoint is not None:
            self._checkpoint(task.learns).write_bytes(task.checkpoint)

    def save_picture(self, case_id: str, png: bytes) -> None:
        self.picture = png

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Nobody else is in this folder.

        Raises:
            StateMissing: the state of this name did not come with the task, and is not the task's to learn.
            StateLearned: it was, and it is learned.
        """
        if name == EVERY_MODEL or self._state(name).exists():
            yield
            return
        if name != self._task.learns and name not in self._task.own:
            raise StateMissing(name)
        try:
            yield
        finally:
            if self._checkpoint(name).exists():
                self.checkpoint = self._checkpoint(name).read_bytes()
        if self._state(name).exists():
            self.learned[name] = self._state(name).read_bytes()
        if name == self._task.learns:
            raise StateLearned

    def _state(self, name: str) -> Path:
        return self.models / f"{name}.safetensors"

    def _checkpoint(self, name: str) -> Path:
        return self.models / f"{name}.checkpoint.safetensors"


class RemoteEvaluator(Evaluator):
    """Does one task after the other.

    Args:
        conditions: of all of them.
    """

    def __init__(self, conditions: Conditions) -> None:
        self._kept = TaskStore()
        super().__init__(store=self._kept, device=conditions.device, timeout=conditions.timeout)

    def perform(self, task: Task, states: Sequence[bytes]) -> Reply:
        """Do a task. What a defense or an attack raises stands in the reply.

        Args:
            task: what to do.
            states: the contents of the states that come with it.
        """
        case = Case.model_validate_json(task.case)
        refused = differs(case)
        if refused is not None:
            return Reply(refused=refused)
        with tempfile.TemporaryDirectory(prefix="gitbench-") as folder:
            self._kept.begin(Path(folder), task, states)
            try:
                reply = self._learned(case, task) if task.learns is not None else self._done(case, task)
            except StateMissing as missing:
                reply = Reply(lacks=(missing.name,))
            except StateLearned:
                reply = Reply()
        kept = self._kept
        return replace(reply, picture=kept.picture, learned=tuple(kept.learned.items()), checkpoint=kept.checkpoint)

    def _done(self, case: Case, task: Task) -> Reply:
        if task.kind == "training":
            return self._training_of(case)
        if not task.states and not task.own:  # else they are all that was found to be missing before
            lacks = self._lacks(case)
            if lacks:
                return Reply(lacks=lacks)
        result = self.run(case)
        return Reply(result=result.to_json(), late=TIMED_OUT in result.flags)

    def _training_of(self, case: Case) -> Reply:
        try:
            found = self.training(case)
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything; the run goes on
            return Reply(failed=told(error))
        return Reply(late=found is None, training=None if found is None else found.model_dump_json())

    def _lacks(self, case: Case) -> tuple[str, ...]:
        """The states that the attack of a case will ask for, before anything is computed for them.

        What cannot be told so turns up when the case is run.
        """
        try:
            asked = self._fit(case, silent)
        except Exception:  # noqa: BLE001 - whatever it is, running the case says it
            return ()
        return tuple(dict.fromkeys(asked.missing))

    def _learned(self, case: Case, task: Task) -> Reply:
        """Ends with :class:`StateLearned`, but for what goes wrong."""
        if task.kind == "training":
            return self._training_of(case)
        try:
            with Deadline(self.timeout) as deadline:
                self._fit(case, deadline, begin=deadline.begin)
        except TimeUp:
            late = Result(flags=(TIMED_OUT,), timeout=self.timeout, **self._unjudged(case))
            return Reply(result=late.to_json(), late=True)
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything; the run goes on
            return Reply(failed=told(error))
        return Reply(failed=f"{case.attack} did not ask for the state {task.learns}")

    def _fit(self, case: Case, progress: Progress, *, begin: Callable[[], None] | None = None) -> _Asking:
        """Let the attack of a case take, or learn, its states, and do no more.

        Args:
            case: whose attack.
            progress: told of the learning.
            begin: called before anything is learned, and before the defense is checked as it is before an attack; None checks nothing.
        """
        scene = self._scene(case, None)
        attack = load_attack(case.attack, profile=case.profile)
        if begin is not None:
            warm_up()
            begin()
        model = scene.shared_model()
        if begin is not None and not case.is_control:
            self._conforms(case, scene, model)
        # Whether several rounds are one, which the attacker would see, is known of the updates alone.
        seen = attack.seen_of(scene.observation([Update({})], model) if case.rounds == 1 else observed(scene, model))
        if begin is not None:
            attack._check_memory(seen)
        asked = _Asking(self._fits.of(case))
        generator = make_generator(case.seed, "attack", case.attack)
        attack._fitted(seen.without_update(), generator=generator, progress=progress, fits=asked)
        return asked

    def _load_model(self, case: Case, data: Data) -> nn.Module:
        """Trained parameters are a state like any other."""
        if (case.dataset, case.model, case.seed) in self._models:
            return super()._load_model(case, data)
        name = trained_name(case.model, data, seed=case.seed)
        with self._kept.lock(name or EVERY_MODEL):
            return super()._load_model(case, data)


class _Asking:
    """Fits that go on where a state is missing, so that an attack of several parts asks for all of its states."""

    def __init__(self, fits: Fits) -> None:
        self._fits = fits
        self.missing: list[str] = []

    def get(self, attack: Attack, observation: Observation, fit: Fit) -> Fitted:
        """See :class:`~gitbench.attacker.attack.Fits`."""
        try:
            return self._fits.get(attack, observation, fit)
        except StateMissing as missing:
            self.missing.append(missing.name)
            return Fitted({}, 0.0)


def perform(conditions: Conditions, task: Task, *states: bytes) -> Reply:
    """Do a task in this process, which keeps its evaluator for the next one.

    Args:
        conditions: of all tasks of the run.
        task: what to do.
        states: the contents of the states that come with it.
    """
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        reply = _evaluator(conditions).perform(task, states)
    if conditions.device == "cuda":
        torch.cuda.empty_cache()  # the next task on this GPU may be another process's
    texts = dict.fromkeys(str(one.message) for one in caught if issubclass(one.category, UserWarning))
    return replace(reply, warnings=tuple(texts), seconds=time.perf_counter() - start)


def differs(case: Case) -> str | None:
    """What of a case has another source on this machine than where its identity was made; None where all is the same.

    A result is filed under the code that its run has read. Another code must not measure for it.
    """
    here = {"gitbench": __version__, "core": core_digest(), "metrics": digest_of_metrics()}
    what = {"gitbench": "gitbench itself", "core": "gitbench itself", "metrics": "a metric"}
    try:
        for kind in KINDS:
            here[kind], what[kind] = _code_here(kind, getattr(case, kind)), f"the {kind} {getattr(case, kind)}"
    except GitbenchError as error:
        return str(error)
    return next((f"{what[name]} is of another version there" for name, code in case.code.items() if here.get(name) != code), None)


@functools.cache
def _code_here(kind: Kind, text: str) -> str:
    return code_digest(parse_spec(kind, text))


@functools.cache
def _evaluator(conditions: Conditions) -> RemoteEvaluator:
    """Of this process. A worker serves one run."""
    keep_freed_memory()
    torch.set_num_threads(conditions.threads)
    for kind, name, target in conditions.registered:
        register({kind: {name: target}})
    return RemoteEvaluator(conditions)
