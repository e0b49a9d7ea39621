"""Results against a baseline: what is a regression, and which baselines can be used."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from gitbench.core.errors import ConfigError, GitbenchError
from gitbench.publish.baseline import Cells, cells_of, key_of, load_baseline
from gitbench.publish.comparison import compare_cell
from gitbench.store.folder import Store
from gitbench.store.result import Result
from results import LEAKING, SAFE, VALID, changed, result, stored

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
