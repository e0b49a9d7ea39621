"""The comment on a pull request: nothing is passed over in silence, and no name breaks it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gitbench import cli
from gitbench.publish.comment import markdown
from gitbench.publish.comparison import compare
from records import ENVIRONMENT, VALUES, cells, record, result, stored


def test_the_comment_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored(tmp_path / "a", result(VALUES), result(VALUES, attack="ig"), result(VALUES, attack="dlg"))
    after = stored(tmp_path / "b", result([value + 2 for value in VALUES]), result(VALUES, attack="ig"), result(VALUES, attack="lti"))
    assert cli.main(["compare", str(before), str(after)]) == 1
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == "### gitbench: ❌ **1 of 2 cells leaks more than before**; 1 missing, 1 new"
    assert "| ❌ `photos/mlp/pruning(rate=0.5)/ridge` | +2.00 [2.00, 2.00] dB | +2.00 [2.00, 2.00] dB | 6 | leaks |" in lines
    assert "- `photos/mlp/pruning(rate=0.5)/dlg (server, quick)`" in lines[lines.index("**Missing now:**") :]
    assert "- `photos/mlp/pruning(rate=0.5)/lti (server, quick)`" in lines[lines.index("**New, with nothing to compare with:**") :]
    assert lines.index("<details><summary>1 unchanged</summary>") < next(i for i, line in enumerate(lines) if "/ig`" in line)
    assert cli.main(["compare", str(before), str(after), "--tolerance", "2.5"]) == 0
    assert capsys.readouterr().out.startswith("### gitbench: ✅ **No cell leaks more than before** (2 compared)")


def test_the_comment_of_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [stored(tmp_path / name, result(VALUES)) for name in ("before", "after")]
    assert cli.main(["compare", *map(str, folders)]) == 0
    assert capsys.readouterr().out.startswith("### gitbench: ✅ **No cell leaks more than before** (1 compared)\n\nChanges are paired")


def test_a_run_is_not_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path, result(VALUES))
    assert cli.main(["compare", str(folder), f"{folder}/."]) == 2
    assert "Expected two runs to compare, got" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_accepts_nothing_or_all_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tolerance: str
) -> None:
    folder = stored(tmp_path, result(VALUES))
    assert cli.main(["compare", str(folder), str(folder), f"--tolerance={tolerance}"]) == 2
    assert "Expected a tolerance of zero or more dB" in capsys.readouterr().err


def test_the_comment_names_what_else_differs() -> None:
    then = record([1.0, 2.0, 3.0], verdict="holds")
    now = record(
        [1.0, 2.0, 3.1],
        environment=ENVIRONMENT.model_copy(update={"torch": "2.8"}),
        code={"defense": "cc", "attack": "bb"},
        settings={"limit": "64"},
    )
    text = markdown(compare(cells(then), cells(now)))
    assert "| `photos/lenet/pruning(rate=0.5)/ridge` | +0.03 [-0.17, 0.24] dB | +0.03 [-0.17, 0.24] dB | 3 | holds → **leaks** |" in text
    assert "- torch: 2.7 -> 2.8" in text.replace("\\>", ">")
    assert "code or files of the defense pruning(rate=0.5)" in text
    assert "ridge: limit: 2048 -" in text


def test_the_comment_says_that_a_control_got_weaker() -> None:
    then, now = record([9.0, 8.0, 9.5, 8.5], defense="none"), record([5.0, 4.0, 5.5, 4.5], defense="none")
    assert "**Undefended, these attacks reach less than before:** `lenet/ridge`" in markdown(compare(cells(then), cells(now)))


def test_nothing_in_common_is_no_pass_in_silence() -> None:
    found = compare(cells(record([1.0, 2.0])), cells(record([1.0, 2.0], attack="ig")))
    assert found.failed
    assert markdown(found).startswith("### gitbench: ❌ **Nothing could be compared**; 1 missing, 1 new")


def test_undefended_cells_in_common_alone_are_no_pass() -> None:
    control = record([1.0, 2.0, 3.0], defense="none")
    found = compare(cells(control, record([1.0, 2.0, 3.0])), cells(control))
    assert found.failed
    assert markdown(found).startswith("### gitbench: ❌ **No defended cell could be compared**; 1 missing")
    assert not compare(cells(control), cells(control)).failed  # there is none


def test_names_cannot_break_the_comment() -> None:
    name = "evil.py:X(a='|`</details>@all\\n')"
    then = record([1.0, 2.0, 3.0], defense=name)
    text = markdown(compare(cells(then), cells(record([9.0, 10.0, 12.0], defense=name), record([1.0], defense=name, attack="ig"))))
    assert "``" not in text
    assert all(line.count("`") % 2 == 0 for line in text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith("| ❌")]
    assert [line.replace("\\|", "").count("|") for line in rows] == [6]


def test_a_long_comment_is_cut_below_githubs_limit() -> None:
    many = [record([1.0, 2.0, 3.0], attack=f"ig(iterations={number})") for number in range(900)]
    text = markdown(compare(cells(*many), cells(*many)))
    assert len(text) < 65_536
    assert text.endswith("(cut: the rest is what gitbench compare prints)\n")
