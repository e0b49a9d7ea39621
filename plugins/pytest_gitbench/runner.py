"""From a cell to its outcome. torch is imported at the first cell that runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gitbench.core.errors import ClusterError
from gitbench.identity.known_modalities import declared_modality, misfit
from gitbench.identity.threat import knowledge_of
from gitbench.judge.sequential import Decision, decide_cell
from gitbench.judge.verdict import Judgement, pooled, side
from gitbench.publish.baseline import Cells, cells_of, key_of
from gitbench.publish.comparison import compare_cell, tolerances
from gitbench.run.bench import Bench
from gitbench.run.config import Config
from gitbench.run.matrix import Cell
from gitbench.store.folder import Store
from gitbench.store.result import Result
from pytest_gitbench.outcome import AgainstBaseline, Figures, Outcome, Status

if TYPE_CHECKING:
    from gitbench.core.progress import Progress
    from gitbench.run.executor import ClusterExecutor


class Runner:
    """Runs cells of one session in one process.

    Args:
        config: the options of the run.
        store: where results are kept.
        selected: all cells that this run will measure: a defense needs one control among their attacks.
        baseline: earlier results to compare with.
        started: when the session started (seconds since 1970); with ``fresh`` older results are not taken.
        progress: told what is going on.
        cluster: measures what is not stored; None does so in this process.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        *,
        selected: Sequence[Cell],
        baseline: Cells | None,
        started: float,
        progress: Progress,
        cluster: ClusterExecutor | None = None,
    ) -> None:
        self._config = config
        self._selected = selected
        self._baseline = baseline
        self._bench = Bench.of_run(config, started=started, store=store, progress=progress, executor=cluster)
        if cluster is not None:
            cells = [cell.cases for cell in selected if not self._not_measured(cell)]
            cluster.ask(cells, known=self._bench.stored, planned=config.looks, gate=config.threshold)

    @staticmethod
    def check(cells: Sequence[Cell], config: Config) -> None:
        """Build every attack and defense of the matrix.

        Raises:
            GitbenchError: one refuses its options, or the device is not there.
        """
        from gitbench.attacker.attack import load_attack
        from gitbench.clients.defense import load_defense
        from gitbench.measure.evaluator import resolve_device

        if not config.on_cluster:
            resolve_device(config.device)
        for attack in {str(cell.attack) for cell in cells}:
            load_attack(attack, profile=config.profile)
        for defense in {str(cell.defense) for cell in cells}:
            load_defense(defense)

    def run(self, cell: Cell) -> Outcome:
        """Measure a cell and its control (or take them from the store), and judge them."""
        metric = next(iter(self._config.threshold))
        try:
            return self._outcome(cell, metric)
        except ClusterError as error:  # of this cell, or of a control that it needs
            return Outcome(cell=cell.labels, status="failed", word="error", reason=str(error), figures=Figures(metric=metric))

    def _outcome(self, cell: Cell, metric: str) -> Outcome:
        status: Status
        reason = self._not_measured(cell)
        if reason:
            status = "skipped"
            if not cell.is_control and not self._some_control_leaks(cell):
                reason, status = f"{reason}; and {_NO_CONTROL}", "failed"
            return Outcome(cell=cell.labels, status=status, word=NOT_GRANTED, reason=reason, figures=Figures(metric=metric))
        decision = self._decision(cell)
        results = decision.results
        status, reason, word = self._status(cell, results, decision.judgement)
        compared = self._compared(results)
        if compared is not None and compared.kind in ("regressed", "unpaired") and word != "error":
            # A cell that fails anyway says so first.
            reason = f"{reason}; regression: {compared.reason}" if status == "failed" else f"regression: {compared.reason}"
            status, word = "failed", word if status == "failed" else "worse"
        return Outcome(
            cell=cell.labels,
            status=status,
            word=word,
            reason=reason,
            figures=Figures.of(metric, decision.interval_of(metric)),
            case_ids=tuple(result.case_id for result in results),
            flags=tuple(sorted({flag for result in results for flag in result.flags})),
            baseline=compared,
        )

    def _compared(self, results: Sequence[Result]) -> AgainstBaseline | None:
        """The worst that the comparison with the baseline found; None without a baseline."""
        if self._baseline is None:
            return None
        key = key_of(results[0].case)
        if key not in self._baseline:
            return AgainstBaseline(kind="new", reason=str(key))
        now = cells_of(results)[key]
        changes = [
            compare_cell(key, self._baseline[key], now, metric=metric, tolerance=tolerances(self._config.tolerance))
            for metric in self._config.threshold
        ]
        worst = min(changes, key=lambda change: ("regressed", "unpaired", "improved", "unchanged").index(change.kind))
        return AgainstBaseline(kind=worst.kind, reason=worst.reason)

    def _status(self, cell: Cell, results: Sequence[Result], judgement: Judgement) -> tuple[Status, str, str]:
        """How pytest counts a cell, why, and the word that the matrix shows."""
        errors = [result for result in results if result.status == "error"]
        if errors:
            return "failed", f"{cell.name}: {errors[0].error}", "error"
        if judgement.late:
            return "failed", judgement.reason, judgement.word  # declared as a leak or not: it was not measured
        if cell.is_control:
            if judgement.verdict == "leaks":
                return "passed", judgement.reason, "leaks"
            return "skipped", f"no control: {judgement.reason}", "no control"
        if judgement.verdict == "leaks":
            return ("xfailed" if cell.known_leak else "failed"), judgement.reason, "leaks"
        if judgement.verdict == "holds":
            return "passed", judgement.reason, "holds"
        if judgement.control_failed:
            if self._some_control_leaks(cell):
                return "skipped", judgement.reason, "no control"
            return "failed", f"{judgement.reason}; and {_NO_CONTROL}", "no control"
        # A declared leak that is undecided acquits nobody either, and is no news.
        return ("xfailed" if cell.known_leak else "failed"), judgement.reason, judgement.word

    def _some_control_leaks(self, cell: Cell) -> bool:
        """Whether an attack that this run measures against this defense has a control that leaks, by every gated metric."""
        for other in self._selected:
            if (other.setting, other.defense) != (cell.setting, cell.defense) or self._not_measured(other):
                continue
            control, gate = self._decision(other, control=True), self._config.threshold
            found = pooled(control.results, gate, estimate=control.estimate)
            if control.judgement.verdict == "leaks" and all(side(name, found[name], gate[name]) == "leaks" for name in gate):
                return True
        return False

    def _decision(self, cell: Cell, *, control: bool = False) -> Decision:
        """Measure a cell, or its control, with as many victims as the verdict takes."""
        cases = [case.control() for case in cell.cases] if control else cell.cases
        return decide_cell(self._bench.measure, cases, planned=self._config.looks, gate=self._config.threshold)

    def _not_measured(self, cell: Cell) -> str:
        """Why a cell cannot be: its attack or model does other kinds of data, or needs what is not granted. A stored result had it all."""
        if all(self._bench.stored(case) for case in cell.cases):
            return ""
        named = {"attack": str(cell.attack), "model": str(cell.model), "defense": str(cell.defense)}
        unfit = misfit(declared_modality(str(cell.dataset)), **named)
        if unfit:
            return unfit
        from gitbench.attacker.attack import load_attack

        attack = load_attack(str(cell.attack), profile=self._config.profile)
        missing = sorted(attack.requires - knowledge_of(self._config.threat))
        needed = f"{cell.attack.label} needs {', '.join(missing)}, which the threat model {self._config.threat} does not grant"
        return needed if missing else ""


NOT_GRANTED = "n/a"  # the word for a cell whose attack needs more than the threat model grants, or does other kinds of data
_NO_CONTROL = "no other attack of this run passed its control either: nothing was shown about this defense"
