"""How a cell ended: one typed value, which travels as JSON from the process that measured to the process that reports."""

from __future__ import annotations

from typing import Literal, Self

import pytest
from pydantic import FiniteFloat

from gitbench.identity.case import CellLabels
from gitbench.judge.statistics import Interval
from gitbench.run.matrix import Cell
from gitbench.store.result import StrictModel, Text

Status = Literal["passed", "failed", "skipped", "xfailed"]
SYMBOLS: dict[Status, str] = {"passed": "ok", "failed": "F", "skipped": "s", "xfailed": "x"}
_ATTRIBUTE = "gitbench_outcome"  # of pytest's report; xdist carries what a report holds from its workers


class Figures(StrictModel):
    """The first metric that is gated: its mean over victims and seeds, and the interval, as far as they are known."""

    metric: str = ""
    mean: FiniteFloat | None = None
    low: FiniteFloat | None = None
    high: FiniteFloat | None = None

    @classmethod
    def of(cls, metric: str, found: Interval) -> Self:
        return cls(metric=metric, mean=found.mean, low=found.low, high=found.high)


class AgainstBaseline(StrictModel):
    """What the comparison with the baseline found; the reason of a new cell is its name."""

    kind: Literal["new", "regressed", "improved", "unchanged", "unpaired"]
    reason: Text = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}" if self.reason else self.kind


class Outcome(StrictModel):
    """How a cell ended.

    Args:
        cell: which.
        status: how pytest counts it.
        word: what the matrix shows.
        reason: why, for people.
        figures: what was measured.
        case_ids: the results behind it; none where nothing was measured.
        flags: of all its results.
        baseline: None without a baseline.
        seconds: that pytest counted.
    """

    cell: CellLabels
    status: Status
    word: str
    reason: Text = ""
    figures: Figures = Figures()
    case_ids: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    baseline: AgainstBaseline | None = None
    seconds: FiniteFloat = 0.0

    def attach(self, report: pytest.TestReport) -> None:
        """Let pytest's report carry this."""
        vars(report)[_ATTRIBUTE] = self.model_dump_json()

    @property
    def properties(self) -> dict[str, object]:
        """What ``--junit-xml`` shows of a cell, by names that users rely on."""
        return {
            "gitbench": self.word,
            **self.figures.model_dump(),
            "case_ids": " ".join(self.case_ids),
            "reason": self.reason,
            "flags": " ".join(self.flags),
            "baseline": str(self.baseline or ""),
        }

    @classmethod
    def of(cls, report: pytest.TestReport, cell: Cell) -> Self | None:
        """What a report of a cell says, whoever made it.

        pytest's status counts: it knows of ``--runxfail``, and of plugins that run a cell again. A report that carries nothing is
        of a cell that never came to its end: its process crashed, say, or the time limit of another plugin struck.

        Returns:
            None where another plugin gave the report a status of its own, which is for that plugin to tell.
        """
        status = _status(report)
        if status is None:
            return None
        sent = getattr(report, _ATTRIBUTE, None)
        if sent is None:
            return cls(cell=cell.labels, status=status, word="error" if status == "failed" else "not measured", seconds=report.duration)
        return cls.model_validate_json(sent).model_copy(update={"status": status, "seconds": report.duration})


def _status(report: pytest.TestReport) -> Status | None:
    if report.skipped and hasattr(report, "wasxfail"):
        return "xfailed"
    return next((status for status in SYMBOLS if status == report.outcome), None)
