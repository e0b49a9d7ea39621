"""The table of a suite: published, ours, and the difference. :mod:`suite_page` writes it down."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from gitbench.core import figures
from gitbench.core.metric import Metric
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.verdict import pooled
from gitbench.run.matrix import CellSpecs
from gitbench.run.suite import FULL, Suite, SuiteLine, SuiteSetting
from gitbench.run.suite_plan import PlannedLine, SuiteRun, planned_lines
from gitbench.store.result import TIMED_OUT, Result

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class SuiteFigure:
    """One published figure and ours, as texts.

    Args:
        line: that it is of.
        metric: with its unit and the direction of a successful attack.
        ours: mean and interval, or why there is none.
        difference: ours less the published one; empty where nothing is compared.
    """

    line: SuiteLine
    metric: str
    published: str
    ours: str
    difference: str


@dataclass(frozen=True)
class MeasuredLine:
    """A line with what was measured of it.

    Args:
        planned: the line.
        results: of all seeds; none where it was not measured, or not all of it.
        why: in a few words why there is nothing to compare; empty where there is.
    """

    planned: PlannedLine
    results: Sequence[Result]
    why: str

    @property
    def key(self) -> str:
        """What a table remembers of it: its cell, by the names of the suite. Lines may share one."""
        setting, line = self.planned.setting, self.planned.line
        where = (setting.data, setting.model, setting.client, setting.batch_size, setting.rounds)
        return "/".join(map(str, (*where, line.defense, line.attack)))


@dataclass(frozen=True)
class SuiteTable:
    """A suite's lines in the order of its file, each with its results.

    Args:
        run: with which options.
        lines: all of them, measured or not.
    """

    suite: Suite
    run: SuiteRun
    lines: Sequence[MeasuredLine]

    @functools.cached_property
    def reduced(self) -> tuple[str, ...]:
        """In which ways less was done than the suite asks for; empty at its full budget."""
        run, full = self.run, self.suite.full
        told = [] if run.profile == FULL else [f"profile {run.profile} instead of {FULL}"]
        told += [] if run.victims >= full.victims else [f"{_counted(run.victims, 'victim')} a seed instead of {full.victims:,}"]
        told += [] if run.seeds >= full.seeds else [f"{_counted(run.seeds, 'seed')} instead of {full.seeds:,}"]
        for need in self.suite.data:
            have = run.public.get(need.name)
            if have is not None and need.public is not None and have < need.public:
                told.append(f"{_counted(have, 'public image')} of {need.name} instead of {need.public:,}")
        return (*told, *self._limited())

    def _limited(self) -> list[str]:
        """The attacks that learn from fewer images than the paper's, whatever is given, where the line is not about their number."""
        found: dict[str, None] = {}
        for line in self.measured:
            planned = line.planned
            wanted = self.suite.need(planned.setting.data).public if planned.setting.data else None
            limit = line.results[0].settings.get("limit", "")
            if wanted is not None and planned.line.public is None and limit.isdigit() and int(limit) < wanted:
                found[f"{planned.line.paper} learns from {int(limit):,} images instead of {wanted:,}"] = None
        return list(found)

    @property
    def measured(self) -> list[MeasuredLine]:
        """The lines that have figures."""
        return [line for line in self.lines if line.results]

    def settings(self) -> list[tuple[SuiteSetting, list[MeasuredLine]]]:
        """The parts of the table with their lines."""
        return [(setting, [line for line in self.lines if line.planned.setting is setting]) for setting in self.suite.settings]

    def figures(self, line: MeasuredLine) -> list[SuiteFigure]:
        """A figure for each metric that was published."""
        known = known_metrics()
        return [self._figure(line, known[name], value) for name, value in line.planned.line.published.items()]

    def _figure(self, line: MeasuredLine, metric: Metric, published: Decimal) -> SuiteFigure:
        found = line.planned.line
        unit = f" {metric.unit}" if metric.unit else ""
        name, text = f"{metric.heading or metric.name}{unit} {figures.arrow(metric)}", f"{published:f}"
        if not line.results:
            return SuiteFigure(found, name, text, line.why, "")
        mine = pooled(line.results, {metric.name: None})[metric.name]
        if mine.mean is None:
            return SuiteFigure(found, name, text, "unknown", "")
        ours = figures.figure(metric, mine.mean, mine.low, mine.high, unit=False)
        return SuiteFigure(found, name, text, ours, line.why or difference(mine.mean, published))


def suite_table(suite: Suite, run: SuiteRun, results: Iterable[Result]) -> SuiteTable:
    """The table of a run; of several measurements of one case the latest counts, and others than the run's are passed over."""
    latest: dict[tuple[CellSpecs, int], Result] = {}
    for result in sorted(results, key=lambda result: result.finished_at):
        case = result.case
        if (case.threat, case.profile, case.victims) == (suite.threat, run.profile, run.victims) and 0 <= case.seed < run.seeds:
            specs = CellSpecs(case.dataset, case.model, case.defense, case.attack, case.client, case.batch_size, case.rounds)
            latest[specs, case.seed] = result
    return SuiteTable(suite, run, [_measured(one, run, latest) for one in planned_lines(suite, run.data)])


def difference(ours: float, published: Decimal) -> str:
    """Ours less the published one, with as many digits as were published: more would be made up."""
    exponent = published.as_tuple().exponent
    digits = -exponent if isinstance(exponent, int) else 0
    text = f"{ours - float(published):+.{digits}f}"
    return text if float(text) else text.lstrip("+-")


def _measured(planned: PlannedLine, run: SuiteRun, latest: Mapping[tuple[CellSpecs, int], Result]) -> MeasuredLine:
    if planned.specs is None:
        return MeasuredLine(planned, (), planned.why)
    found = [latest.get((planned.specs, seed)) for seed in range(run.seeds)]
    results = [result for result in found if result is not None]
    if any(result.status != "done" for result in results):
        return MeasuredLine(planned, (), "error")
    if len(results) < run.seeds:
        return MeasuredLine(planned, (), NOT_MEASURED)
    if any(TIMED_OUT in result.flags for result in results):
        return MeasuredLine(planned, (), "timed out")
    have, needed = run.public.get(planned.setting.data or ""), planned.line.public
    short = have is not None and needed is not None and have < needed
    return MeasuredLine(planned, tuple(results), f"not compared: {have:,} of {needed:,} public images" if short else "")


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
