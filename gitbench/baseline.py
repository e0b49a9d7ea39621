"""Did leakage get worse than in an earlier run? Compared on the same victims."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from gitbench.case import Case
from gitbench.errors import ConfigError, StoreError
from gitbench.metric import METRICS
from gitbench.result import Result
from gitbench.statistics import interval
from gitbench.store import read_result

Baseline = dict[str, Result]


def load_baseline(path: Path) -> Baseline:
    """Read a results folder, or one JSON file that holds a result or a list of them.

    Raises:
        ConfigError: nothing there, or nothing that can be read as results.
    """
    if not path.exists():
        raise ConfigError(f"Expected a baseline at {path}: a results folder or a JSON file. Nothing is there.")
    found: Baseline = {}
    try:
        if path.is_dir():
            results = [read_result(file) for file in sorted((path / "cases").glob("*.json"))]
        else:
            content = json.loads(path.read_bytes())
            results = [Result.model_validate(item) for item in (content if isinstance(content, list) else [content])]
    except (ValidationError, ValueError, StoreError, OSError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"The baseline {path} cannot be read as gitbench results: {reason}. Measure it again.") from None
    for result in sorted(results, key=lambda result: result.finished_at):  # the latest counts
        if result.status == "done":
            found[_key(result.case)] = result
    if not found:
        raise ConfigError(f"The baseline {path} holds no finished result. Expected a results folder of an earlier run.")
    return found


def regression(results: Sequence[Result], baseline: Baseline, *, metrics: Sequence[str], tolerance: float) -> str | None:
    """Say how a cell leaks more than its baseline, or None.

    A cell regressed when the mean paired difference is past ``tolerance`` (in the metric's unit) *and*
    its whole interval is on the leaking side of zero.

    Raises:
        KeyError: the baseline lacks the cell.
    """
    earlier = [baseline[_key(result.case)] for result in results]
    for metric in metrics:
        sign = 1 if METRICS[metric].higher_leaks else -1
        groups: list[list[float | None]] = []
        for now, then in zip(results, earlier, strict=True):
            if metric not in now.metrics or metric not in then.metrics:
                return f"{metric} is missing on one side of the comparison with the baseline"
            pairs = zip(now.metrics[metric].values, then.metrics[metric].values, strict=True)
            groups.append([None if a is None or b is None else sign * (a - b) for a, b in pairs])
        change = interval(groups)
        if change.mean is None or change.low is None:
            return f"{metric} cannot be compared with the baseline: a value is missing"
        if change.mean > tolerance and change.low > 0:
            return f"{metric} leaks {change.mean:.2f} more than the baseline (95 % from {change.low:.2f}, tolerance {tolerance:g})"
    return None


def _key(case: Case) -> str:
    """A case without the code that measured it: what the baseline and this run must share."""
    return json.dumps(case.model_dump(mode="json", exclude={"code"}), sort_keys=True)
