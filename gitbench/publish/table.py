"""The table of a leaderboard: results sorted into rows and columns, and what follows from them. :mod:`leaderboard` writes it down."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from gitbench.core.metric import Metric
from gitbench.identity.case import Case, Setting, several_rounds
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.known_modalities import gate_of
from gitbench.judge.sequential import FIRST, at_look, looks
from gitbench.judge.statistics import Interval, interval
from gitbench.judge.verdict import Estimate, Judgement, exposures, judge_results, pooled
from gitbench.judge.worst_case import AUTO, Worst, is_auto, is_submission, worst_case
from gitbench.publish.entries import Entry
from gitbench.run.config import Config
from gitbench.run.profiles import PROFILES
from gitbench.store.result import Exposure, Result


@dataclass(frozen=True)
class Table:
    """The results behind one leaderboard.

    Args:
        dataset: label of the dataset.
        model: label of the model.
        results: (defense, attack) to the results of all seeds.
        conditions: threat model, profile, client, victims, batch size, rounds, seeds.
        gate: metric name to threshold.
        not_applicable: (defense, attack) to the reason why it was not run.
        columns: defense to heading and text of the columns that plugins add.
        errors: (defense, attack) to what was raised, where no result of ``results`` says so.
        others: id of each case that others measured, and the parts of its code that are not as here.
    """

    dataset: str
    model: str
    results: Mapping[tuple[str, str], Sequence[Result]]
    conditions: Mapping[str, object]
    gate: Mapping[str, float]
    not_applicable: Mapping[tuple[str, str], str] = field(default_factory=dict)
    columns: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    errors: Mapping[tuple[str, str], str] = field(default_factory=dict)
    others: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @functools.cached_property
    def metric(self) -> Metric:
        """The first that is gated: the one whose values the cells show."""
        return known_metrics()[next(iter(self.gate))]

    @functools.cached_property
    def cells(self) -> tuple[tuple[str, str], ...]:
        """Every (defense, attack) that the table knows of."""
        return tuple(dict.fromkeys((*self.results, *self.not_applicable, *self.errors)))

    @functools.cached_property
    def defenses(self) -> tuple[str, ...]:
        """Its rows."""
        return tuple(dict.fromkeys(defense for defense, _ in self.cells))

    @functools.cached_property
    def attacks(self) -> tuple[str, ...]:
        """Its columns."""
        return tuple(dict.fromkeys(attack for _, attack in self.cells))

    @functools.cached_property
    def auto(self) -> str | None:
        """The attack that stands for ``auto``: the plain one, where there are several kinds."""
        return min(filter(is_auto, self.attacks), key=lambda attack: attack != AUTO, default=None)

    @functools.cached_property
    def estimate(self) -> Estimate:
        """How the intervals of the run were made."""
        profile = str(self.conditions.get("profile"))
        sequential = self.conditions.get("victims") == "auto" and profile in PROFILES
        planned = looks(FIRST, PROFILES[profile].most_victims) if sequential else ()
        return _Estimates(planned)

    def by_others(self, defense: str, attack: str) -> bool:
        """Whether a figure comes from others: measured elsewhere, or reconstructions that were sent in."""
        if attack in self._submissions:
            return True
        return bool(self.others) and any(result.case_id in self.others for result in self.results.get((defense, attack), ()))

    def attacks_on(self, defense: str) -> Sequence[str]:
        """The attacks of a row, whether they were measured or not."""
        return self._attacks_on.get(defense, ())

    def row(self, defense: str) -> Mapping[str, Sequence[Result]]:
        """Attack to results of one defense."""
        return self._rows.get(defense, {})

    def mean(self, defense: str, attack: str) -> Interval:
        """The mean of a cell that was measured, over victims and seeds, of the metric that is shown."""
        if (defense, attack) not in self._means:
            metric = self.metric.name
            self._means[defense, attack] = pooled(self.results[defense, attack], (metric,), estimate=self.estimate)[metric]
        return self._means[defense, attack]

    def certified(self, defense: str, attack: str) -> float | None:
        """The share of a cell's victims whose reconstruction is certified; None where no attacker could tell, or nobody asked."""
        told = [one for result in self.results.get((defense, attack), ()) for one in result.certified or ()]
        return sum(told) / len(told) if told else None

    @functools.cached_property
    def _rows(self) -> Mapping[str, Mapping[str, Sequence[Result]]]:
        rows: dict[str, dict[str, Sequence[Result]]] = {}
        for (defense, attack), results in self.results.items():
            rows.setdefault(defense, {})[attack] = results
        return rows

    @functools.cached_property
    def _attacks_on(self) -> Mapping[str, Sequence[str]]:
        rows: dict[str, list[str]] = {}
        for defense, attack in self.cells:
            rows.setdefault(defense, []).append(attack)
        return rows

    @functools.cached_property
    def _submissions(self) -> frozenset[str]:
        return frozenset(filter(is_submission, self.attacks))

    @functools.cached_property
    def _means(self) -> dict[tuple[str, str], Interval]:
        """Those that were asked for."""
        return {}

    @functools.cached_property
    def _verdicts(self) -> dict[tuple[str, str], Judgement]:
        """Those that were asked for: several sections tell the same."""
        return {}

    @functools.cached_property
    def _past(self) -> dict[tuple[str, str], Mapping[str, Exposure]]:
        """Those that were asked for."""
        return {}

    @functools.cached_property
    def _known(self) -> frozenset[tuple[str, str]]:
        return frozenset(self.cells)

    @functools.cached_property
    def _ours(self) -> frozenset[str]:
        """The attacks that were run here, on any defense."""
        return frozenset(attack for row, attack in self.cells if not self.by_others(row, attack))

    def verdict(self, defense: str, attack: str) -> Judgement:
        """The verdict of a cell that was measured."""
        if (defense, attack) not in self._verdicts:
            control = None if defense == "none" else self.results.get(("none", attack), [])
            found = judge_results(
                self.results[defense, attack], control, gate=self.gate, estimate=self.estimate, past=self.past(defense, attack)
            )
            self._verdicts[defense, attack] = found
        return self._verdicts[defense, attack]

    def past(self, defense: str, attack: str) -> Mapping[str, Exposure]:
        """The victims past the thresholds of a cell that was measured, by metric."""
        if (defense, attack) not in self._past:
            self._past[defense, attack] = exposures(self.results[defense, attack], self.gate)
        return self._past[defense, attack]

    @functools.cached_property
    def worsts(self) -> Mapping[str, Worst]:
        """The worst case of each row."""
        return {defense: self.worst(defense) for defense in self.defenses}

    def worst(self, defense: str) -> Worst:
        """The worst case of a row, over all attacks that the threat model lets run."""
        # What others sent in for another defense is nothing that this row lacks.
        wanted = [attack for attack in self.attacks if (defense, attack) in self._known or attack in self._ours]
        return worst_case(
            {attack: self.row(defense)[attack] for attack in wanted if attack in self.row(defense)},
            metric=self.metric.name,
            attacks=[attack for attack in wanted if (defense, attack) not in self.not_applicable],
            auto=self.auto,
            others=[attack for attack in wanted if self.by_others(defense, attack)],
            errors=[attack for row, attack in self.errors if row == defense],
            estimate=self.estimate,
        )


class _Estimates:
    """Remembered: a control is asked for by every cell of its column, and a cell by its row.

    Args:
        planned: the looks of the run; none where the number of victims was fixed.
    """

    def __init__(self, planned: Sequence[int]) -> None:
        self._planned = planned
        self._known: dict[tuple[tuple[float | None, ...], ...], Interval] = {}

    def __call__(self, groups: Sequence[Sequence[float | None]]) -> Interval:
        key = tuple(map(tuple, groups))
        if key not in self._known:
            self._known[key] = at_look(key, planned=self._planned) if self._planned else interval(key)
        return self._known[key]


def tables(results: Sequence[Result], others: Sequence[Entry] = ()) -> list[Table]:
    """Sort stored results into tables; of several measurements of one cell the latest counts.

    Args:
        results: measured here.
        others: measured elsewhere: they fill cells of which nothing was measured here.
    """
    groups: dict[str, dict[tuple[str, str], dict[int, Result]]] = {}
    broken: dict[str, dict[tuple[str, str], dict[int, str]]] = {}
    for result in sorted(results, key=lambda result: result.finished_at):
        cell, seed = (result.case.defense, result.case.attack), result.case.seed
        failed = broken.setdefault(_shared(result), {}).setdefault(cell, {})
        if result.status != "done":
            failed[seed] = result.error or "error"
            continue
        groups.setdefault(_shared(result), {}).setdefault(cell, {})[seed] = result
        failed.pop(seed, None)
    ours = {key: tuple(cells) for key, cells in groups.items()}
    differs: dict[str, tuple[str, ...]] = {}
    for entry in sorted(others, key=lambda entry: entry.result.finished_at):
        case = entry.result.case
        key, cell = _shared(entry.result), (case.defense, case.attack)
        if cell not in ours.get(key, ()):
            groups.setdefault(key, {}).setdefault(cell, {})[case.seed] = entry.result
            differs[case.case_id] = entry.differs
    found = []
    for key, cells in sorted(groups.items()):
        case = next(result.case for by_seed in cells.values() for result in by_seed.values())
        errors = {cell: next(iter(by_seed.values())) for cell, by_seed in broken.get(key, {}).items() if by_seed}
        mine = [cells[cell] for cell in ours.get(key, cells)]
        gates = [result.gate for by_seed in mine for result in by_seed.values() if result.gate]
        found.append(
            Table(
                dataset=case.dataset,
                model=case.model,
                results={cell: [by_seed[seed] for seed in sorted(by_seed)] for cell, by_seed in cells.items()},
                conditions={**_conditions(case), "seeds": max(len(by_seed) for by_seed in mine)},
                gate=gates[0] if gates else gate_of(mine[0][min(mine[0])].metrics),
                errors=errors,
                others=differs,
            )
        )
    return found


def _conditions(case: Case) -> dict[str, object]:
    """What the cells of a table have in common beside dataset and model."""
    shared = {"threat": case.threat, "profile": case.profile, "client": case.client, "victims": case.victims}
    return {**shared, "batch_size": case.batch_size, **several_rounds(case.rounds)}


def _shared(result: Result) -> str:
    case = result.case
    return json.dumps((case.dataset, case.model, case.client, case.threat, case.profile, case.victims, case.batch_size, case.rounds))


def table_of(
    config: Config,
    setting: Setting,
    results: Mapping[tuple[str, str], Sequence[Result]],
    not_applicable: Mapping[tuple[str, str], str],
    *,
    columns: Mapping[str, Mapping[str, str]],
) -> Table:
    """The table of one setting of a run."""
    return Table(
        setting.dataset,
        setting.model,
        results=results,
        conditions=config.conditions(setting),
        gate=config.threshold,
        not_applicable=not_applicable,
        columns=columns,
    )


def canonical(table: Table, *, not_applicable: Mapping[tuple[str, str], str] | None = None) -> Table:
    """The same table whatever order its cells were measured in, so that a run and a folder of results give the same bytes.

    Args:
        table: of a run, or of stored results.
        not_applicable: cells that were not run, which results cannot tell of; those that have results are dropped.
    """
    broken = {key: next((one.error or "error" for one in found if one.status == "error"), "") for key, found in table.results.items()}
    errors = {**table.errors, **{key: reason for key, reason in broken.items() if reason}}
    done = {key: [one for one in found if one.status != "error"] for key, found in table.results.items()}
    results = {key: found for key, found in done.items() if found}
    tried = {attack for _, attack in (*results, *errors)}
    skipped = {key: reason for key, reason in (not_applicable or {}).items() if key[1] not in tried} | dict(table.not_applicable)

    def place(key: tuple[str, str]) -> tuple[bool, str, bool, str]:
        return key[0] != "none", key[0], key[1] != AUTO, key[1]

    return replace(
        table,
        results={key: results[key] for key in sorted(results, key=place)},
        not_applicable={key: skipped[key] for key in sorted(skipped, key=place)},
        errors={key: errors[key] for key in sorted(errors, key=place)},
    )


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A table whose columns are the keys, in their order."""
    import pandas as pd

    headings = dict.fromkeys(heading for row in rows for heading in row)
    whole = pd.DataFrame([{heading: row.get(heading, "") for heading in headings} for row in rows])
    text: str = whole.to_markdown(index=False, disable_numparse=True)
    return text
