"""Measure cases and judge them. A stored result is taken; a missing one is measured once."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import sys
import time
import uuid
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Self

from gitbench.core.deadline import checked
from gitbench.core.errors import ClusterError, ConfigError, GitbenchError, SpecError, told
from gitbench.core.progress import Progress, silent
from gitbench.core.spec import Part, parse_spec
from gitbench.identity.case import PLAIN_CLIENT, UNDEFENDED, Case, code_digest, make_case
from gitbench.identity.loading import checked_spec
from gitbench.identity.names import Target, entry_points
from gitbench.identity.objects import digest_of_object
from gitbench.identity.sources import part_digest, source_digest, with_files
from gitbench.judge.flags import compared_flags, raised_anew
from gitbench.judge.verdict import DEFAULT_GATE, exposures, judge_results
from gitbench.run.config import Config, make_config
from gitbench.store.folder import Store
from gitbench.store.result import NOT_JUDGED, TIMED_OUT, Baselines, Result, failed

if TYPE_CHECKING:
    from gitbench.clients.defense import Defense
    from gitbench.run.executor import Executor


_JUDGED = {"control-failed", "leaks-more-than-undefended", "adaptive-weaker"}  # follow from other cases, anew each time


class Bench:
    """Measures and judges cases. torch is imported when the first case has to be measured.

    Args:
        store: where results are kept; None keeps them in memory only.
        device: ``auto``, ``cpu`` or ``cuda``.
        gate: metric name to threshold.
        fresh_since: take no stored result, and nothing an attack learned, older than this time (seconds since 1970).
        threads: CPU threads to compute with; None leaves torch's setting alone.
        progress: told what is going on.
        timeout: seconds that a case may take; None for no limit. A stored case that had less is measured again.
        cost: whether to train under each defense, and say what accuracy it costs.
        accuracy_drop_limit: the most accuracy in percent that a defense may cost to hold; None for no limit.
        executor: measures what is not stored; None does so in this process.

    Raises:
        ConfigError: the timeout is no positive number.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        device: str = "auto",
        gate: Mapping[str, float] = DEFAULT_GATE,
        fresh_since: float | None = None,
        threads: int | None = None,
        progress: Progress = silent,
        timeout: float | None = None,
        cost: bool = False,
        accuracy_drop_limit: float | None = None,
        executor: Executor | None = None,
    ) -> None:
        self._store = store
        self._device = device
        self._gate = dict(gate)
        self._fresh_since = fresh_since
        self._threads = threads
        self._progress = progress
        self._timeout = checked(timeout)
        self._cost = cost or accuracy_drop_limit is not None
        self._accuracy_drop_limit = accuracy_drop_limit
        self._memory: dict[str, Result] = {}
        self._own: set[str] = set()  # measured here: fresh, whatever the clock says
        self._chain = executor

    @classmethod
    def of_run(
        cls, config: Config, *, started: float, store: Store | None = None, progress: Progress = silent, executor: Executor | None = None
    ) -> Self:
        """The bench of a run with these options.

        Args:
            config: the options.
            started: when the run started (seconds since 1970); a fresh run takes nothing older.
            store: where results are kept; None takes the folder of the options.
            progress: told what is going on.
            executor: measures what is not stored; None does so in this process, whatever the options say.
        """
        return cls(
            store=store or Store(config.results),
            device=config.device,
            gate=config.threshold,
            fresh_since=started if config.fresh else None,
            threads=config.threads,  # as many with xdist as without: sums are taken in the same order, and results are the same
            progress=progress,
            timeout=config.timeout,
            cost=config.cost,
            accuracy_drop_limit=config.accuracy_drop_limit,
            executor=executor,
        )

    def measure(self, case: Case, *, defense: Defense | None = None) -> Result:
        """The result of a case, with its verdict. The control is measured too, where it is missing.

        Errors of a defense or attack end up in the result, never here.

        Args:
            case: what to measure.
            defense: the defense itself, when no SPEC can rebuild it.

        Raises:
            StoreError: the results folder cannot be used.
        """
        control, ahead = (None, None) if case.is_control else self._control_of(case, defense)
        done = self.stored(case)
        if done is not None and not self._lacks_cost(done) and self._judged(done, control) == done:
            return done  # without a lock: a folder that holds all that is asked for may be read-only
        with self._lock(case):
            found = self.stored(case)
            result = found or ahead or self._measured(case, defense)
            if found is None and self._lacks_cost(result):
                self._keep(self._judged(result, control))  # what was attacked is not lost to a training that is cut off
            judged = self._judged(self._with_cost(result, defense), control)
            if judged != found:  # new, or judged by another gate before: the numbers stay, the verdict follows
                self._keep(judged)
        return judged

    def _control_of(self, case: Case, defense: Defense | None) -> tuple[Result, Result | None]:
        """The control of a case, and the case's own result where it was measured here, before the control; nobody has judged it.

        The control comes second where it is missing: another process may be at it just now, and its time is used.
        """
        control, ahead = case.control(), None
        if self.stored(control) is None:
            with self._lock(case):
                if self.stored(case) is None:
                    self._keep(ahead := self._measured(case, defense))
        return self.measure(control), ahead

    def _lock(self, case: Case) -> AbstractContextManager[None]:
        return self._store.lock(case.case_id) if self._store else contextlib.nullcontext()

    def _keep(self, result: Result) -> None:
        self._memory[result.case_id] = result
        if self._store:
            self._store.save(result)

    def stored(self, case: Case) -> Result | None:
        """The finished result of a case, if there is one that may be taken."""
        found = self._memory.get(case.case_id)
        if found is None and self._store:
            found = self._store.load(case.case_id)
        if found is None or found.status == "error":
            return None
        if TIMED_OUT in found.flags and not self._as_long(found.timeout):
            return None
        if self._fresh_since is not None and case.case_id not in self._own:
            finished = datetime.datetime.fromisoformat(found.finished_at).timestamp()
            if not self._fresh_since <= finished <= time.time():  # one of the future was measured before the clock was set
                return None
        return found

    def _as_long(self, timeout: float | None) -> bool:
        """Whether a case that was stopped after ``timeout`` had all the time that it would have now."""
        return timeout is not None and self._timeout is not None and self._timeout <= timeout

    def _lacks_cost(self, result: Result) -> bool:
        return self._cost and result.training is None and result.status == "done"

    def _with_cost(self, result: Result, defense: Defense | None) -> Result:
        """A result with what its defense costs, where that is asked for and there is time for it."""
        if not self._lacks_cost(result):
            return result
        try:
            return result.model_copy(update={"training": self._evaluator().training(result.case, defense)})
        except ClusterError:  # nobody knows: what was measured is no worse for it
            raise
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything; the run goes on
            return result.model_copy(update=failed(f"trained under its defense: {told(error)}"))

    def _measured(self, case: Case, defense: Defense | None) -> Result:
        self._own.add(case.case_id)
        return self._evaluator().run(case, defense)

    def _evaluator(self) -> Executor:
        if self._chain is None:
            from gitbench.core.memory import keep_freed_memory
            from gitbench.measure.evaluator import Evaluator

            keep_freed_memory()
            if self._threads is not None:
                import torch

                torch.set_num_threads(self._threads)
            self._chain = Evaluator(
                store=self._store, device=self._device, progress=self._progress, fresh_since=self._fresh_since, timeout=self._timeout
            )
        return self._chain

    def _oblivious(self, case: Case) -> Result | None:
        """The same case with the attacker that does not know the defense, if this bench or its store has it.

        One that nobody has judged came back from a cluster before its turn: here too the order of the cells decides.
        """
        stored = (self.stored(one) for one in case.oblivious())
        return next((found for found in stored if found is not None and found.verdict_reason != NOT_JUDGED), None)

    def _judged(self, result: Result, control: Result | None) -> Result:
        changes: dict[str, object] = {"gate": self._gate, "accuracy_drop_limit": self._accuracy_drop_limit}
        if result.status == "done":
            result = result.model_copy(update={**changes, "flags": tuple(sorted(raised_anew(result)))})
            judgement = judge_results([result], [control] if control else None, gate=self._gate)
            flags = set(result.flags) - _JUDGED | ({"control-failed"} if judgement.control_failed else set())
            if control is not None and control.status == "done":
                flags |= compared_flags(result, control=control, oblivious=self._oblivious(result.case))
            changes |= {"verdict": judgement.verdict, "verdict_reason": judgement.reason, "flags": tuple(sorted(flags))}
            changes["exposure"] = exposures([result], self._gate)
        if control is not None:
            means = {name: measure.mean for name, measure in control.metrics.items()}
            changes["baselines"] = Baselines(blind=result.baselines.blind, control=means)
        return result.model_copy(update=changes)


def evaluate(
    *,
    attack: str,
    defense: str | Defense = UNDEFENDED,
    model: str = "lenet",
    dataset: str = "photos",
    client: str = PLAIN_CLIENT,
    threat: str = "server",
    profile: str = "standard",
    victims: int = 16,
    batch_size: int = 1,
    rounds: int = 1,
    seed: int = 0,
    device: str = "auto",
    gate: Mapping[str, float] | None = None,
    results: str | Path | None = None,
    timeout: float | None = None,
    progress: Progress = silent,
) -> Result:
    """Measure one case and its control.

    Args:
        attack: SPEC; ``model``, ``dataset`` and ``client``, how clients make their updates, likewise.
        defense: SPEC, or a defense.
        threat: ``server``, ``eavesdropper`` or ``upper-bound``.
        profile: budget of the attack: ``quick``, ``standard`` or ``paper``.
        victims: private batches to attack, of ``batch_size`` inputs of each client.
        rounds: how many updates of each victim the attacker sees, each with fresh randomness of the defense.
        seed: of victims, model, defense and attack.
        device: ``auto``, ``cpu`` or ``cuda``.
        gate: metric name to threshold, None for that of the kind of data; with ``accuracy_drop`` the defense is trained under as well.
        results: folder to keep results in and take them from; None measures anew.
        timeout: seconds for each of the two, past which it is inconclusive and has the flag ``timed-out``; None for no limit.
        progress: told what is going on.

    Raises:
        SpecError: a SPEC cannot be read or names something unknown.
        ConfigError: unknown profile, threat model, device or metric, or a number that cannot be.
    """
    given = {"dataset": dataset, "profile": profile, "threat": threat, "device": device, "threshold": gate}
    config = make_config({}, {**given, "victims": victims, "batch_size": batch_size, "rounds": rounds})
    if config.sequential:
        raise ConfigError("Expected a number of victims, got 'auto': gitbench.evaluate measures one case. Use pytest --gitbench.")
    case = case_of(
        attack=attack, defense=defense, model=model, dataset=dataset, client=client, threat=threat, profile=profile,
        victims=config.victims, batch_size=config.batch_size[0], rounds=config.rounds[0], seed=seed,
    )  # fmt: skip
    store, limit = None if results is None else Store(Path(results)), config.accuracy_drop_limit
    bench = Bench(store=store, device=device, gate=config.threshold, progress=progress, timeout=timeout, accuracy_drop_limit=limit)
    return bench.measure(case, defense=None if isinstance(defense, str) else defense)


def case_of(
    *,
    attack: str,
    defense: str | Defense,
    model: str,
    dataset: str,
    client: str = PLAIN_CLIENT,
    threat: str,
    profile: str,
    victims: int,
    batch_size: int,
    rounds: int = 1,
    seed: int,
) -> Case:
    """The case of :func:`evaluate`'s arguments, checked; a defense given as an object goes by its repr."""
    if not isinstance(defense, str):
        defense_spec, defense_code = parse_spec("defense", repr(defense)), _code_of(defense)
        if str(defense_spec) == UNDEFENDED and defense_code != code_digest(defense_spec):
            raise SpecError(f"A defense of one's own cannot go by the name {UNDEFENDED!r}, which means that there is none. Rename it.")
    else:
        defense_spec, defense_code = checked_spec("defense", defense), None
    return make_case(
        attack=checked_spec("attack", attack), model=checked_spec("model", model), dataset=checked_spec("dataset", dataset),
        client=checked_spec("client", client), defense=defense_spec, defense_code=defense_code,
        threat=threat, profile=profile, victims=victims, batch_size=batch_size, rounds=rounds, seed=seed,
    )  # fmt: skip


def _code_of(defense: Defense) -> str:
    """Digest of a defense that was passed as an object: its sources, what it holds, and the files that this names.

    One that its own SPEC would rebuild is the same as that.
    """
    parts, named = _parts(defense), parse_spec("defense", repr(defense)).parts
    if len(parts) != len(named):  # a composition of somebody's own class is more than its parts
        return _code_of_part(defense, Part(type(defense).__name__))
    return "+".join(_code_of_part(part, options) for part, options in zip(parts, named, strict=True))


def _parts(defense: Defense) -> list[Defense]:
    from gitbench.clients.defense import Composition

    return [part for one in defense.defenses for part in _parts(one)] if type(defense) is Composition else [defense]


def _code_of_part(defense: Defense, part: Part) -> str:
    state = digest_of_object(defense)
    if state is not None and part.target in entry_points("defense"):
        from gitbench.clients.defense import load_defense

        with contextlib.suppress(GitbenchError):
            if digest_of_object(load_defense(str(part))) == state:
                return part_digest("defense", part)
    file = getattr(sys.modules.get(type(defense).__module__), "__file__", None)
    if state is None or not file:
        what = f"What {defense!r} holds" if file else f"The source of {defense!r}"
        warnings.warn(f"{what} cannot be told from another's: it is measured anew each time.", stacklevel=2)
        return f"unknown-{uuid.uuid4().hex[:16]}"
    source = source_digest(Target(type(defense).__module__, type(defense).__name__, Path(file)))
    digest = hashlib.sha256(f"{source} {state}".encode()).hexdigest()[:16]
    return with_files(digest, "defense", Part(part.target, tuple(vars(defense).items())))
