"""From stored results to the report: its data, its pictures, and the files on disk."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gitbench._version import __version__
from gitbench.core.errors import StoreError
from gitbench.identity.case import UNDEFENDED
from gitbench.judge.flags import FLAGS
from gitbench.publish.report.cells import Shown, cells_of
from gitbench.publish.report.curves import curves_of
from gitbench.publish.report.data import CellMeasured, DefenseInSetting, FlagExplained, ReportData, SettingMeasured
from gitbench.publish.report.images import Pictures
from gitbench.publish.report.page import render
from gitbench.publish.report.settings import rows_of, setting_of
from gitbench.publish.report.standing import GRAVITY, overall, verdict_sentence, worst_of
from gitbench.publish.table import Table, tables
from gitbench.store.folder import Store, write_atomic
from gitbench.store.result import Result

PICTURES = 24 * 2**20
"""Bytes of all pictures on a page; what leaks most is shown first."""


@dataclass(frozen=True)
class Report:
    """What is told, and the pictures (PNG in base64) by the names that the data has."""

    data: ReportData
    pictures: dict[str, str]

    def write(self, folder: Path) -> Path:
        """Write ``index.html``.

        Raises:
            StoreError: the folder cannot be written to.
        """
        path = folder / "index.html"
        write_atomic(path, render(self.data, self.pictures).encode())
        return path


def build_report(found: Sequence[Table], *, store: Store, redact: bool | None = None, command: str = "", most: int = PICTURES) -> Report:
    """The report of some tables.

    Args:
        found: what was measured.
        store: where the pictures are.
        redact: whether pictures are left out; None leaves out all but the built-in data's.
        command: that was run, where it is known.
        most: bytes of all pictures.

    Raises:
        StoreError: there is nothing to report.
    """
    found = [table for table in found if any(table.results.values())]
    if not found:
        raise StoreError(
            f"No finished result in {store.root / 'cases'}. Measure some first: pytest --gitbench --gitbench-results {store.root}"
        )
    bare = [setting_of(table, redact=redact) for table in found]
    shown, kept, left_out = _pictures(found, bare, store, most)
    settings: list[SettingMeasured] = []
    cells: list[CellMeasured] = []
    for number, (table, setting) in enumerate(zip(found, bare, strict=True)):
        own = cells_of(table, setting=number, first=len(cells), shown=shown)
        cells += own
        settings.append(setting.model_copy(update={"defenses": rows_of(table, setting, own)}))
    data = _data(settings, cells, command=command)
    return Report(data.model_copy(update={"pictures_left_out": left_out}), kept.by_name)


def report_of_results(results: Path, *, redact: bool | None = None) -> Report:
    """The report of a results folder.

    Raises:
        StoreError: there is no finished result in it.
    """
    store = Store(results)
    return build_report(latest(tables(sorted(store.results(), key=_spelled))), store=store, redact=redact)


def _spelled(result: Result) -> tuple[str | int, ...]:
    """By what a case says, not by its id: a change of our code leaves the order of a report as it was."""
    case = result.case
    setting = (case.dataset, case.model, case.client, case.batch_size, case.rounds, case.threat, case.profile, case.victims)
    return (*setting, case.defense, case.attack, case.seed, result.case_id)


def latest(found: Sequence[Table]) -> list[Table]:
    """Tables without the cells that another one has of more victims: looks on the way to a verdict (``--gitbench-victims auto``)."""
    groups: dict[str, list[Table]] = {}
    for table in sorted(found, key=_victims, reverse=True):
        shared = {key: value for key, value in table.conditions.items() if key not in ("victims", "seeds")}
        groups.setdefault(repr((table.dataset, table.model, shared)), []).append(table)
    left = []
    for largest, *others in groups.values():
        left.append(largest)
        seen = set(largest.results)
        for table in others:
            kept = {key: several for key, several in table.results.items() if key not in seen or key[0] == UNDEFENDED}
            if any(key[0] != UNDEFENDED for key in kept):  # controls alone have nothing to be controls of
                left.append(replace(table, results=kept, errors={key: text for key, text in table.errors.items() if key not in seen}))
            seen |= table.results.keys()
    order = {(table.dataset, table.model, repr(table.conditions)): number for number, table in enumerate(found)}
    return sorted(left, key=lambda table: order[table.dataset, table.model, repr(table.conditions)])


def _victims(table: Table) -> int:
    told = table.conditions.get("victims")
    return told if isinstance(told, int) else 0


def _pictures(found: Sequence[Table], settings: Sequence[SettingMeasured], store: Store, most: int) -> tuple[Shown, Pictures, int]:
    """What leaks most comes first: should the page grow too large, the least telling pictures are missing."""
    waiting = []
    for table, setting in zip(found, settings, strict=True):
        sign, name = table.metric.sign, table.metric.name
        for (defense, attack), several in table.results.items():
            if setting.redacted or table.by_others(defense, attack):  # strangers' files are not opened
                continue
            for result in several:
                measure = result.metrics.get(name)
                leak = float("-inf") if measure is None or measure.mean is None else sign * measure.mean
                waiting.append((defense == UNDEFENDED, -leak, result))
    shown: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    kept, left_out = Pictures(most=most), 0
    for _, _, result in sorted(waiting, key=lambda one: one[:2]):
        strip = store.picture_path(result.case_id)
        if kept.full:
            left_out += strip.is_file()
            continue
        truth, reconstruction = kept.add(strip, victims=result.case.victims)
        if truth:
            shown[result.case_id] = truth, reconstruction
    return shown, kept, left_out


def _data(settings: Sequence[SettingMeasured], cells: Sequence[CellMeasured], *, command: str) -> ReportData:
    rows: dict[str, list[tuple[SettingMeasured, DefenseInSetting]]] = {}
    for setting in settings:
        for row in setting.defenses:
            rows.setdefault(row.defense, []).append((setting, row))
    measured: dict[str, list[tuple[SettingMeasured, CellMeasured]]] = {}
    for cell in cells:
        measured.setdefault(cell.defense, []).append((settings[cell.setting], cell))
    defenses = [overall(name, rows[name], measured[name]) for name in rows if name != UNDEFENDED]
    defenses.sort(key=lambda one: GRAVITY.index(one.standing))
    counts = Counter(flag for cell in cells for flag in cell.flags)
    return ReportData(
        made_by=f"gitbench {__version__}",
        made_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        sentence=verdict_sentence(defenses),
        standing=worst_of([one.standing for one in defenses]),
        command=command,
        defenses=tuple(defenses),
        settings=tuple(settings),
        cells=tuple(cells),
        curves=curves_of(settings, cells),
        flags=tuple(_flag(name, count) for name, count in sorted(counts.items())),
    )


def _flag(name: str, cells: int) -> FlagExplained:
    if name not in FLAGS:  # a metric that could not be measured explains itself
        return FlagExplained(name=name, cells=cells)
    known = FLAGS[name]
    return FlagExplained(name=name, cells=cells, raised=known.raised, why=known.why, what_to_do=known.what_to_do, blocks=known.blocks)
