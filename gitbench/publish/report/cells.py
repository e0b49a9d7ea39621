"""From a table of results to the cells of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from gitbench.core.metric import Metric
from gitbench.core.text import printable
from gitbench.identity.case import UNDEFENDED
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.statistics import Interval, wilson
from gitbench.judge.verdict import pooled
from gitbench.publish.report.data import Bounds, CellMeasured, MetricShown, SeedMeasured, ShareFound, Standing
from gitbench.publish.report.standing import NEXT
from gitbench.publish.table import Table
from gitbench.store.result import Measure, Result

Shown = Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]
"""From the id of a case to the names of its pictures: truths and reconstructions."""

NOT_MEASURED = "not measured in this run"
"""What stands in :attr:`Table.errors` of a cell that a run was asked for and did not get to."""
IDENTIFICATION = "identification"
_WORDS: dict[str, Standing] = {
    "holds": "holds",
    "leaks": "leaks",
    "undecided": "undecided",
    "no success": "no success",
    "no control": "no control",
    "timed out": "timed out",
}


def cells_of(table: Table, *, setting: int, first: int, shown: Shown) -> list[CellMeasured]:
    """Every cell of a table, those without a result too.

    Args:
        table: what was measured.
        setting: its position in the report.
        first: the number of its first cell.
        shown: the pictures.
    """
    found = []
    pairs = [(defense, attack) for defense in table.defenses for attack in table.attacks]
    for number, (defense, attack) in enumerate(pairs, first):
        results = table.results.get((defense, attack))
        named = {"id": f"c{number}", "setting": setting, "defense": shown_name(defense), "attack": shown_name(attack)}
        if results:
            found.append(_measured(table, (defense, attack), results, named, shown))
        else:
            standing, reason = _missing(table, defense, attack)
            found.append(CellMeasured.model_validate({**named, "standing": standing, "reason": reason, "next": NEXT[standing]}))
    return found


def standing_of(table: Table, defense: str, attack: str, *, word: str | None = None) -> Standing:
    """How one cell stands, whether it was measured or not. ``word`` is its verdict's, where it is known."""
    results = table.results.get((defense, attack))
    if not results:
        return _missing(table, defense, attack)[0]
    if (defense, attack) in table.errors or any(result.status == "error" for result in results):
        return "error"
    return _WORDS[word or table.verdict(defense, attack).word]


def shown_name(text: str) -> str:
    """A SPEC as a table has it, fit to be shown: on one line, nothing invisible."""
    return printable(text, keep="")


def metric_shown(metric: Metric, threshold: float | None = None) -> MetricShown:
    return MetricShown(
        name=metric.name,
        unit=metric.unit,
        higher_leaks=metric.higher_leaks,
        digits=2 if metric.unit else 4,
        summary=metric.summary,
        threshold=threshold,
    )


def bounds(found: Interval | Measure) -> Bounds:
    return Bounds(mean=found.mean, low=found.low, high=found.high)


def identified(values: Iterable[float | None]) -> ShareFound | None:
    """The share of victims that are recognised; None where any was not tested.

    The images of one victim hang together: the interval is of as many independent trials as there are victims, rounded to the wider side.
    """
    known = [value for value in values if value is not None]
    if not known or not all(0 <= value <= 1 for value in known):  # no share: a file from elsewhere
        return None
    count, victims = sum(known), len(known)
    low = wilson(math.floor(count + 1e-9), victims)[0]
    high = wilson(math.ceil(count - 1e-9), victims)[1]
    return ShareFound(share=count / victims, low=low, high=high, victims=victims)


def _missing(table: Table, defense: str, attack: str) -> tuple[Standing, str]:
    if (defense, attack) in table.not_applicable:
        return "n/a", table.not_applicable[defense, attack]
    if (defense, attack) in table.errors:
        message = table.errors[defense, attack]
        return ("not tested" if message == NOT_MEASURED else "error"), message
    return "not tested", "not tested: nothing was measured here"


def _measured(table: Table, key: tuple[str, str], results: Sequence[Result], named: Mapping[str, object], shown: Shown) -> CellMeasured:
    judgement, metric = table.verdict(*key), table.metric
    standing = standing_of(table, *key, word=judgement.word)
    past = table.past(*key).get(metric.name)
    tested = [value for result in results if (one := result.metrics.get(IDENTIFICATION)) for value in one.values]
    first, control = results[0], key[0] == UNDEFENDED
    return CellMeasured.model_validate(
        {
            **named,
            "standing": standing,
            "reason": judgement.reason,
            "next": _next_of_control(standing) if control else NEXT[standing],
            "value": bounds(table.mean(*key)),
            "past": past and ShareFound(share=past.share, low=past.low, high=past.high, victims=past.victims),
            "identified": identified(tested),
            "certified": table.certified(*key),
            "metrics": _metrics(table, results),
            "flags": sorted({flag for result in results for flag in result.flags}),
            "seeds": [_seed(result, metric.name, shown) for result in results],
            "options": first.settings,
            "code": {kind: digest for kind, digest in first.case.code.items() if kind in ("defense", "attack")},
            "fit_seconds": sum(result.cost.fit_seconds for result in results),
            "attack_seconds": sum(result.cost.attack_seconds for result in results),
            "by_others": table.by_others(*key),
            "finished_at": max(result.finished_at for result in results),
        }
    )


def _next_of_control(standing: Standing) -> str:
    """An undefended cell asks for nothing where it leaks: it shows that the attack works."""
    return "" if standing == "leaks" else NEXT["no control" if standing in ("holds", "undecided") else standing]


def _metrics(table: Table, results: Sequence[Result]) -> dict[str, Bounds]:
    names = [name for name in known_metrics() if any(name in result.metrics for result in results)]
    if len(results) == 1:  # as it was stored: many cells are told quickly
        return {name: bounds(results[0].metrics[name]) for name in names}
    return {name: bounds(found) for name, found in pooled(results, dict.fromkeys(names), estimate=table.estimate).items()}


def _seed(result: Result, metric: str, shown: Shown) -> SeedMeasured:
    told, tested = result.metrics.get(metric), result.metrics.get(IDENTIFICATION)
    truth, found = shown.get(result.case_id, ((), ()))
    return SeedMeasured(
        seed=result.case.seed,
        case_id=result.case_id,
        values=told.values if told else (),
        identified=tested.values if tested else None,
        certified=result.certified,
        truth=truth,
        found=found,
    )
