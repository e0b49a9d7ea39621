"""Cases in, judged results out: what is stored is taken, what is missing is measured once."""

from __future__ import annotations

import contextlib
import datetime
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gitbench import registry
from gitbench.case import UNDEFENDED, Case, make_case
from gitbench.progress import Progress, silent
from gitbench.result import Baselines, Result
from gitbench.spec import parse_spec
from gitbench.store import Store
from gitbench.verdict import DEFAULT_GATE, exposures, judge_results

if TYPE_CHECKING:
    from gitbench.defense import Defense
    from gitbench.evaluation import Chain


class Bench:
    """Measures and judges cases. torch is imported when the first case has to be measured.

    Args:
        store: where results are kept; None keeps them in memory only.
        device: ``auto``, ``cpu`` or ``cuda``.
        gate: metric name to threshold.
        fresh_since: take no stored result, and nothing an attack learned, older than this time (seconds since 1970).
        threads: CPU threads to compute with; None leaves torch's setting alone.
        progress: told what is going on.
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
    ) -> None:
        self._store = store
        self._device = device
        self._gate = dict(gate)
        self._fresh_since = fresh_since
        self._threads = threads
        self._progress = progress
        self._memory: dict[str, Result] = {}
        self._chain: Chain | None = None

    def measure(self, case: Case, *, defense: Defense | None = None) -> Result:
        """The result of a case, with its verdict. The control is measured first where it is missing.

        Errors of a defense or attack end up in the result, never here.

        Args:
            case: what to measure.
            defense: the defense itself, when no SPEC can rebuild it.

        Raises:
            StoreError: the results folder cannot be used.
        """
        control = None if case.is_control else self.measure(case.control())
        with self._store.lock(case.case_id) if self._store else contextlib.nullcontext():
            found = self.stored(case)
            judged = self._judged(found or self._measured(case, defense), control)
            if judged != found:  # new, or judged by another gate before: the numbers stay, the verdict follows
                self._memory[case.case_id] = judged
                if self._store:
                    self._store.save(judged)
        return judged

    def stored(self, case: Case) -> Result | None:
        """The finished result of a case, if there is one that may be taken."""
        found = self._memory.get(case.case_id)
        if found is None and self._store:
            found = self._store.load(case.case_id)
        if found is None or found.status == "error":
            return None
        if self._fresh_since is not None and datetime.datetime.fromisoformat(found.finished_at).timestamp() < self._fresh_since:
            return None
        return found

    def _measured(self, case: Case, defense: Defense | None) -> Result:
        from gitbench.evaluation import Chain

        if self._chain is None:
            if self._threads is not None:
                import torch

                torch.set_num_threads(self._threads)
            self._chain = Chain(store=self._store, device=self._device, progress=self._progress, fresh_since=self._fresh_since)
        return self._chain.run(case, defense)

    def _judged(self, result: Result, control: Result | None) -> Result:
        changes: dict[str, object] = {"gate": self._gate}
        if result.status == "done":
            judgement = judge_results([result], [control] if control else None, gate=self._gate)
            flags = set(result.flags) - {"control-failed"} | ({"control-failed"} if judgement.control_failed else set())
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
    threat: str = "server",
    profile: str = "standard",
    victims: int = 16,
    batch_size: int = 1,
    seed: int = 0,
    device: str = "auto",
    gate: Mapping[str, float] = DEFAULT_GATE,
    results: str | Path | None = None,
    progress: Progress = silent,
) -> Result:
    """Measure one case and its control.

    Args:
        attack: SPEC.
        defense: SPEC, or a defense.
        model: SPEC.
        dataset: SPEC.
        threat: ``server``, ``eavesdropper`` or ``upper-bound``.
        profile: budget of the attack: ``quick``, ``standard`` or ``paper``.
        victims: private batches to attack.
        batch_size: inputs per victim.
        seed: of victims, model, defense and attack.
        device: ``auto``, ``cpu`` or ``cuda``.
        gate: metric name to threshold.
        results: folder to keep results in and take them from; None measures anew.
        progress: told what is going on.

    Raises:
        SpecError: a SPEC cannot be read or names something unknown.
        ConfigError: unknown threat model or device.
    """
    case = case_of(
        attack=attack, defense=defense, model=model, dataset=dataset, threat=threat, profile=profile,
        victims=victims, batch_size=batch_size, seed=seed,
    )  # fmt: skip
    store = Store(Path(results)) if results is not None else None
    bench = Bench(store=store, device=device, gate=gate, progress=progress)
    return bench.measure(case, defense=None if isinstance(defense, str) else defense)


def case_of(
    *,
    attack: str,
    defense: str | Defense,
    model: str,
    dataset: str,
    threat: str,
    profile: str,
    victims: int,
    batch_size: int,
    seed: int,
) -> Case:
    """The case of :func:`evaluate`'s arguments, checked; a defense given as an object goes by its repr."""
    if not isinstance(defense, str):
        defense_spec, defense_code = parse_spec("defense", repr(defense)), _code_of(defense)
    else:
        defense_spec, defense_code = parse_spec("defense", defense), None
        registry.check(defense_spec)
    specs = {"attack": parse_spec("attack", attack), "model": parse_spec("model", model), "dataset": parse_spec("dataset", dataset)}
    for spec in specs.values():
        registry.check(spec)
    return make_case(
        **specs, defense=defense_spec, defense_code=defense_code, threat=threat, profile=profile,
        victims=victims, batch_size=batch_size, seed=seed,
    )  # fmt: skip


def _code_of(defense: Defense) -> str:
    """Digest of the source of a defense that was passed as an object."""
    module = sys.modules.get(type(defense).__module__)
    file = getattr(module, "__file__", None)
    if not file:
        warnings.warn(f"The source of {defense!r} cannot be found: an edit to it will go unnoticed.", stacklevel=2)
        return "no-source"
    return registry.source_digest(registry.Target(type(defense).__module__, type(defense).__name__, Path(file)))
