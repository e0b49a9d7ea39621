"""Results on disk, leaderboards and baselines: whatever is on the disk, nothing is lost in silence."""

from __future__ import annotations

import json
import math
import os
import re
import stat
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gitbench import leaderboard
from gitbench.baseline import Cells, cells_of, key_of, load_baseline
from gitbench.bench import case_of
from gitbench.comparison import compare_cell
from gitbench.errors import ConfigError, GitbenchError, StoreError
from gitbench.leaderboard import Table
from gitbench.result import SCHEMA, Baselines, Cost, Environment, Measure, Result
from gitbench.statistics import interval
from gitbench.store import Store, read_result, write_atomic

GATE = {"psnr_gain": 3.0}
LEAKING, SAFE = (8.0, 9.0, 10.0, 9.0), (0.0, 0.5, 1.0, 0.5)
SETTING: dict[str, object] = {"threat": "server", "profile": "quick", "victims": 4, "batch_size": 1, "seeds": 1}
# Cases are hashed from sources: made once, they are copied for every test.
CASE = case_of(
    attack="ig", defense="none", model="lenet", dataset="photos", threat="server", profile="quick", victims=4, batch_size=1, seed=0
)


def measure(values: Sequence[float | None]) -> Measure:
    bounds = interval([values])
    return Measure(mean=bounds.mean, low=bounds.low, high=bounds.high, values=tuple(values))


def result(
    values: Sequence[float | None] = LEAKING,
    *,
    metric: str = "psnr_gain",
    at: str = "2025-01-01T00:00:00+00:00",
    error: str | None = None,
    **case: object,
) -> Result:
    """A result with made-up numbers, as the chain would write it."""
    found = CASE.model_copy(update={"victims": len(values), **case})
    return Result(
        case=found,
        case_id=found.case_id,
        status="error" if error else "done",
        error=error,
        verdict="inconclusive" if error else "leaks",
        verdict_reason="made up",
        gate=GATE,
        metrics={} if error else {metric: measure(values)},
        baselines=Baselines(blind={"psnr": 12.0, "mse": 0.06}, control={metric: 9.0}),
        flags=("few-victims",),
        cost=Cost(fit_seconds=1.5, attack_seconds=2.5, peak_memory_mb=None),
        environment=Environment(
            gitbench="0.1", torch="2.6", torchvision="0.21", python="3.11", platform="Linux x86_64", device="cpu", threads=2
        ),
        settings={"iterations": "100"},
        finished_at=at,
    )


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def stored(store: Store, content: bytes | str, case_id: str = CASE.case_id) -> Path:
    path = store.case_path(case_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def changed(found: Result, **changes: object) -> str:
    return json.dumps({**json.loads(found.to_json()), **changes})


# The store


@pytest.mark.parametrize(
    "found", [result(), result((1.0, None, 2.0)), result(error="boom"), result((1.0,)), result(seed=3, defense="a | b('|é\n')")]
)
def test_what_is_saved_is_loaded(store: Store, found: Result) -> None:
    assert store.load(found.case_id) is None
    store.save(found)
    assert store.load(found.case_id) == found
    assert list(store.results()) == [found]
    assert store.case_path(found.case_id) == store.root / "cases" / f"{found.case_id}.json"


def test_the_public_keys_are_there() -> None:
    content = json.loads(result((1.0, 2.0, None)).to_json())
    public = {
        "schema",
        "case",
        "case_id",
        "status",
        "error",
        "verdict",
        "verdict_reason",
        "metrics",
        "baselines",
        "flags",
        "cost",
        "environment",
    }
    assert public <= set(content)
    assert content["schema"] == SCHEMA == 1
    assert {"dataset", "model", "defense", "attack", "knowledge", "victims", "batch_size", "seed"} <= set(content["case"])
    assert content["metrics"]["psnr_gain"] == {"mean": None, "low": None, "high": None, "values": [1.0, 2.0, None]}
    assert set(content["baselines"]) == {"blind", "control"}
    assert set(content["cost"]) == {"fit_seconds", "attack_seconds", "peak_memory_mb"}
    assert {"gitbench", "torch", "python", "device"} <= set(content["environment"])
    assert content["flags"] == ["few-victims"]
    assert content["error"] is None


@given(values=st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=6))
def test_numbers_are_numbers(values: list[float | None]) -> None:
    found = result(values)
    text = found.to_json()

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads(text, parse_constant=refuse)  # NaN and Infinity are no JSON
    assert content["metrics"]["psnr_gain"]["values"] == values
    assert Result.model_validate_json(text) == found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_no_number_that_is_none_gets_in(bad: float) -> None:
    for build in (
        lambda: Measure(mean=bad, low=None, high=None, values=()),
        lambda: Measure(mean=None, low=None, high=None, values=(1.0, bad)),
        lambda: Baselines(blind={"psnr": bad}),
        lambda: Cost(fit_seconds=bad),
    ):
        with pytest.raises(ValidationError, match="finite number"):
            build()


def test_a_result_is_frozen_and_belongs_to_its_case() -> None:
    found = result()
    with pytest.raises(ValidationError, match="frozen"):
        found.status = "error"
    with pytest.raises(ValidationError, match="case_id 0123 does not belong to its case"):
        Result.model_validate({**found.model_dump(by_alias=True), "case_id": "0123"})


def test_a_failed_rename_leaves_the_old_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = result(LEAKING), result(SAFE)
    store.save(old)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for function in ("replace", "fsync"):
        with monkeypatch.context() as patched:
            patched.setattr(os, function, fail)
            with pytest.raises(StoreError, match=r"Cannot write .*json: .*No space left on device.*Free the disk or choose another folder"):
                store.save(new)
        assert store.load(old.case_id) == old
        assert [path.name for path in (store.root / "cases").iterdir()] == [f"{old.case_id}.json"]  # no litter


def test_an_interrupt_leaves_the_old_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old = result(LEAKING)
    store.save(old)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.save(result(SAFE))
    assert store.load(old.case_id) == old
    assert len(list((store.root / "cases").iterdir())) == 1


def test_the_file_is_synced_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (calls.append(name), real(*args)))
    write_atomic(tmp_path / "deep" / "file.json", b"content")
    assert calls == ["fsync", "replace"]
    assert (tmp_path / "deep" / "file.json").read_bytes() == b"content"
    # Readable by others, as a file that was simply written would be.
    assert stat.S_IMODE((tmp_path / "deep" / "file.json").stat().st_mode) == 0o644


def test_a_file_cut_short_is_set_aside(store: Store) -> None:
    found = result()
    content = found.to_json().encode()
    for point in [0, 1, 2, *range(10, len(content) - 2, 61), len(content) - 2]:
        path = stored(store, content[:point])
        with pytest.warns(
            UserWarning, match=rf"{found.case_id}\.json was damaged: it is kept as {found.case_id}\.damaged and .*measured again"
        ):
            assert store.load(found.case_id) is None
        assert not path.exists()
        assert path.with_suffix(".damaged").read_bytes() == content[:point]
        assert store.load(found.case_id) is None  # and now there is simply none
    stored(store, content)
    assert store.load(found.case_id) == found


@pytest.mark.parametrize(
    "content",
    [
        "null",
        "[]",
        "{}",
        '"text"',
        "\ufeff{}",
        "[" * 5000,
        '{"schema": null}',
        '{"schema": true}',
        '{"schema": "9"}',
        changed(result(), status="finished"),
        changed(result(), extra=1),
        changed(result(), metrics={"psnr": {"mean": "high", "low": 0, "high": 1, "values": []}}),
        changed(result(), metrics={"psnr": {"mean": math.nan, "low": 0, "high": 1, "values": []}}),
        changed(result(), case_id="0" * 20),
        changed(result(), case={}),
        b"\xff\xfe",
        b"\x00" * 64,
    ],
)
def test_a_file_that_is_no_result_is_set_aside(store: Store, content: str | bytes) -> None:
    path = stored(store, content)
    with pytest.warns(UserWarning, match="was damaged"):
        assert store.load(CASE.case_id) is None
    assert path.with_suffix(".damaged").exists()


def test_a_damaged_file_hides_no_other(store: Store) -> None:
    store.save(result())
    stored(store, "rubbish", "0000")
    assert list(store.results()) == [result()]
    assert store.case_path("0000").exists()  # looking does not move it


def test_a_result_under_another_cases_name_is_not_taken(store: Store) -> None:
    other = result(seed=1)
    stored(store, result().to_json(), other.case_id)
    with pytest.warns(UserWarning, match="was damaged"):
        assert store.load(other.case_id) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": SCHEMA + 1, "new_key": 1},
        {"schema": 99, "metrics": [], "status": "queued"},
        {"schema": SCHEMA + 1},
    ],
)
def test_a_result_of_a_newer_gitbench_is_left_alone(store: Store, changes: dict[str, object]) -> None:
    path = stored(store, changed(result(), **changes))
    before = path.read_bytes()
    with pytest.raises(
        StoreError, match=rf"has schema {changes['schema']}; this gitbench reads up to 1\. Upgrade gitbench, or choose another folder"
    ):
        store.load(CASE.case_id)
    assert path.read_bytes() == before


def test_folders_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    # Run as root, nothing is read-only: a file where a folder should be fails for root too.
    occupied = tmp_path / "occupied"
    occupied.write_text("")
    store = Store(occupied)
    with pytest.raises(StoreError, match=r"Cannot write .*occupied/cases/.*json: .*choose another folder"):
        store.save(result())
    with pytest.raises(StoreError, match=r"Cannot write .*occupied/pictures"):
        store.save_picture("abc", b"png")
    with pytest.raises(StoreError, match=r"Cannot read .*occupied/cases"):
        store.load("abc")
    with pytest.raises(StoreError, match=r"Cannot write to the results folder .*occupied: .*--gitbench-results"), store.lock("abc"):
        pass
    assert list(store.results()) == []
    assert list(Store(tmp_path / "missing").results()) == []
    assert Store(tmp_path / "missing").load("abc") is None
    assert not (tmp_path / "missing").exists()  # reading writes nothing


def test_a_folder_in_place_of_a_result_is_named(store: Store) -> None:
    store.case_path(CASE.case_id).mkdir(parents=True)
    with pytest.raises(StoreError, match=r"Cannot read .*json"):
        store.load(CASE.case_id)
    with pytest.raises(StoreError, match=r"Cannot write .*json"):
        store.save(result())


def test_a_damaged_file_that_cannot_be_moved_is_named(store: Store) -> None:
    path = stored(store, "rubbish")
    path.with_suffix(".damaged").mkdir()
    with pytest.raises(StoreError, match="damaged"):
        store.load(CASE.case_id)


def test_an_error_with_an_undecodable_file_name_is_saved(store: Store) -> None:
    found = result(error="cannot open \udcff.png")
    store.save(found)
    assert store.load(found.case_id) is not None


def test_a_lock_is_held_by_one(store: Store) -> None:
    inside, order = threading.Event(), []

    def second() -> None:
        inside.wait(10)
        with store.lock("case"):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with store.lock("case"):
        inside.set()
        with store.lock("other"):
            thread.join(0.2)
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("fuzz"))


VALID = result().to_json().encode()


@settings(max_examples=100)
@given(
    content=st.binary(max_size=60)
    | st.builds(lambda at, byte: VALID[:at] + byte + VALID[at + 1 :], st.integers(0, len(VALID) - 1), st.binary(max_size=2))
    | st.builds(
        lambda value: json.dumps(value).encode(), st.recursive(st.none() | st.integers() | st.text(max_size=5), st.lists, max_leaves=5)
    )
)
@pytest.mark.filterwarnings("ignore:.*was damaged:UserWarning")
def test_random_bytes_are_handled(fuzzed: Store, content: bytes) -> None:
    path = stored(fuzzed, content)
    try:
        found = read_result(path)
        assert list(fuzzed.results()) == [found]
    except (ValidationError, StoreError):
        found = None
    try:
        assert fuzzed.load(CASE.case_id) == found
    except StoreError:
        assert found is None
    try:
        load_baseline(stored(fuzzed, content))
    except ConfigError:
        assert found is None


# Leaderboards


def table(
    results: dict[tuple[str, str], list[Result]] | None = None, *, dataset: str = "photos", model: str = "lenet", **options: object
) -> Table:
    found = (
        {("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): [result(SAFE, defense="pruning(rate=0.9)")]}
        if results is None
        else results
    )
    return Table(dataset, model, found, setting=SETTING, gate=GATE, **options)


def rows(text: str) -> list[list[str]]:
    """Cells of the Markdown tables: split at pipes that are not escaped."""
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_leaderboard_shows_the_numbers_and_what_they_mean() -> None:
    text = leaderboard.render(table(not_applicable={("none", "ridge"): "needs parameters"}))
    assert text.startswith("# photos · lenet\n")
    head, _, first, second, *_ = rows(text)
    assert head == ["defense", "worst case", "`auto`", "gap, dB", "`ig`", "`ridge`", "worst attack", "worst"]
    bounds = interval([SAFE])
    figure = f"+0.50 [{bounds.low:.2f}, {bounds.high:.2f}]"
    # The best defense first, the undefended row last.
    assert first[:4] == ["`pruning(rate=0.9)`", f"{figure}, 1 of 2 attacks", "not measured", ""]
    assert first[4:] == [f"{figure} holds", "not measured", "`ig`", "+0.50"]
    assert second[0] == "`none`"
    assert second[4].endswith("leaks")
    assert second[5] == "n/a"
    for shown in (
        "psnr_gain ↑ 3 dB",
        "torch 2.6",
        "Python 3.11",
        "cpu, 2 threads",
        "MSE 0.06, PSNR 12",
        "iterations=100",
        "Setting: threat server",
    ):
        assert shown in text, shown


def test_a_defense_beside_a_failed_control_is_not_shown_as_holding() -> None:
    safe = result(SAFE, defense="pruning(rate=0.9)")
    without = leaderboard.render(table({("pruning(rate=0.9)", "ig"): [safe]}))
    assert "no control" in without
    weak = leaderboard.render(table({("none", "ig"): [result(SAFE)], ("pruning(rate=0.9)", "ig"): [safe]}))
    assert rows(weak)[2][4].endswith("no control")
    broken = leaderboard.render(
        table({("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): [result(error="boom", defense="pruning(rate=0.9)")]})
    )
    assert [row[4] for row in rows(broken) if row[0] == "`pruning(rate=0.9)`"] == ["error"]
    unknown = leaderboard.render(
        table({("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): [result((1.0, None), defense="pruning(rate=0.9)")]})
    )
    assert [row[4] for row in rows(unknown) if row[0] == "`pruning(rate=0.9)`"] == ["unknown"]


def test_an_undefended_cell_is_never_shown_as_holding() -> None:
    assert "holds" not in leaderboard.render(table({("none", "ig"): [result(SAFE)]}))


NASTY = "x|y`z\n<img src=x onerror=alert(1)>*_[a](b)#"


def test_names_cannot_break_the_table() -> None:
    results = {(defense, attack): [result()] for defense in ("none", NASTY) for attack in ("ig", NASTY)}
    text = leaderboard.render(table(results, dataset=NASTY, model=NASTY))
    found = rows(text)
    defenses = found[: found.index(next(row for row in found if row[0] in ("flag", "attack")))]
    assert {len(row) for row in defenses} == {8}
    flags = found[len(defenses) : found.index(next(row for row in found if row[0] == "attack"))]
    assert {len(row) for row in flags} == {3}
    assert len(defenses) == 4
    for row in defenses:
        for cell in row:
            assert cell.count("`") % 2 == 0
    # Outside code and comments no HTML, emphasis or link is left standing.
    plain = re.sub(r"<!--.*?-->|`[^`\n]*`|\\.", "", text)
    assert "<img" not in plain
    assert "](b)" not in plain
    # Newlines would start a row, a heading or a list.
    assert text.splitlines()[0].startswith("# x\\|y\\`z \\<img")
    assert not any(line.startswith("<img") for line in text.splitlines())


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        NASTY,
        "a--b",
        "-->",
        "a--->b",
    ],
)
def test_the_cells_of_a_leaderboard_are_read_back(tmp_path: Path, name: str) -> None:
    found = table({("none", "ig"): [result()], (name, "ig"): [result()]})
    comment = next(line for line in leaderboard.render(found).splitlines() if line.startswith("<!--"))
    assert comment.endswith(" -->")
    # "--" may not stand within a comment, for it could end it.
    assert "--" not in comment[4:-3]
    for _ in range(2):
        path, refused = leaderboard.write(found, tmp_path, [("none", "ig")])
        assert refused is None
    assert leaderboard.written_cells(path) == {"none/ig", f"{name}/ig"}


def test_a_leaderboard_is_not_written_before_it_is_complete(tmp_path: Path) -> None:
    path, refused = leaderboard.write(table(), tmp_path, [("none", "ig"), ("none", "ridge"), ("clipping", "ig")])
    assert refused == "not measured yet: clipping/ig, none/ridge"
    assert not path.exists()
    path, refused = leaderboard.write(table(not_applicable={("none", "ridge"): "no"}), tmp_path, [("none", "ig"), ("none", "ridge")])
    assert refused is None
    assert path == tmp_path / "photos-lenet-victims=4.md"


def test_a_leaderboard_never_loses_rows(tmp_path: Path) -> None:
    path, refused = leaderboard.write(table(), tmp_path, [])
    assert refused is None
    before = path.read_bytes()
    fewer = table({("none", "ig"): [result()]})
    _, refused = leaderboard.write(fewer, tmp_path, [("none", "ig")])
    assert refused is not None
    assert "it holds cells that this run did not measure (pruning(rate=0.9)/ig); choose another --gitbench-leaderboard" in refused
    assert path.read_bytes() == before
    more = table({**table().results, ("clipping", "ig"): [result(SAFE)]})
    assert leaderboard.write(more, tmp_path, [])[1] is None
    assert leaderboard.written_cells(path) == {"none/ig", "pruning(rate=0.9)/ig", "clipping/ig"}


@pytest.mark.parametrize("content", [b"", b"# by hand\n", b"\xff\xfe", b"<!-- gitbench-cells: [rubbish -->", b"<!-- gitbench-cells: 5 -->"])
def test_a_file_that_is_no_leaderboard_holds_no_cells(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.md"
    path.write_bytes(content)
    assert leaderboard.written_cells(path) == set()
    assert leaderboard.written_cells(tmp_path / "missing.md") == set()


def test_a_leaderboard_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "boards").write_text("")
    with pytest.raises(StoreError, match=r"Cannot write .*boards/photos-lenet"):
        leaderboard.write(table(), tmp_path / "boards", [])


def test_file_names_tell_settings_apart() -> None:
    usual = {"threat": "server", "profile": "quick", "victims": 16, "batch_size": 1, "seeds": 1}
    assert leaderboard.file_name("photos", "lenet", usual) == "photos-lenet.md"
    other = leaderboard.file_name("npz(path='/data/x.npz')", "lenet(bias=False)", {**usual, "threat": "upper-bound", "victims": 8})
    assert re.fullmatch(r"[\w.=-]+\.md", other)
    assert "victims=8" in other
    assert "/" not in other


def test_file_names_tell_datasets_apart() -> None:
    names = {leaderboard.file_name(f"npz(path={path!r})", "lenet", SETTING) for path in ("a/b.npz", "a_b.npz")}
    assert len(names) == 2


def test_stored_results_become_tables(store: Store) -> None:
    old, new = result(LEAKING, at="2025-01-01T00:00:00+00:00"), result(SAFE, at="2025-02-01T00:00:00+00:00", code={"core": "later"})
    others = [result(seed=1), result(defense="clipping"), result(model="mlp"), result(threat="upper-bound"), result(error="boom", seed=9)]
    for found in (old, new, *others):
        store.save(found)
    tables = leaderboard.tables(list(store.results()))
    assert [(found.model, found.setting["threat"], found.setting["seeds"]) for found in tables] == [
        ("lenet", "server", 2),
        ("lenet", "upper-bound", 1),
        ("mlp", "server", 1),
    ]
    assert set(tables[0].results) == {("none", "ig"), ("clipping", "ig")}
    # Of two measurements of one cell the later counts; errors do not.
    assert [list(found.metrics["psnr_gain"].values) for found in tables[0].results["none", "ig"]] == [list(SAFE), list(LEAKING)]
    for found in tables:
        assert leaderboard.render(found)
    assert leaderboard.tables([]) == []


# Baselines

RANDOM = np.random.default_rng(0)
THEN = RANDOM.normal(5, 3, 32)


def change(difference: np.ndarray | float, *, metric: str = "psnr_gain", tolerance: float = 0.5) -> str | None:
    now, then = result((THEN + difference).tolist(), metric=metric), result(THEN.tolist(), metric=metric)
    return regression(now, baseline_of(then), metric=metric, tolerance=tolerance)


def regression(now: Result, baseline: Cells, *, metric: str = "psnr_gain", tolerance: float = 0.5) -> str | None:
    key = key_of(now.case)
    found = compare_cell(key, baseline[key], cells_of([now])[key], metric=metric, tolerance={metric: tolerance})
    return found.reason if found.kind in ("regressed", "unpaired") else None


def baseline_of(*results: Result, folder: Path | None = None) -> Cells:
    if folder is None:
        return cells_of(results)
    for found in results:
        Store(folder).save(found)
    return load_baseline(folder)


def test_one_decibel_more_is_a_regression() -> None:
    # Victims differ by 3 dB among each other, far more than by 1: only pairs can tell.
    told = change(1 + RANDOM.normal(0, 0.5, 32))
    assert told is not None
    assert re.fullmatch(
        r"psnr_gain leaks \d\.\d\d dB \[0\.\d\d, 1\.\d\d\] more than the baseline, on 32 pairs of one seed \(tolerance 0\.5 dB\)", told
    )


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_no_regression(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 1, 32)
    assert change(noise - noise.mean()) is None
    assert change(-1 + noise) is None
    assert change(0.0) is None


def test_a_regression_is_past_the_tolerance_and_surely_above_zero() -> None:
    assert change(0.4) is None
    assert change(0.6) is not None
    assert change(0.4, tolerance=0.3) is not None
    assert change(1 + RANDOM.normal(0, 20, 32), tolerance=0.0) is None
    # The whole difference may lie in a few victims.
    assert change(np.where(np.arange(32) < 12, 4.0, 0.0)) is not None


@pytest.mark.parametrize(("metric", "leaks"), [("mse", -1), ("lpips", -1), ("ssim", 1), ("psnr", 1)])
def test_regressions_know_which_way_a_metric_leaks(metric: str, leaks: int) -> None:
    assert change(1.0 * leaks, metric=metric) is not None
    assert change(-1.0 * leaks, metric=metric) is None


def test_a_missing_value_is_a_regression() -> None:
    whole, holed = result((1.0, 2.0, 3.0)), result((1.0, None, 3.0))
    for now, then in ((whole, holed), (holed, whole)):
        told = regression(now, baseline_of(then))
        assert told is not None
        assert "a value is missing" in told
    told = regression(whole, baseline_of(whole), metric="ssim")
    assert told is not None
    assert told.startswith("ssim cannot be compared: a value is missing")
    told = regression(result((1.0,)), baseline_of(result((1.0,))))
    assert told is not None
    assert "cannot be compared" in told


def test_a_cell_that_the_baseline_lacks_is_an_error() -> None:
    baseline = baseline_of(result())
    assert regression(result(), baseline) is None
    for other in ({"defense": "clipping"}, {"threat": "upper-bound"}, {"batch_size": 2}):
        with pytest.raises(KeyError):
            regression(result(**other), baseline)
    assert regression(result(seed=1), baseline) == "no seed in common: 0 before, 1 now"
    # Code that changed is what a baseline is for.
    assert regression(result(code={"core": "edited"}), baseline) is None


def test_a_baseline_is_a_folder_or_a_file(tmp_path: Path) -> None:
    both = [result(), result(seed=1)]
    folder = baseline_of(*both, result(seed=2, error="boom"), folder=tmp_path / "results")
    assert [sorted(seeds) for seeds in folder.values()] == [[0, 1]]
    file = tmp_path / "baseline.json"
    file.write_text(f"[{both[0].to_json()}, {both[1].to_json()}]")
    assert load_baseline(file) == folder
    file.write_text(both[0].to_json())
    assert load_baseline(file) == cells_of(both[:1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"Expected a baseline at .*: a results folder or a JSON file\. Nothing is there"),
        (b"", r"The baseline .* cannot be read as gitbench results: .*Measure it again"),
        (b"rubbish", r"cannot be read as gitbench results"),
        (b"\xff\xfe\x00", r"cannot be read as gitbench results"),
        (b"5", r"cannot be read as gitbench results"),
        (b"{}", r"cannot be read as gitbench results"),
        (b"[" * 100_000, r"cannot be read as gitbench results"),
        (VALID[:300], r"cannot be read as gitbench results"),
        (b"[]", r"holds no finished result\. Expected a results folder of an earlier run"),
        (result(error="boom").to_json().encode(), r"holds no finished result"),
    ],
)
def test_a_baseline_that_cannot_be_used_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "baseline.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_baseline(path)
    assert str(path) in str(caught.value)


def test_a_baseline_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(ConfigError, match="holds no finished result"):
        load_baseline(tmp_path)
    store.save(result())
    stored(store, "rubbish", "0000")
    # What is damaged cannot be compared, and must not be passed over in silence.
    with pytest.raises(ConfigError, match=r"cannot be read as gitbench results"):
        load_baseline(tmp_path)
    stored(store, changed(result(), schema=2, new_key=1), "0000")
    with pytest.raises(ConfigError, match=r"has schema 2"):
        load_baseline(tmp_path)


def test_of_several_measurements_the_baseline_takes_the_latest(tmp_path: Path) -> None:
    for number in range(6):
        old = result(SAFE, at="2025-01-01T00:00:00+00:00", code={"core": f"old {number}"})
        new = result(LEAKING, at="2025-02-01T00:00:00+00:00", code={"core": f"new {number}"})
        baseline = baseline_of(old, new, folder=tmp_path / str(number))
        assert baseline == cells_of([new])


def test_a_baseline_with_a_value_too_few_is_named(tmp_path: Path) -> None:
    content = json.loads(result().to_json())
    content["metrics"]["psnr_gain"]["values"].pop()
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(content))
    try:
        told = regression(result(), load_baseline(path))
    except GitbenchError:
        return
    assert told is not None
