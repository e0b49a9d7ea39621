"""The ``gitbench_evaluate`` fixture: a defense's report inside any test suite."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from gitbench.core.errors import ConfigError, GitbenchError, nearest
from gitbench.core.figures import figure, limit
from gitbench.identity.case import Case, CellLabels
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.sequential import decide_cell
from gitbench.judge.statistics import Interval
from gitbench.judge.verdict import Judgement
from gitbench.run.bench import Bench, case_of
from gitbench.run.config import Config
from gitbench.store.result import Result, Verdict
from pytest_gitbench import report as lines
from pytest_gitbench.options import read_config
from pytest_gitbench.outcome import Figures

if TYPE_CHECKING:
    from gitbench.clients.defense import Defense

# Keywords of the marker: axes, in the plural too, and sizes spelled as in [tool.gitbench].
_AXES = {
    "attacks": "attack",
    "models": "model",
    "datasets": "dataset",
    "clients": "client",
    "batch_sizes": "batch_size",
    "rounds": "rounds",
}
_OPTIONS = (*_AXES.values(), "profile", "seeds", "victims", "device", "threat", "threshold", "cost", "results", "timeout")


@dataclass(frozen=True)
class CellReport:
    """A defense against one attack: all seeds together, judged as ``pytest --gitbench`` judges a cell.

    Args:
        results: one for each seed.
        judgement: of all of them.
        metric: the first that is gated.
        threshold: its threshold.
        found: its mean and interval.
        pictures: the truth above the reconstruction, one file for each seed.
    """

    results: tuple[Result, ...]
    judgement: Judgement
    metric: str
    threshold: float
    found: Interval
    pictures: tuple[Path, ...]

    @property
    def labels(self) -> CellLabels:
        return self.results[0].case.labels

    @property
    def name(self) -> str:
        """``dataset/model/defense/attack``."""
        return str(self.labels)

    @property
    def victims(self) -> int:
        """How many batches were attacked, over all seeds."""
        return sum(result.case.victims for result in self.results)

    @property
    def error(self) -> str | None:
        """What the defense or the attack raised."""
        return next((result.error for result in self.results if result.status == "error"), None)

    @property
    def margin(self) -> float | None:
        """From the threshold to the nearer end of the interval, in the metric's unit.

        Above 0 where the defense holds, below 0 where it leaks, 0 where the interval straddles the
        threshold, None where there is no interval.
        """
        low, high = self.found.low, self.found.high
        if low is None or high is None:
            return None
        under, past = self.threshold - high, low - self.threshold
        if not known_metrics()[self.metric].higher_leaks:
            under, past = past, under
        return under if under > 0 else min(0.0, -past)

    @property
    def word(self) -> str:
        """The verdict as the matrix shows it."""
        if self.error is not None:
            return "error"
        return self.judgement.word

    @property
    def figures(self) -> str:
        """``+12.4 dB [10.2, 14.8]``, empty where nothing was measured."""
        return lines.figures(Figures.of(self.metric, self.found))


class Report(str):
    """A defense against a small matrix. As a text it is the table, the worst attack and the reasons.

    It is a string because pytest cuts the repr of anything else in an assertion's message to 240 characters.
    """

    __slots__ = ("cells", "verdict")
    verdict: Verdict
    cells: tuple[CellReport, ...]

    def __new__(cls, cells: Sequence[CellReport]) -> Self:
        verdict = overall(cells)
        self = super().__new__(
            cls, "\n".join([f"verdict: {verdict}", *_table(cells), *_worst_lines(cells), *_reasons(cells), *_flags(cells)])
        )
        self.verdict, self.cells = verdict, tuple(cells)
        return self

    def __repr__(self) -> str:
        return str(self)

    def __bool__(self) -> bool:
        """Whether the defense holds: ``assert report`` asks what it seems to ask."""
        return self.verdict == "holds"

    @property
    def results(self) -> tuple[Result, ...]:
        """Every case that was measured: one for each seed of each cell."""
        return tuple(result for cell in self.cells for result in cell.results)

    @property
    def worst(self) -> CellReport | None:
        """The cell that leaks most; None where nothing was measured."""
        return _worst(self.cells)


class Measurer:
    """Called with a defense, returns its :class:`Report`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __call__(self, defense: Defense | str, **options: Any) -> Report:
        """Measure ``defense``; ``options`` add to the marker's and win over them.

        Raises:
            ConfigError: an unknown option.
            SpecError: a SPEC cannot be read or names something unknown.
        """
        __tracebackhide__ = True
        try:
            return self._measured(defense, options)
        except GitbenchError as error:
            raise error.with_traceback(None) from None  # where in gitbench it was found helps nobody

    def _measured(self, defense: Defense | str, options: Mapping[str, Any]) -> Report:
        given: dict[str, Any] = {}
        for marker in reversed([*self._request.node.iter_markers("gitbench")]):  # the closest last: it wins
            if marker.args:
                raise ConfigError(f"The gitbench marker takes keywords only, got {marker.args[0]!r}. Write attacks=[...], for example.")
            given |= _options(marker.kwargs)
        given |= _options(options)
        config = read_config(self._request.config, defense=["none"], **given)
        bench = Bench.of_run(config, started=self._request.config.option.gitbench_started)
        with _threads_restored():
            cells = [
                _cell(bench, config, [_case(config, (*axes, attack), defense, seed) for seed in range(config.seeds)], defense)
                for axes in itertools.product(config.dataset, config.model, config.client, config.batch_size, config.rounds)
                for attack in config.attacks_on(axes[3])
            ]
        return Report(cells)


def overall(cells: Sequence[CellReport]) -> Verdict:
    """The verdict on a defense: it leaks where any cell does, and holds only where every model has proof.

    Cells whose control failed say nothing; a model, client, batch size or number of rounds of which nothing is left is inconclusive.
    """
    if any(cell.word == "leaks" for cell in cells):
        return "leaks"
    telling = [cell for cell in cells if cell.word != "no control"]
    every = {_group(cell) for cell in cells}
    if every == {_group(cell) for cell in telling} and telling and all(cell.word == "holds" for cell in telling):
        return "holds"
    return "inconclusive"


def _group(cell: CellReport) -> tuple[str, str, str, int, int]:
    case = cell.results[0].case
    return case.dataset, case.model, case.client, case.batch_size, case.rounds


def _case(config: Config, axes: tuple[str, str, str, int, int, str], defense: Defense | str, seed: int) -> Case:
    dataset, model, client, batch_size, rounds, attack = axes
    return case_of(
        attack=attack, defense=defense, model=model, dataset=dataset, client=client, threat=config.threat, profile=config.profile,
        victims=config.victims, batch_size=batch_size, rounds=rounds, seed=seed,
    )  # fmt: skip


def _cell(bench: Bench, config: Config, cases: Sequence[Case], defense: Defense | str) -> CellReport:
    def measure(case: Case) -> Result:
        return bench.measure(case, defense=None if isinstance(defense, str) or case.is_control else defense)

    decision = decide_cell(measure, cases, planned=config.looks, gate=config.threshold)
    results = decision.results
    metric, threshold = next(iter(config.threshold.items()))
    return CellReport(
        results=tuple(results),
        judgement=decision.judgement,
        metric=metric,
        threshold=threshold,
        found=decision.interval_of(metric),
        pictures=tuple(config.results / "pictures" / f"{result.case_id}.png" for result in results),
    )


@contextmanager
def _threads_restored() -> Iterator[None]:
    """Measuring sets torch's number of threads; the other tests of the suite get theirs back."""
    before = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    try:
        yield
    finally:
        if before is not None:
            sys.modules["torch"].set_num_threads(before)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in given.items():
        name = _AXES.get(key, key)
        if name not in _OPTIONS:
            raise ConfigError(f"The gitbench marker has no option {key!r}.{nearest(key, (*_AXES, *_OPTIONS))}")
        if name in options:
            raise ConfigError(f"The gitbench marker has {key!r} twice, in the plural and without. Keep one of them.")
        options[name] = value
    return options


def _worst(cells: Sequence[CellReport]) -> CellReport | None:
    def leakage(cell: CellReport) -> float:
        return (cell.found.mean or 0.0) * known_metrics()[cell.metric].sign

    return max((cell for cell in cells if cell.found.mean is not None), key=leakage, default=None)


def _table(cells: Sequence[CellReport]) -> list[str]:
    marks = {"holds": "ok", "no control": "s"}
    return lines.table_lines([(cell.labels, f"{marks.get(cell.word, 'F')} {cell.word} {cell.figures}".rstrip()) for cell in cells])


def _worst_lines(cells: Sequence[CellReport]) -> list[str]:
    worst = _worst(cells)
    if worst is None:
        return []
    metric = known_metrics()[worst.metric]
    threshold = limit(metric, worst.threshold)
    if worst.margin is None:
        margin = f"none, there is no interval to compare with the threshold of {threshold}"
    elif worst.margin == 0:
        margin = f"none, the threshold of {threshold} lies within the interval"
    else:
        side = "under" if worst.margin > 0 else "past"
        margin = f"{figure(metric, abs(worst.margin))}, the whole interval is {side} the threshold of {threshold}"
    return [
        f"worst attack: {worst.name}",
        f"  {worst.metric} {worst.figures} of {worst.victims} victims",
        f"  margin: {margin}",
        *(f"  picture: {path} (the truth above the reconstruction)" for path in worst.pictures),
    ]


def _flags(cells: Sequence[CellReport]) -> list[str]:
    return lines.flag_lines({cell.name: sorted({flag for result in cell.results for flag in result.flags}) for cell in cells})


def _reasons(cells: Sequence[CellReport]) -> list[str]:
    open_ones = [cell for cell in cells if cell.word != "holds"]
    return ["why:", *(f"  {cell.name}: {cell.error or cell.judgement.reason}" for cell in open_ones)] if open_ones else []
