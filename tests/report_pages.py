"""Made-up results for reports, with pictures, and reports that are larger than anybody would measure for a test."""

from __future__ import annotations

from pathlib import Path

import torch

from gitbench.publish.report.build import Report, build_report
from gitbench.publish.report.data import ReportData
from gitbench.publish.report.page import plotly, render
from gitbench.publish.table import tables
from gitbench.store.folder import Store
from gitbench.store.pictures import picture
from gitbench.store.result import Result
from results import LEAKING, SAFE, make_training, measure, result

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>{{ 7 * 7 }}&quot;\u202e"


def cell(values: tuple[float, ...] = LEAKING, **case: object) -> Result:
    """With what identifies the victims, and the setting of a training."""
    found = result(values, **case)
    metrics = {**found.metrics, "identification": measure([float(value > 5) for value in values])}
    return found.model_copy(update={"metrics": metrics, "certified": tuple(value > 9 for value in values), "flags": ("few-victims",)})


def usual_results() -> list[Result]:
    """Two defenses against two attacks, at two batch sizes; one leaks, one holds."""
    found = []
    for batch_size in (1, 4):
        for attack in ("ridge", "ig(iterations=100)"):
            found.append(cell(attack=attack, batch_size=batch_size))
            found.append(cell(SAFE, attack=attack, batch_size=batch_size, defense="clipping(max_norm=1.0)"))
            leaks = cell((6.0, 7.0, 8.0, 7.5), attack=attack, batch_size=batch_size, defense="pruning(rate=0.5)")
            found.append(leaks.model_copy(update={"training": make_training()}))
    return found


def kept(store: Store, results: list[Result]) -> Store:
    """A folder with these results and a picture of each."""
    random = torch.Generator().manual_seed(0)
    for one in results:
        store.save(one)
        truth = torch.rand(one.case.victims, 1, 3, 8, 8, generator=random)
        store.save_picture(one.case_id, picture(truth, truth * 0.5))
    return store


def report_of(folder: Path, results: list[Result], **options: object) -> Report:
    store = kept(Store(folder), results)
    return build_report(tables(results), store=store, **options)


def enlarged(data: ReportData, *, defenses: int, attacks: int) -> ReportData:
    """The same with many more defenses and attacks in its first setting: statistics of so many cells would take a minute."""
    setting, sample = data.settings[0], [one for one in data.cells if one.setting == 0]
    names = ["none", *(f"pruning(rate={number / 1000})" for number in range(1, defenses))]
    spells = [f"ig(iterations={number})" for number in range(1, attacks + 1)]
    cells = [
        sample[(row + column) % len(sample)].model_copy(
            update={
                "id": f"c{row * attacks + column}",
                "setting": 0,
                "defense": name,
                "attack": spell,
                "value": _moved(sample[0].value, row),
            }
        )
        for row, name in enumerate(names)
        for column, spell in enumerate(spells)
    ]
    kinds = [row for row in setting.defenses if row.defense != "none"]
    rows = tuple(
        kinds[number % len(kinds)].model_copy(update={"defense": name, "strongest": f"c{number * attacks}"})
        for number, name in enumerate(names)
    )
    overall = tuple(
        data.defenses[0].model_copy(update={"defense": name, "cell": f"c{number * attacks}"}) for number, name in enumerate(names) if number
    )
    whole = setting.model_copy(update={"defenses": rows, "attacks": tuple(spells)})
    return data.model_copy(update={"cells": tuple(cells), "settings": (whole,), "defenses": overall, "curves": ()})


def _moved(value, by: int):
    return value.model_copy(update={"mean": value.mean + by / 10, "low": value.low + by / 10, "high": value.high + by / 10})


def page_of(report: Report) -> str:
    """The page but for the charting library."""
    return render(report.data, report.pictures).replace(plotly(), "")
