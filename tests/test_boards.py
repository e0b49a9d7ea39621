"""Leaderboards as they are committed: the first table, the picture, and the check that both follow from their results."""

from __future__ import annotations

import io
import random
import re
import shutil
import subprocess
import tarfile
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from gitbench.cli import main
from gitbench.publish import leaderboard
from gitbench.publish.board_check import differences
from gitbench.publish.table import Table, canonical, markdown_table, tables
from gitbench.store.folder import Store
from gitbench.store.result import Measure, Result
from helpers import run_matrix
from hostile import NASTY, harmless
from results import LEAKING, SAFE, cost_results, every_attack, first_table, measure, result, rows, table

SVG = "{http://www.w3.org/2000/svg}"
OURS = Path(__file__).parents[1] / "leaderboards"
DEFENSE = "pruning(rate=0.9)"


def cells(values: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[tuple[str, str], list[Result]]:
    return {
        (defense, attack): [result(found, defense=defense, attack=attack)]
        for defense, row in values.items()
        for attack, found in row.items()
    }


def picture(found: Table) -> str:
    return next(text for name, text in leaderboard.files(found).items() if name.endswith(".svg"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results, and beside them the tables that the command wrote."""
    for one in [*cost_results(), *(result(values, model="mlp", attack=name) for name, values in (("ig", LEAKING), ("dlg", SAFE)))]:
        Store(tmp_path).save(one)
    assert main(["leaderboard", str(tmp_path), "--out", str(tmp_path)]) == 0
    return tmp_path


def check(folder: Path) -> int:
    return main(["leaderboard", str(folder), "--out", str(folder), "--check"])


# The first table


def test_the_first_table_says_what_a_reader_wants_to_know_in_six_columns() -> None:
    (found,) = tables(cost_results())
    shown = first_table(leaderboard.render(found))
    assert list(shown[0]) == ["defense", "verdict", "worst case, dB", "strongest attack", "identified", "accuracy lost"]
    assert [(row["defense"].strip("`"), row["verdict"], row["accuracy lost"]) for row in shown] == [
        ("clipping(max_norm=1.0)", "holds", "+55.0 % [51.7, 58.1]"),
        ("pruning(rate=0.9)", "leaks", "+5.0 % [3.4, 6.6]"),
        ("pruning(rate=0.5)", "leaks", "+10.0 % [7.9, 12.0]"),
        ("none", "control", ""),
    ]
    assert {row["identified"] for row in shown} == {"not tested"}
    assert shown[1]["worst case, dB"].startswith("+5.00 [")


def test_our_own_tables_follow_from_the_results_beside_them(tmp_path: Path) -> None:
    """As they are committed: a run in the checkout writes its own over them."""
    archive = subprocess.run(["git", "-C", str(OURS.parent), "archive", "HEAD", OURS.name], capture_output=True, check=False)
    if archive.returncode:
        pytest.skip(f"no checkout of git: {archive.stderr.decode(errors='replace').strip()}")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as found:
        found.extractall(tmp_path, filter="data")
    assert check(tmp_path / OURS.name) == 0


@pytest.mark.parametrize("path", sorted(OURS.glob("*.md")), ids=lambda path: path.stem)
def test_our_own_tables_begin_with_at_most_six_columns_and_show_their_picture(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert 2 <= len(first_table(text)[0]) <= 6
    (link,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert (path.parent / link.replace("%3D", "=")).is_file()


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"ig": SAFE, "dlg": LEAKING}, "leaks"),
        ({"ig": SAFE, "dlg": SAFE}, "holds"),
        ({"ig": (9.0, 9.0, -9.0, -9.0), "dlg": (-9.0, -9.0, 9.0, 9.0)}, "undecided"),
        ({"ig": (5.0, 5.0, -5.0, -5.0, 0.0) * 9, "dlg": (-5.0, -5.0, 5.0, 5.0, 0.0) * 9}, "holds, against each attack alone"),
    ],
)
def test_the_verdict_of_a_row_is_that_of_its_gravest_attack(values: dict[str, Sequence[float]], verdict: str) -> None:
    control = {name: (9.0,) * len(found) for name, found in values.items()}
    shown = {row["defense"]: row["verdict"] for row in first_table(leaderboard.render(table(cells({"none": control, "x": values}))))}
    assert shown == {"`x`": verdict, "`none`": "control"}


def test_an_attack_without_a_working_control_acquits_nobody() -> None:
    shown = first_table(leaderboard.render(table(cells({"none": {"ig": SAFE}, "x": {"ig": SAFE}}))))
    assert {row["verdict"] for row in shown} == {"no control"}


def test_the_most_that_any_attack_identified_is_shown() -> None:
    def known(attack: str, values: Sequence[float]) -> list[Result]:
        one = result(attack=attack)
        return [one.model_copy(update={"metrics": {**one.metrics, "identification": measure(values)}})]

    text = leaderboard.render(table({("none", "ig"): known("ig", (0, 0, 0, 0)), ("none", "dlg"): known("dlg", (1, 0, 1, 1))}))
    assert first_table(text)[0]["identified"] == "75 % [30, 95]"
    strange = leaderboard.render(table({("none", "ig"): known("ig", (5, 0, 0, 0))}))
    assert first_table(strange)[0]["identified"] == "not tested"


def test_others_and_what_is_missing_are_said_in_the_first_table() -> None:
    found = table(cells({"none": {"ig": LEAKING, "dlg": LEAKING}, "x": {"ig": SAFE, "dlg": LEAKING}, "y": {"ig": SAFE}}))
    theirs = replace(found, others={found.results["x", "dlg"][0].case_id: ()})
    shown = {row["defense"].strip("`"): row for row in first_table(leaderboard.render(theirs))}
    assert (shown["x"]["verdict"], shown["x"]["worst case, dB"][-11:]) == ("leaks, by others", ", by others")
    assert shown["y"]["worst case, dB"].endswith(", 1 of 2 attacks")


def test_nothing_of_what_was_measured_is_lost() -> None:
    text = leaderboard.render(tables(cost_results())[0])
    titles = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    below = ["Every attack", "Cost", "Flags", "Attacks on undefended gradients", "Victims past the threshold", "Measured with"]
    assert titles == ["Defenses", *below]
    assert every_attack(text)[0][:5] == ["defense", "worst case", "`auto`", "gap, dB", "`ig`"]
    for said in ("torch 2.6", "MSE 0.06, PSNR 12", "iterations=100", "few-victims", "accuracy", "front", "bytes"):
        assert said in text, said


# The picture


def test_the_picture_has_a_title_a_description_and_a_line_for_each_attack() -> None:
    found = table(cells({"none": {"ig": LEAKING, "dlg": LEAKING}, DEFENSE: {"ig": SAFE, "dlg": LEAKING}}))
    root = ET.fromstring(picture(found))
    assert root.get("role") == "img"
    told = {root.find(f"{SVG}{name}").get("id"): root.findtext(f"{SVG}{name}") for name in ("title", "desc")}
    assert root.get("aria-labelledby").split() == list(told)
    assert told["title"].startswith("psnr_gain in dB of every attack on every defense, with 95 % intervals: photos, lenet")
    assert f"{DEFENSE}: leaks, worst case +9.00" in told["description"]
    texts = ["".join(text.itertext()) for text in root.iter(f"{SVG}text")]
    assert texts.count("worst case") == 2
    assert texts.count("ig") == texts.count("dlg") == 2
    bounds = measure(SAFE)
    assert f"+0.50 [{bounds.low:.2f}, {bounds.high:.2f}] holds" in texts
    assert "leaks past 3 dB" in texts
    style = root.findtext(f"{SVG}style")
    assert "prefers-color-scheme: dark" in style
    assert not re.search(r"(?:href|src|url)\W", picture(found))  # nothing is loaded


def test_names_in_the_picture_are_text() -> None:
    name = NASTY + "]]><script>alert(1)</script>&lt;\"'</text></svg>"
    found = table(cells({"none": {name: LEAKING}, name: {name: SAFE}}), dataset=name, model=name)
    root = ET.fromstring(picture(found))
    assert not root.findall(f".//{SVG}script")
    assert harmless(picture(found))
    text = leaderboard.render(found)
    assert re.search(r"!\[(?:[^\]\\]|\\.)*\]\(pictures/[\w.%-]+\)", text)
    assert {len(row) for row in rows(text.partition("![")[0])} == {6}


@pytest.mark.filterwarnings("ignore:.*:RuntimeWarning")
@pytest.mark.parametrize("values", [(1e308, 1e308, -1e308, 1e308), (0.0, 0.0, 0.0, 0.0), (1e-300,) * 4, (None, 1.0, 1.0, 1.0)])
def test_any_value_can_be_drawn(values: tuple[float | None, ...]) -> None:
    strange = Measure(mean=0.0, low=None, high=None, values=values)
    one = result().model_copy(update={"metrics": {"psnr_gain": strange}})
    text = picture(table({("none", "ig"): [one], (DEFENSE, "ig"): [one]}))
    assert ET.fromstring(text).tag == f"{SVG}svg"
    assert not re.search(r'"(?:nan|inf|-inf)"', text)


def test_a_picture_of_very_many_lines_says_what_it_leaves_out() -> None:
    found = table(cells({f"d{number}": {f"a{which}": SAFE for which in range(50)} for number in range(8)}))
    assert "and 3 more defenses: see the tables" in picture(found)


def test_the_same_results_give_the_same_bytes_in_whatever_order() -> None:
    found = cells({name: {"ridge": LEAKING, "auto": SAFE, "ig": LEAKING} for name in ("none", DEFENSE, "clipping(max_norm=1.0)")})
    found |= {("x", "ig"): [result(SAFE, defense="x")]}
    first = leaderboard.files(table(found))
    for seed in range(5):
        keys = random.Random(seed).sample(list(found), len(found))
        assert leaderboard.files(table({key: found[key] for key in keys})) == first
    # A cell that failed is the same whether its error is a result, or all that a table of stored results has.
    failed = {**found, ("x", "dlg"): [result(error="boom", defense="x", attack="dlg")]}
    assert leaderboard.files(table(failed)) == leaderboard.files(table(found, errors={("x", "dlg"): "boom"}))


def test_columns_are_written_as_wide_as_they_must_be() -> None:
    assert markdown_table([{"a": "x", "b": 1}, {"a": "long text", "c": ""}]).splitlines() == [
        "| a         | b   | c   |",
        "|:----------|:----|:----|",
        "| x         | 1   |     |",
        "| long text |     |     |",
    ]


# The check


def test_what_the_command_wrote_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert check(folder) == 0
    assert capsys.readouterr().out == "2 leaderboards and their pictures follow from the results\n"
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "README.md").write_text("# By hand\n")
    assert check(folder) == 0


def test_a_changed_digit_fails_with_a_diff(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = folder / "photos-lenet-victims=8.md"
    board.write_text(board.read_text().replace("+5.0 % [3.4, 6.6]", "+5.0 % [3.4, 6.5]", 1))
    capsys.readouterr()
    assert check(folder) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{board}: does not follow from the results."
    assert told[1:3] == ["--- committed", "+++ from the results"]
    minus, plus = told[4:6]
    assert minus.startswith("-| `pruning(rate=0.9)` | leaks |") and minus.endswith("+5.0 % [3.4, 6.5] |")
    assert plus == f"+{minus[1:].replace('6.5]', '6.6]')}"
    assert told[-2].endswith(f"gitbench leaderboard {folder} --out {folder}")
    assert len(told) == 9


def test_a_changed_picture_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawn = folder / "pictures" / "photos-lenet-victims=8.svg"
    drawn.write_text(drawn.read_text().replace(" holds</text>", " leaks</text>"))
    capsys.readouterr()
    assert check(folder) == 1
    told = capsys.readouterr().out
    assert told.startswith(f"{drawn}: does not follow from the results.\n--- committed")
    drawn.unlink()
    assert check(folder) == 1
    assert f"{drawn}: missing, though there are results for it." in capsys.readouterr().out


def test_a_changed_result_fails(folder: Path) -> None:
    one = result((7.9, 9.0, 10.0, 9.0), model="mlp", at="2025-02-01T00:00:00+00:00")
    Store(folder).save(one)
    assert check(folder) == 1
    assert main(["leaderboard", str(folder), "--out", str(folder)]) == 0
    assert check(folder) == 0


def test_a_missing_table_and_a_table_without_results_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = folder / "photos-mlp-victims=4.md"
    board.rename(other := folder / "photos-resnet.md")
    capsys.readouterr()
    assert check(folder) == 1
    told = capsys.readouterr().out
    assert f"{board}: missing, though there are results for it." in told
    assert f"{other}: no result gives this table. Add its results, or delete it and its picture." in told


def test_what_a_checkout_or_a_formatter_changes_is_no_difference(folder: Path) -> None:
    board = folder / "photos-mlp-victims=4.md"
    text = re.sub(r" +\|", " |", board.read_text())
    board.write_bytes(re.sub(r":-+\|", ":--|", text).replace("\n", "\r\n").encode())
    assert check(folder) == 0


def test_bad_input_is_no_pass(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = folder / "cases" / f"{'a' * 20}.json"
    broken.write_text("{}")
    assert check(folder) == 2
    assert f"Expected a result of gitbench in {broken}, found something else." in capsys.readouterr().err
    assert main(["leaderboard", str(tmp_path / "none"), "--check"]) == 2
    broken.unlink()
    assert main(["leaderboard", str(folder), "--out", str(folder), "--check", "--entries", str(tmp_path / "nothing")]) == 2


def test_a_diff_is_cut_to_what_is_useful_and_prints_no_controls(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    board = folder / "photos-lenet-victims=8.md"
    board.write_text(
        "<!-- gitbench-cells: [] -->\n" + "".join(f"{number} {NASTY.replace(chr(0xD800), '')} {'long ' * 500}\n" for number in range(100))
    )
    capsys.readouterr()
    assert check(folder) == 1
    told = capsys.readouterr().out
    assert harmless(told)
    assert len(told.splitlines()) < 50
    assert re.search(r"^\.\.\. and \d+ more lines$", told, flags=re.MULTILINE)
    board.write_bytes(b"\xff\xfe")
    assert check(folder) == 1


def test_a_difference_far_into_a_row_is_shown_with_the_rows_name(tmp_path: Path) -> None:
    found = table(cells({"none": {f"attack_{number}": LEAKING for number in range(40)}}))
    leaderboard.write(found, tmp_path, [])
    (board,) = tmp_path.glob("*.md")
    text = board.read_text()
    place = text.index("## Every attack")
    changed = text[place:].replace("+9.00 [", "+9.01 [")
    board.write_text(text[:place] + changed)
    told = differences([found], tmp_path)
    assert any(line.startswith("-| `none` |") and "+9.01" in line and len(line) < 170 for line in told)


def test_cells_that_were_not_granted_are_kept_by_the_command(tmp_path: Path) -> None:
    found = table(not_applicable={("none", "auto"): "needs public", (DEFENSE, "auto"): "needs public"})
    path, refused = leaderboard.write(found, tmp_path, [])
    assert refused is None
    before = path.read_text()
    stored = canonical(table())  # results do not tell of what was not run
    assert differences([stored], tmp_path) == []
    assert leaderboard.write(stored, tmp_path, []) == (path, None)
    assert path.read_text() == before
    # A result of such an attack counts, whatever the comment says.
    tried = table({**table().results, ("none", "auto"): [result(attack="auto")]})
    assert leaderboard.completed(tried, path).not_applicable == {}
    path.write_text(before.replace('[["none", "auto"]', '[["none", 3], 5, ["none"]', 1))
    assert not leaderboard.completed(stored, path).not_applicable.keys() - {(DEFENSE, "auto")}


@pytest.mark.usefixtures("warm")
def test_a_run_and_the_command_write_the_same(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run_matrix(bench, "--gitbench-attack", "ridge", "--gitbench-attack", "ig(iterations=5)")
    monkeypatch.chdir(bench.path)
    assert main(["leaderboard", "--check"]) == 0
    written = {path.name: path.read_bytes() for path in Path("leaderboards").rglob("*.*")}
    assert len(written) == 2
    shutil.rmtree("leaderboards")
    assert main(["leaderboard"]) == 0
    assert {path.name: path.read_bytes() for path in Path("leaderboards").rglob("*.*")} == written
