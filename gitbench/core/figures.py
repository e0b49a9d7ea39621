"""How the values of a metric are written: the one place that knows digits, signs and units.

It lies outside of what measures, so that writing a figure differently measures nothing again.
"""

from __future__ import annotations

from gitbench.core.metric import Metric


def figure(
    metric: Metric,
    value: float,
    low: float | None = None,
    high: float | None = None,
    *,
    sign: str = "",
    unit: bool = True,
    brief: bool = False,
) -> str:
    """``12.40 dB [10.20, 14.80]``: two digits where there is a unit, otherwise four; one less where it is ``brief``.

    Args:
        metric: whose value.
        value: usually a mean.
        low: lower end of its interval; without both ends none is shown.
        high: upper end.
        sign: ``+`` writes the plus, as changes have it; :func:`plus` is what tables have.
        unit: whether to write it.
        brief: for lines that people skim.
    """
    digits = (2 if metric.unit else 4) - brief
    bounds = "" if low is None or high is None else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:{sign}.{digits}f}{_unit(metric) if unit else ''}{bounds}"


def limit(metric: Metric, value: float, *, digits: int = 6) -> str:
    """``3 dB``: a threshold or tolerance, without zeros that nobody typed."""
    return f"{value:.{digits}g}{_unit(metric)}"


def plus(metric: Metric) -> str:
    """The sign of a metric's values in tables: ``+`` where they may be negative."""
    return "+" if metric.low is None or metric.low < 0 else ""


def arrow(metric: Metric) -> str:
    """The direction of a *successful attack*."""
    return "↑" if metric.higher_leaks else "↓"


def _unit(metric: Metric) -> str:
    return f" {metric.unit}" if metric.unit else ""
