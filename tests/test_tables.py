"""Leaderboards: what they show, what they keep, and that no name breaks them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gitbench.core.errors import StoreError
from gitbench.judge.statistics import interval
from gitbench.publish import leaderboard
from gitbench.publish.table import tables
from gitbench.store.folder import Store
from gitbench.store.result import Measure, Result, Utility
from results import LEAKING, SAFE, SETTING, every_attack, result, rows, table


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


def test_a_leaderboard_shows_the_numbers_and_what_they_mean() -> None:
    text = leaderboard.render(table(not_applicable={("none", "ridge"): "needs parameters"}))
    assert text.startswith("# photos · lenet\n")
    head, _, first, second, *_ = every_attack(text)
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
    assert every_attack(weak)[2][4].endswith("no control")
    broken = leaderboard.render(
        table({("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): [result(error="boom", defense="pruning(rate=0.9)")]})
    )
    assert [row[4] for row in every_attack(broken) if row[0] == "`pruning(rate=0.9)`"] == ["error"]
    unknown = leaderboard.render(
        table({("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): [result((1.0, None), defense="pruning(rate=0.9)")]})
    )
    assert [row[4] for row in every_attack(unknown) if row[0] == "`pruning(rate=0.9)`"] == ["unknown"]


def test_what_a_defense_leaves_to_learn_from_stands_beside_what_leaks() -> None:
    def useful(seed: int, cosine: float | None, descent: float | None) -> Result:
        whole = Measure(mean=1.0, low=1.0, high=1.0, values=(1.0,))
        told = Utility(alignment=whole, cosine=cosine, descent=descent, norm_ratio=1.0, equal=0.0, random=False)
        return result(SAFE, defense="pruning(rate=0.9)", seed=seed).model_copy(update={"utility": told})

    defended = [useful(0, 0.5, 0.9), useful(1, 0.7, 0.7)]
    text = leaderboard.render(
        table({("none", "ig"): [result()], ("pruning(rate=0.9)", "ig"): defended, ("pruning(rate=0.9)", "lti"): defended})
    )
    heading = every_attack(text)[0]
    (row,) = (row for row in every_attack(text) if row[0] == "`pruning(rate=0.9)`")
    assert {name: row[heading.index(name)] for name in ("cosine", "descent")} == {"cosine": "0.60", "descent": "80 %"}
    assert "What is left to learn from" in text
    unknown = leaderboard.render(table({("pruning(rate=0.9)", "ig"): [useful(0, None, None)]}))
    assert "unknown" in unknown.splitlines()[next(i for i, line in enumerate(unknown.splitlines()) if "descent" in line) + 2]
    assert "descent" not in leaderboard.render(table())


def test_an_undefended_cell_is_never_shown_as_holding() -> None:
    assert "holds" not in leaderboard.render(table({("none", "ig"): [result(SAFE)]}))


NASTY = "x|y`z\n<img src=x onerror=alert(1)>*_[a](b)#"


def test_names_cannot_break_the_table() -> None:
    results = {(defense, attack): [result()] for defense in ("none", NASTY) for attack in ("ig", NASTY)}
    text = leaderboard.render(table(results, dataset=NASTY, model=NASTY))
    assert {len(row) for row in rows(text.partition("![")[0])} == {6}
    defenses = every_attack(text)
    found = rows(text[text.index("## Flags") :])
    assert {len(row) for row in defenses} == {8}
    flags = found[: found.index(next(row for row in found if row[0] == "attack"))]
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
    with pytest.raises(StoreError, match=r"Cannot write .*boards/pictures/photos-lenet"):
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
    found_tables = tables(list(store.results()))
    assert [(found.model, found.conditions["threat"], found.conditions["seeds"]) for found in found_tables] == [
        ("lenet", "server", 2),
        ("lenet", "upper-bound", 1),
        ("mlp", "server", 1),
    ]
    assert set(found_tables[0].results) == {("none", "ig"), ("clipping", "ig")}
    # Of two measurements of one cell the later counts; errors do not.
    assert [list(found.metrics["psnr_gain"].values) for found in found_tables[0].results["none", "ig"]] == [list(SAFE), list(LEAKING)]
    for found in found_tables:
        assert leaderboard.render(found)
    assert tables([]) == []
