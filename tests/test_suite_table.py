"""The table of a suite: published, ours and the difference, as results make it; how it is rebuilt and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from gitbench.cli import main
from gitbench.publish import suite_page
from gitbench.publish.suite_table import SuiteTable, difference, suite_table
from gitbench.run.suite_files import suite_files
from gitbench.run.suite_plan import SuiteRun
from gitbench.run.suite_record import load_run, save_run
from gitbench.store.folder import Store
from gitbench.store.result import Result
from hostile import NASTY, harmless
from results import measure, result, rows
from suites import tiny_suite, write_suite

DATA = "npz(path='tiny.npz')"
RUN = SuiteRun(suite="tiny", data={"tiny": DATA}, public={"tiny": 96}, profile="quick", victims=4, seeds=1)
OURS = Path(__file__).parents[1] / "leaderboards"
NOISE = "gaussian_noise(std=1.0)"


def measured(values: tuple[float, ...] = (0.001, 0.002, 0.003, 0.002), **case: object) -> Result:
    given = {"dataset": DATA, "model": "mlp(hidden=(24,))", "attack": "ridge", **case}
    found = result(values, metric="mse", **given)
    return found.model_copy(update={"metrics": {"mse": measure(values), "psnr": measure([20.0 + value for value in values])}})


def table(folder: Path, *results: Result, run: SuiteRun = RUN, changes: tuple[tuple[str, str], ...] = ()) -> SuiteTable:
    return suite_table(tiny_suite(folder, *changes), run, results)


def lines_of(text: str) -> list[list[str]]:
    head, _, *found = rows(text)
    return [head, *found]


# The table


@pytest.mark.parametrize(
    ("ours", "published", "text"),
    [(0.0009, "0.010", "-0.009"), (0.0102, "0.010", "0.000"), (31.254, "20.38", "+10.87"), (20.377, "20.38", "0.00"), (3.2, "4", "-1")],
)
def test_the_difference_has_the_digits_that_were_published(ours: float, published: str, text: str) -> None:
    assert difference(ours, Decimal(published)) == text


def test_published_ours_and_the_difference_stand_beside_each_other(tmp_path: Path) -> None:
    text = suite_page.render(table(tmp_path, measured(), measured((0.06,) * 4, defense=NOISE)))
    head, *found = lines_of(text)
    assert head == ["std", "attack", "measured here", "metric", "published", "ours, reduced [95 %]", "difference"]
    assert found[0][:5] == ["0", "RIDGE", "`ridge` on `none`", "MSE ↓", "0.010"]
    assert found[0][5].startswith("0.0020 [")
    assert found[0][6] == "-0.008"
    assert found[1][3:] == ["PSNR dB ↑", "20.50", found[1][5], "-0.50"]  # PSNR with PSNR, never made of MSE
    assert found[2][4:] == ["0.05", "0.0600 [0.0600, 0.0600]", "+0.01"]
    assert found[3][5:] == ["not measured", ""]
    assert found[4][5:] == ["not available: there is no such attack", ""]
    again = "--gitbench-suite tiny --gitbench-dataset \"tiny=npz(path='tiny.npz')\" --gitbench-profile quick --gitbench-victims 4 --gitbench-seeds 1`"
    assert again in text
    assert "Network: theirs is wider." in text
    assert "RIDGE is 0.010 here and 0.020 in Table 2." in text
    assert "`ridge`, tiny, MLP: 1.5 s to learn and 2.5 s to attack a case; iterations=100" in text
    assert "Linux x86" in text


def test_a_reduced_run_says_in_what_and_a_full_one_is_none(tmp_path: Path) -> None:
    found = table(tmp_path, measured())
    marks = (
        "profile quick instead of paper",
        "4 victims a seed instead of 12",
        "1 seed instead of 2",
        "96 public images of tiny instead of 100",
    )
    assert found.reduced == marks
    told = suite_page.terminal_lines(found)
    assert f"REDUCED: {', '.join(marks)}" in told
    assert "Partial: 1 of 4 lines are measured" in told
    assert any("ours, reduced [95 %]" in line for line in told)
    limited = measured().model_copy(update={"settings": {"limit": "50"}})
    assert table(tmp_path, limited).reduced == (*marks, "RIDGE learns from 50 images instead of 100")
    full = RUN.model_copy(update={"profile": "paper", "victims": 12, "seeds": 2, "public": {"tiny": 100}})
    assert table(tmp_path, run=full).reduced == ()
    assert "Budget: profile paper, 12 victims a seed, 2 seeds, the suite's own (paper)" in suite_page.terminal_lines(
        table(tmp_path, run=full)
    )


def test_with_fewer_images_than_a_line_is_about_nothing_is_compared(tmp_path: Path) -> None:
    line = lines_of(suite_page.render(table(tmp_path, measured(attack="ridge(limit=97)"))))[4]
    assert line[5].startswith("0.0020 [")
    assert line[6] == "not compared: 96 of 97 public images"
    more = RUN.model_copy(update={"public": {"tiny": 97}})
    assert lines_of(suite_page.render(table(tmp_path, measured(attack="ridge(limit=97)"), run=more)))[4][6] == "-0.02"


def test_what_failed_or_ran_out_of_time_is_no_figure(tmp_path: Path) -> None:
    late = measured().model_copy(update={"flags": ("timed-out",)})
    for one, word in ((late, "timed out"), (result(error="boom", **dict(late.case) | {"victims": 4}), "error")):
        found = table(tmp_path, one)
        assert lines_of(suite_page.render(found))[1][5:] == [word, ""]
        assert any(line.startswith(f"{word}: tiny, MLP (RIDGE at 0)") for line in suite_page.terminal_lines(found))


def test_results_of_other_runs_do_not_count(tmp_path: Path) -> None:
    others = [
        measured(dataset="photos"), measured(threat="eavesdropper"), measured(profile="standard"), measured(seed=1),
        measured((0.1, 0.2)), measured(batch_size=4), measured(rounds=2), measured(client="fedavg(steps=2)"),
    ]  # fmt: skip
    assert not table(tmp_path, *others).measured
    older = measured((0.9,) * 4).model_copy(update={"finished_at": "2024-01-01T00:00:00+00:00"})
    assert "0.0020 [" in suite_page.render(table(tmp_path, measured(), older))


def test_a_line_needs_all_its_seeds(tmp_path: Path) -> None:
    run = RUN.model_copy(update={"seeds": 2})
    assert not table(tmp_path, measured(), run=run).measured
    assert len(table(tmp_path, measured(), measured(seed=1), run=run).measured) == 1


def test_what_strangers_wrote_is_text(tmp_path: Path) -> None:
    words = "".join(char for char in NASTY if char.isprintable())
    change = (('"Network: theirs is wider."', json.dumps(words)), ('row = "1"', f"row = {json.dumps('a|b`*')}"))
    found = table(tmp_path, measured(), changes=change)
    text = suite_page.render(found)
    assert harmless(text)
    assert "<img" not in text.replace("\\<img", "")
    assert {len(line) for line in rows(text)} == {7}


# On disk


def test_a_table_is_not_overwritten_by_less(tmp_path: Path) -> None:
    both = table(tmp_path, measured(), measured(defense=NOISE))
    path, refused = suite_page.write(both, tmp_path)
    assert (path, refused) == (tmp_path / "suites" / "tiny.md", None)
    before = path.read_bytes()
    assert (
        "not measured here (tiny/mlp(hidden=(24,))/fedsgd/1/1/gaussian_noise(std=1.0)/ridge)"
        in suite_page.write(table(tmp_path, measured()), tmp_path)[1]
    )
    other = table(tmp_path, measured(), measured(defense=NOISE), run=RUN.model_copy(update={"public": {"tiny": 97}}))
    assert "a run with other options (profile quick, 4 victims" in suite_page.write(other, tmp_path)[1]
    assert suite_page.write(table(tmp_path), tmp_path)[1] == "nothing was measured"
    assert path.read_bytes() == before
    assert suite_page.write(both, tmp_path)[1] is None


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command, in a folder with a run of the small suite."""
    monkeypatch.chdir(tmp_path)
    write_suite(tmp_path)
    store = Store(tmp_path / ".gitbench")
    store.save(measured())
    save_run(store, RUN)
    return lambda *arguments: main(["suite", *arguments])


def test_a_table_is_rebuilt_and_checked_without_measuring(kept: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert kept("tiny.toml") == 0
    assert "wrote leaderboards/suites/tiny.md" in capsys.readouterr().out
    path = Path("leaderboards/suites/tiny.md")
    before = path.read_text()
    assert kept("tiny.toml", "--check") == 0
    path.write_text(before.replace("-0.008", "-0.009"))
    capsys.readouterr()
    assert kept("tiny.toml", "--check") == 1
    told = capsys.readouterr().out
    assert "does not follow from the results" in told
    assert "-0.009" in told
    assert kept("tiny.toml") == 0
    assert path.read_text() == before


def test_without_a_run_or_a_table_the_command_says_what_to_do(kept: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert kept("git-table4") == 2
    assert "holds no run of the suite git-table4. Run it first: pytest --gitbench --gitbench-suite git-table4" in capsys.readouterr().err
    assert kept("git-table4", "--check") == 2
    assert "Expected the table of the suite git-table4" in capsys.readouterr().err
    Path(".gitbench/suites/tiny.json").write_text("{")
    assert kept("tiny.toml") == 2
    assert "Delete it, and run it again" in capsys.readouterr().err


def test_the_command_lists_suites_and_what_they_need(kept: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert kept() == 0
    told = capsys.readouterr().out
    assert set(suite_files()) == {line.partition(":")[0] for line in told.splitlines() if line.startswith("git-")}
    assert "--gitbench-dataset \"cifar10=npz(path='cifar10.npz')\"" in told


@pytest.mark.parametrize("name", sorted(path.stem for path in (OURS / "suites").glob("*.md")))
def test_a_committed_table_follows_from_its_results(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["suite", name, f"--results={OURS / 'suites'}", f"--out={OURS}", "--check"]) == 0, capsys.readouterr().out


def test_the_record_of_a_run_comes_back(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert load_run(store, "tiny") is None
    save_run(store, RUN)
    assert load_run(store, "tiny") == RUN
