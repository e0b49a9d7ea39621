"""Results on disk: whatever is on the disk, nothing is lost in silence."""

from __future__ import annotations

import json
import math
import os
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from gitbench.core.errors import ConfigError, StoreError
from gitbench.publish.baseline import load_baseline
from gitbench.store.folder import Store, read_result, write_atomic
from gitbench.store.result import SCHEMA, Baselines, Cost, Measure, Result
from results import CASE, LEAKING, SAFE, VALID, changed, result, stored


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


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
