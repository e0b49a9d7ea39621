"""Hostile results, baselines and leaderboards: read, shown harmlessly or refused."""

from __future__ import annotations

import contextlib
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gitbench.cli import main
from gitbench.core.errors import ConfigError, StoreError
from gitbench.publish import leaderboard
from gitbench.publish.baseline import load_baseline
from gitbench.publish.leaderboard import Table
from gitbench.publish.table import tables
from gitbench.store.folder import Store, read_result
from gitbench.store.result import Result
from hostile import NASTY, harmless, quickly, values
from results import GATE, SETTING, every_attack, result

VALID = json.loads(result().to_json())
paths = st.sampled_from(
    [("schema",), ("case",), ("case", "defense"), ("case", "victims"), ("case_id",), ("status",), ("verdict_reason",), ("gate",), ("metrics",),
     ("metrics", "psnr_gain"), ("metrics", "psnr_gain", "values"), ("baselines",), ("flags",), ("cost",), ("environment", "python"), ("settings",),
     ("finished_at",), ("timeout",), ("new",)]
)  # fmt: skip


def changed(path: tuple[str, ...], value: object) -> dict[str, object]:
    found = json.loads(json.dumps(VALID))
    where = found
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("hostile"))


@settings(max_examples=300)
@given(path=paths, value=values)
@example(path=("gate",), value={"nope": 1.0})
@example(path=("gate",), value={})
@example(path=("finished_at",), value="yesterday")
@example(path=("finished_at",), value="0001-01-01T00:00:00+00:00")
@example(path=("finished_at",), value="2025-01-01")
@example(path=("metrics",), value={"psnr_gain": {"mean": 1e308, "low": -1e308, "high": 1e308, "values": [1e308, 1e308, -1e308, 1e308]}})
@example(path=("settings",), value={"model.mode": NASTY})
@example(path=("environment", "python"), value=NASTY)
@example(path=("schema",), value=10**4000)
@pytest.mark.filterwarnings("ignore:.*was damaged:UserWarning", "ignore:.*:RuntimeWarning")
def test_any_result_is_read_shown_or_refused(
    store: Store, tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: object
) -> None:
    try:
        text = json.dumps(changed(path, value), default=str).encode()
    except ValueError:
        return
    file = store.case_path(result().case_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)
    with contextlib.suppress(StoreError):
        for found in store.results():
            assert harmless(found.verdict_reason)
        for table in tables(list(store.results())):
            assert harmless(leaderboard.render(table))
    with contextlib.suppress(ConfigError):
        load_baseline(store.root)
    arguments = ["leaderboard", str(store.root), "--out", str(tmp_path_factory.getbasetemp() / "boards")]
    assert main(arguments) in (0, 2)
    assert main(["report", str(store.root), "--json"]) in (0, 2)
    with contextlib.suppress(StoreError):
        store.load(result().case_id)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("gate",), {"nope": 1.0}, "the gate names the unknown metric 'nope'"),
        (("finished_at",), "yesterday", "finished_at 'yesterday' is no time with a zone"),
        (("finished_at",), "2025-01-01T00:00:00", "is no time with a zone"),
        (("case", "victims"), 5, "does not belong to its case"),
        (("metrics", "psnr_gain", "values"), [1.0], "psnr_gain has 1 values for 4 victims"),
    ],
)
def test_what_does_not_fit_together_is_named(path: tuple[str, ...], value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Result.model_validate(changed(path, value))


def test_messages_of_users_code_cannot_drive_the_terminal() -> None:
    found = result(error=f"my error\n{NASTY}")
    assert harmless(found.error)
    assert found.error.startswith("my error\n\\x1b[31m")
    assert Result.model_validate_json(found.to_json()) == found


def test_a_result_that_is_no_file_or_too_large_is_refused_quickly(store: Store) -> None:
    pipe = store.case_path("f" * 20)
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    with quickly(), pytest.raises(StoreError, match=r"Cannot read .*json: expected a file, found something else\. Move it away"):
        store.load("f" * 20)
    pipe.unlink()
    with pipe.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no disk
    with quickly(), pytest.raises(StoreError, match=r"Cannot read .*: it has 1099511627776 bytes, expected at most"):
        read_result(pipe)
    pipe.unlink()


@pytest.mark.parametrize("field", ["dataset", "model", "defense", "attack", "environment", "mode", "options"])
def test_a_leaderboard_survives_any_name(field: str) -> None:
    plain = {"dataset": "photos", "model": "lenet", "defense": "pruning", "attack": "ig"}
    name = {**plain, **({field: NASTY} if field in plain else {})}
    one = result()
    if field == "environment":
        spoilt = dict.fromkeys(("gitbench", "torch", "torchvision", "python", "platform", "device"), NASTY)
        one = one.model_copy(update={"environment": one.environment.model_copy(update=spoilt)})
    elif field in ("mode", "options"):
        one = one.model_copy(update={"settings": {"model.mode" if field == "mode" else "iterations": NASTY}})
    cells = {("none", name["attack"]): [one], (name["defense"], name["attack"]): [one]}
    text = leaderboard.render(Table(name["dataset"], name["model"], cells, conditions=SETTING, gate=GATE))
    assert harmless(text)
    assert len({len(row) for row in every_attack(text)[:4]}) == 1
    plain_text = re.sub(r"<!-- gitbench-cells: .*? -->|`[^`\n]*`|\\.", "", text)
    assert "<img" not in plain_text
    assert "](y)" not in plain_text
    assert "| a | b |" not in plain_text


def test_the_command_line_prints_no_controls_of_an_old_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).save(result())
    out = tmp_path / "boards"
    assert main(["leaderboard", str(tmp_path), "--out", str(out)]) == 0
    (board,) = out.glob("*.md")
    board.write_text("<!-- gitbench-cells: " + json.dumps([f"\x1b[31mevil{chr(0x202E)}/ig"]) + " -->")
    capsys.readouterr()
    assert main(["leaderboard", str(tmp_path), "--out", str(out)]) == 0
    shown_there = capsys.readouterr().out
    assert r"\x1b[31mevil\u202e/ig" in shown_there
    assert harmless(shown_there)
    board.write_text("<!-- gitbench-cells: " + "[" * 100_000 + " -->")
    assert leaderboard.written_cells(board) == set()
    assert main(["leaderboard", f"no\x1b[31m\n{chr(0x202E)}"]) == 2
    assert harmless(capsys.readouterr().err)
