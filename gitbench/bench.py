"""Cases in, judged results out: what is stored is taken, what is missing is measured once."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gitbench.case import Case
from gitbench.progress import Progress, silent
from gitbench.result import Baselines, Result
from gitbench.store import Store
from gitbench.verdict import DEFAULT_GATE, judge_results

if TYPE_CHECKING:
    from gitbench.defense import Defense
    from gitbench.evaluation import Chain


class Bench:
    """Measures and judges cases. torch is imported when the first case has to be measured.

    Args:
        store: where results are kept; None keeps them in memory only.
        device: ``auto``, ``cpu`` or ``cuda``.
        gate: metric name to threshold.
        fresh_since: take no stored result older than this time (seconds since 1970).
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
            self._chain = Chain(store=self._store, device=self._device, progress=self._progress)
        return self._chain.run(case, defense)

    def _judged(self, result: Result, control: Result | None) -> Result:
        changes: dict[str, object] = {"gate": self._gate}
        if result.status == "done":
            judgement = judge_results([result], [control] if control else None, gate=self._gate)
            flags = set(result.flags) - {"control-failed"} | ({"control-failed"} if judgement.control_failed else set())
            changes |= {"verdict": judgement.verdict, "verdict_reason": judgement.reason, "flags": tuple(sorted(flags))}
        if control is not None:
            means = {name: measure.mean for name, measure in control.metrics.items()}
            changes["baselines"] = Baselines(blind=result.baselines.blind, control=means)
        return result.model_copy(update=changes)
