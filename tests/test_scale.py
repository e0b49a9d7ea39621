"""Thousands of cells and results: what follows from a few SPECs is asked of each SPEC, not of each cell. Calls are counted, not seconds."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from types import FrameType

import pytest

from gitbench.cli import main
from gitbench.core.spec import parse_spec
from gitbench.identity.case import make_case
from gitbench.run.config import Config, make_config
from gitbench.run.matrix import make_cell, make_cells
from gitbench.store.folder import Store
from results import result

ATTACKS = ["ig", "dlg", "ridge", "ridge(limit=64)", "ridge+ig"]
DEFENSES = ["none", *(f"pruning(rate={rate / 100})" for rate in range(1, 40))]
MODELS = ["lenet", *(f"mlp(hidden=({width},))" for width in range(8, 17))]
HERE = Path(__file__).parents[1]
SPECS = len(ATTACKS) + len(DEFENSES) + len(MODELS) + 2  # and one dataset, and one client
CELLS = len(ATTACKS) * len(DEFENSES) * len(MODELS)


def calls_of(function: Callable[[], object]) -> Counter[str]:
    """How often each function of gitbench, and of what reads syntax, was called."""
    found: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_globals.get("__name__", "").startswith(("gitbench", "pytest_gitbench", "ast", "importlib.metadata")):
            found[frame.f_code.co_name] += 1

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def config_of(**options: object) -> Config:
    return make_config({}, {"attack": ATTACKS, "defense": DEFENSES, "model": MODELS, "cost": False, **options})


def check_collected(calls: Counter[str]) -> None:
    # Each SPEC is read and checked once, and digested once; the first case is stamped as any case is.
    assert calls["parse_spec"] <= 2 * SPECS
    assert calls["checked_spec"] == SPECS
    assert calls["part_digest"] <= 2 * SPECS
    assert calls["source_digest"] <= 30  # of components: a hundred SPECs may name one
    assert calls["digest_of_metrics"] <= 2
    assert calls["make_case"] == 1
    assert calls["case_id"] == 0
    assert calls["entry_points"] <= 10 * SPECS


def test_a_matrix_asks_each_spec_once() -> None:
    config = config_of()
    make_cells(config)  # files are parsed by whoever comes first
    calls = calls_of(lambda: make_cells(config))
    check_collected(calls)
    assert calls["parse"] < 100 * SPECS


def test_collecting_asks_each_spec_once(pytester: pytest.Pytester) -> None:
    axes = "".join(f"{kind} = {json.dumps(texts)}\n" for kind, texts in (("attack", ATTACKS), ("defense", DEFENSES), ("model", MODELS)))
    pytester.makepyprojecttoml(f"[tool.gitbench]\n{axes}")
    calls = calls_of(lambda: pytester.inline_run("--gitbench", "--collect-only", "-q"))
    check_collected(calls)


@pytest.mark.parametrize("seeds", [1, 3])
def test_cases_are_those_that_are_made_one_by_one(seeds: int) -> None:
    options = {"client": ["fedsgd", "fedavg(steps=2)"], "batch_size": [1, 4], "rounds": [1, 2], "seeds": seeds, "known_leaks": ["*=0.02)*"]}
    config = config_of(attack=ATTACKS[3:], defense=DEFENSES[:3], model=MODELS[:2], **options)
    cells = make_cells(config)
    axes = itertools.product(
        config.dataset,
        config.model,
        config.client,
        config.batch_size,
        config.rounds,
        sorted(config.defense, key="none".__ne__),
        config.attack,
    )
    for cell, (dataset, model, client, size, rounds, defense, attack) in zip(cells, axes, strict=True):
        given = {"dataset": dataset, "model": model, "defense": defense, "attack": attack, "client": client}
        cases = [
            make_case(
                **{kind: parse_spec(kind, text) for kind, text in given.items()},
                threat="server", profile="quick", victims=config.victims, batch_size=size, rounds=rounds, seed=seed,
            )
            for seed in range(seeds)
        ]  # fmt: skip
        assert list(cell.cases) == cases
        assert [case.case_id for case in cell.cases] == [case.case_id for case in cases]
        assert list(cell.cases[0].code) == list(cases[0].code)  # in the same order: it is written down
        assert cell.labels == cases[0].labels
        assert cell.name == cases[0].cell
        assert cell.known_leak == (defense == "pruning(rate=0.02)")
        alone = make_cell(config, **given, batch_size=size, rounds=rounds)
        assert (list(alone.cases), alone.labels, alone.known_leak) == (cases, cell.labels, cell.known_leak)


def test_cases_are_a_sequence() -> None:
    cell = make_cells(config_of(attack=["ridge"], defense=["none"], model=["mlp"], seeds=3))[0]
    assert len(cell.cases) == 3
    assert [case.seed for case in cell.cases] == [0, 1, 2]
    assert cell.cases[-1].seed == 2
    assert [case.seed for case in cell.cases[1:]] == [1, 2]
    with pytest.raises(IndexError):
        cell.cases[3]


def test_a_leaderboard_judges_each_cell_once(tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    (store.root / "cases").mkdir(parents=True)
    random = Random(0)
    attacks, defenses = [f"ridge(limit={limit})" for limit in range(1, 9)], DEFENSES[:30]
    for defense, attack in itertools.product(defenses, attacks):
        content = result([random.gauss(9, 1) for _ in range(4)], defense=defense, attack=attack).to_json()
        (store.root / "cases" / f"{defense}-{attack}.json").write_text(content)
    cells = len(attacks) * len(defenses)
    calls = calls_of(lambda: main(["leaderboard", str(store.root), "--out", str(tmp_path / "boards")]))
    assert len(list((tmp_path / "boards").glob("*.md"))) == 1
    assert calls["read_result"] == calls["judge_results"] == calls["_identity"] == cells
    assert calls["_schema_of"] == 0  # a valid result is read once
    assert calls["interval"] <= cells + 3 * len(defenses) + 5 * len(attacks)
    assert calls["exposures"] <= 2 * cells
    assert calls["part_digest"] < 20
    assert calls["parse_spec"] <= 5 * (len(defenses) + len(attacks))
    # What asks the whole table for one row would be called by each cell.
    assert calls["measured_here"] <= 10 * len(defenses)


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.collection", "--cells", "100"], cwd=HERE, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [line.partition("  ")[0] for line in done.stdout.splitlines()] == [
        "collecting 100 cells",
        "leaderboards of 100 results",
        "a run whose cells are all stored",
    ]
