"""Results of others: checked, shown as theirs, and never in the place of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from gitbench.cli import main
from gitbench.core.errors import StoreError
from gitbench.publish import leaderboard
from gitbench.publish.entries import check_victims, read_entries
from gitbench.publish.table import tables
from gitbench.store.folder import Store
from gitbench.store.result import Result
from hostile import CONTROLS, harmless
from results import CASE, LEAKING, SAFE, every_attack, measure, result, rows


def whole(found: Result, *, blind: float = 10.0) -> Result:
    """With the metrics that belong together."""
    gains = found.metrics["psnr_gain"].values
    psnr = [gain + blind for gain in gains]
    mse = [10 ** (-value / 10) for value in psnr]
    return found.model_copy(update={"metrics": {**found.metrics, "psnr": measure(psnr), "mse": measure(mse)}})


@pytest.fixture
def entry(tmp_path: Path) -> Callable[..., Path]:
    def write(found: Result | dict, name: str = "entry.json") -> Path:
        path = tmp_path / "others" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(found.to_json() if isinstance(found, Result) else json.dumps(found))
        return path

    return write


def edited(found: Result, **changes: object) -> dict:
    content = json.loads(found.to_json())
    for where, value in changes.items():
        *path, last = where.split("__")
        place = content
        for key in path:
            place = place[key]
        place[last] = value
    return content


THEIRS = whole(result(SAFE, defense="clipping(max_norm=1.0)"))


def test_an_entry_is_read_without_its_verdict_and_gate(entry: Callable[..., Path]) -> None:
    told = THEIRS.model_copy(update={"gate": {"psnr_gain": 99.0}, "verdict": "holds", "verdict_reason": "trust me"})
    (found,) = read_entries([entry(told)])
    assert (found.result.gate, found.result.verdict, found.result.exposure) == ({}, "inconclusive", {})
    assert found.result.metrics == told.metrics


def test_a_folder_of_entries_and_a_results_folder_are_read(entry: Callable[..., Path], tmp_path: Path) -> None:
    path = entry(THEIRS)
    entry(whole(result(SAFE, defense="clipping(max_norm=2.0)")), "second.json")
    assert len(read_entries([path.parent])) == 2
    Store(tmp_path / "run").save(THEIRS)
    assert len(read_entries([tmp_path / "run", path])) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"case_id": "0" * 20}, "does not belong to its case"),
        ({"case__dataset": "photos2"}, "does not belong to its case"),
        ({"extra": 1}, "extra: Extra inputs"),
        ({"metrics__psnr_gain__mean": 0.0}, "the mean of psnr_gain is 0.5, and it says 0.0"),
        ({"metrics__psnr_gain__mean": None}, "the mean of psnr_gain is 0.5, and it says None"),
        ({"metrics__psnr_gain__values": [0.5]}, "psnr_gain has 1 values for 4 victims"),
        (
            {"metrics__psnr": {"mean": 12.0, "low": 11.0, "high": 13.0, "values": [12.0] * 4}},
            "a squared error of 0.1 is a PSNR of 10.00 dB",
        ),
        ({"metrics__mse": {"mean": 2.0, "low": 2.0, "high": 2.0, "values": [2.0] * 4}}, "mse cannot be 2"),
        ({"metrics__sharpness": {"mean": 1.0, "low": 1.0, "high": 1.0, "values": [1.0] * 4}}, "unknown metric 'sharpness'"),
        ({"metrics": {}}, "it has no metric"),
        ({"flags": ["excellent"]}, "unknown flag 'excellent'"),
        ({"status": "error", "error": "boom"}, "it ended in an error: 'boom'"),
        ({"schema": 99}, "has schema 99"),
        ({"metrics__psnr_gain__values": ["NaN"] * 4}, "finite number"),
    ],
)
def test_what_contradicts_itself_is_not_taken(entry: Callable[..., Path], changes: dict, message: str) -> None:
    path = entry(edited(THEIRS, **changes))
    with pytest.raises(StoreError) as caught:
        read_entries([path])
    assert message in str(caught.value)
    assert "entry.json" in str(caught.value)


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ({"dataset": "fotos"}, "Unknown dataset 'fotos'. Did you mean 'photos'?"),
        ({"model": "lenett"}, "Unknown model 'lenett'"),
        ({"dataset": "theirs.py:Data"}, "does not exist"),
        ({"attack": "ig( iterations=3 )"}, "as it is written out, 'ig(iterations=3)'"),
        ({"attack": "i g"}, "Cannot read the attack"),
        ({"profile": "huge"}, "unknown profile 'huge'"),
        ({"threat": "godlike"}, "Unknown threat model 'godlike'"),
        ({"knowledge": ("architecture",)}, "the threat model 'server' grants"),
    ],
)
def test_a_case_that_cannot_be_is_not_taken(entry: Callable[..., Path], case: dict, message: str) -> None:
    with pytest.raises(StoreError, match="is not taken") as caught:
        read_entries([entry(whole(result(SAFE, **case)))])
    assert message in str(caught.value)


def test_more_victims_than_can_be_resampled_are_not_taken(entry: Callable[..., Path]) -> None:
    case = CASE.model_copy(update={"victims": 10**9})
    found = THEIRS.model_copy(update={"case": case, "case_id": case.case_id, "metrics": {}})
    with pytest.raises(StoreError, match="1000000000 victims, and an entry has at most 5000"):
        read_entries([entry(found)])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000, b'{"schema": ' + b"9" * 5000 + b"}"])
def test_what_is_no_result_is_not_taken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "entry.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"entry\.json"):
        read_entries([path])


def test_a_huge_file_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "entry.json"
    with path.open("wb") as file:
        file.truncate(2**25)
    with pytest.raises(StoreError, match="an entry has at most"):
        read_entries([path])


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Nothing is there"):
        read_entries([tmp_path / "none.json"])
    with pytest.raises(StoreError, match="None is there"):
        read_entries([tmp_path])


def test_other_images_than_ours_are_not_taken(entry: Callable[..., Path]) -> None:
    found = read_entries([entry(THEIRS)])
    check_victims(found, [whole(result())])
    check_victims(found, [whole(result(seed=1), blind=12.0)])  # other victims: nothing to compare
    with pytest.raises(StoreError, match=r"its victim 0 is another image than ours: the blind guess has 10\.00 dB there, 12\.00 dB here"):
        check_victims(found, [whole(result(), blind=12.0)])


# The table


def rendered(own: list[Result], paths: list[Path]) -> str:
    (found,) = tables(own, read_entries(paths))
    return leaderboard.render(found)


def row(text: str, defense: str) -> dict[str, str]:
    head, *found = every_attack(text)
    return next(dict(zip(head, one, strict=True)) for one in found if one[0] == f"`{defense}`")


def test_an_entry_is_shown_as_submitted_with_its_code(entry: Callable[..., Path]) -> None:
    theirs = whole(
        result(SAFE, defense="mine.py:Mine(scale=0.1)", code={**CASE.code, "core": "0123456789abcdef", "defense": "fedcba9876543210"})
    )
    text = rendered([whole(result())], [entry(theirs)])
    shown = row(text, "mine.py:Mine(scale=0.1)")
    assert shown["`ig`"].endswith("holds, by others")
    assert "by others" not in row(text, "none")["`ig`"]
    section = text[text.index("## Measured by others") :]
    assert f"`{theirs.case_id}`" in section
    assert "core `01234567`\\*" in section
    assert "defense `fedcba98`\\*" in section
    assert f"model `{CASE.code['model'][:8]}`" in section
    assert f"model `{CASE.code['model'][:8]}`\\*" not in section
    assert "- By others: " in text
    assert ", by others" in text[text.index("## Victims past") :]


def test_an_entry_never_takes_the_place_of_ours(entry: Callable[..., Path]) -> None:
    ours = whole(result(LEAKING, defense="clipping(max_norm=1.0)"))
    own = [whole(result()), ours]
    same = entry(whole(result(SAFE, defense="clipping(max_norm=1.0)")), "same.json")
    further_seed = entry(whole(result(SAFE, defense="clipping(max_norm=1.0)", seed=1)), "seed.json")
    assert rendered(own, [same, further_seed]) == rendered(own, [])


def test_an_entry_may_raise_the_worst_case_and_never_lowers_it(entry: Callable[..., Path]) -> None:
    own = [whole(result()), whole(result(SAFE, defense="x"))]
    weak = entry(whole(result((-9.0, -9.0, -9.0, -9.0), defense="x", attack="dlg")), "weak.json")
    text = rendered(own, [weak])
    assert row(text, "x")["worst case"].startswith("+0.50")
    assert "without what others" not in row(text, "x")["worst case"]
    # ... nor does it make ours look incomplete elsewhere.
    assert row(text, "none")["worst case"] == row(rendered(own, []), "none")["worst case"]
    strong = entry(whole(result((7.0, 7.0, 7.0, 7.0), defense="x", attack="dlg")), "strong.json")
    shown = row(rendered(own, [strong]), "x")["worst case"]
    assert shown.startswith("+7.00 [7.00, 7.00] (+0.50 [")
    assert shown.endswith("without what others sent in)")


def test_the_gate_is_ours(entry: Callable[..., Path]) -> None:
    lax = whole(result(LEAKING, defense="clipping(max_norm=1.0)")).model_copy(update={"gate": {"psnr_gain": 50.0}})
    text = rendered([], [entry(lax), entry(whole(result()).model_copy(update={"gate": {"psnr_gain": 50.0}}), "control.json")])
    assert "A cell leaks past psnr_gain ↑ 3 dB" in text
    assert row(text, "clipping(max_norm=1.0)")["`ig`"].endswith("leaks, by others")


def test_the_command_line_takes_entries(entry: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path / "run").save(whole(result()))
    out = tmp_path / "boards"
    assert main(["leaderboard", str(tmp_path / "run"), "--out", str(out), "--entries", str(entry(THEIRS).parent)]) == 0
    (board,) = out.glob("*.md")
    assert "by others" in board.read_text()
    bad = entry(edited(THEIRS, case_id="0" * 20), "bad.json")
    assert main(["leaderboard", str(tmp_path / "run"), "--out", str(out), "--entries", str(bad)]) == 2
    assert "bad.json is not taken" in capsys.readouterr().err


@pytest.mark.parametrize("control", CONTROLS)
def test_names_of_entries_cannot_break_a_terminal_or_table(
    entry: Callable[..., Path], control: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"evil(name={control + '|<b>`'!r})" if control != "\ud800" else "evil"
    found = whole(result(SAFE, defense=name))
    found = found.model_copy(update={"environment": found.environment.model_copy(update={"gitbench": "1|<img src=x>`"})})
    text = rendered([whole(result())], [entry(found)])
    assert harmless(text)
    assert len({len(one) for one in rows(text[text.index("## Measured by others") : text.index("## Flags")])}) == 1
    path = entry(edited(THEIRS, error=f"{control}", status="error"))
    with pytest.raises(StoreError) as caught:
        read_entries([path])
    assert harmless(str(caught.value))
