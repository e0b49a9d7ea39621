"""Baselines: the file that is committed says what the folder of results says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gitbench import cli
from gitbench.core.errors import ConfigError
from gitbench.publish.baseline import dump, key_of, load_baseline, record_of
from gitbench.publish.comparison import compare
from records import VALUES, result, stored


def test_the_file_says_what_the_folder_says(tmp_path: Path) -> None:
    folder = stored(tmp_path / "runs", result(VALUES), result(VALUES, attack="ig"), result(VALUES, seed=1))
    assert cli.main(["baseline", str(folder), "--out", str(tmp_path / "base.json")]) == 0
    from_file, from_folder = load_baseline(tmp_path / "base.json"), load_baseline(folder)
    assert {key: sorted(seeds) for key, seeds in from_file.items()} == {key: sorted(seeds) for key, seeds in from_folder.items()}
    for key, seeds in from_file.items():
        for seed, one in seeds.items():
            whole = from_folder[key][seed]
            assert one == whole.model_copy(update={"values": {"psnr_gain": whole.values["psnr_gain"]}})
    assert sorted(map(str, from_file)) == [
        "photos/mlp/pruning(rate=0.5)/ig (server, quick)",
        "photos/mlp/pruning(rate=0.5)/ridge (server, quick)",
    ]
    assert from_file[key_of(result(VALUES).case)][0].values["psnr_gain"][0] == 1.23457
    assert all(found.kind == "unchanged" for found in compare(from_file, from_folder).changes)


def test_the_file_is_small_and_its_order_is_stable(tmp_path: Path) -> None:
    results = [result(VALUES), result(VALUES, attack="ig"), result(VALUES, seed=1)]
    first = dump(load_baseline(stored(tmp_path / "a", *results)))
    assert dump(load_baseline(stored(tmp_path / "b", *reversed(results)))) == first
    changed = dump(load_baseline(stored(tmp_path / "c", *results[:2], result([*VALUES[:5], 4.5], seed=1))))
    differing = [(a, b) for a, b in zip(first.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert len(differing) == 1
    assert "psnr_gain" in differing[0][0]
    assert json.loads(first)["schema"] == 1
    assert max(map(len, first.splitlines())) < 400


def test_of_several_measurements_the_latest_counts(tmp_path: Path) -> None:
    old, new = result(VALUES[:4], when="2026-01-01"), result(VALUES, when="2026-01-02")
    (found,) = load_baseline(stored(tmp_path, old, new)).values()
    assert found[0].victims == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as gitbench results: Expecting value"),
        ("[]", "holds no finished result"),
        ('{"kind": "other"}', "expected a results folder, or what gitbench baseline wrote"),
        ('{"kind": "gitbench baseline", "schema": 99}', "it has schema 99, and this gitbench reads up to 1: upgrade gitbench"),
        ('{"kind": "gitbench baseline", "schema": 1}', "environments: Field required"),
        (
            '{"kind": "gitbench baseline", "schema": 1, "environments": [], "cases": [{"environment": 0}]}',
            "number of an environment, got 0",
        ),
        ('{"kind": "gitbench baseline", "schema": 1, "environments": [], "cases": []}', "holds no finished result"),
        ("[" * 100_000, "cannot be read"),
        ('{"kind": "gitbench baseline", "schema": 1, "environments": [], "cases": [NaN]}', "cannot be read"),
    ],
)
def test_a_file_that_is_no_baseline_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r".") as found:
        load_baseline(path)
    assert message in str(found.value)
    assert cli.main(["compare", str(path), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_values_of_the_wrong_number_are_refused(tmp_path: Path) -> None:
    good = dump(load_baseline(stored(tmp_path / "runs", result(VALUES))))
    path = tmp_path / "base.json"
    path.write_text(good.replace('"victims": 6', '"victims": 7'))
    with pytest.raises(ConfigError, match="6 values for 7 victims"):
        load_baseline(path)
    path.write_text(good.replace("9.25", "NaN"))
    with pytest.raises(ConfigError, match="finite"):
        load_baseline(path)


def test_entries_round_their_values() -> None:
    found = record_of(result([1.23456789, 2.0]))
    assert found.values["psnr_gain"] == (1.23457, 2.0)
    assert found.blind == (13.5, 13.5)
