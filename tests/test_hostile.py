"""Hostile and broken input: refused quickly, with a message that can be read, and nothing of it is obeyed."""

from __future__ import annotations

import contextlib
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gitbench.core.errors import ConfigError, GitbenchError, SpecError, nearest
from gitbench.core.spec import KINDS, Kind, parse_spec
from gitbench.core.text import printable, shown
from gitbench.identity.loading import check_spec
from gitbench.run.config import make_config
from gitbench.run.matrix import make_cells
from hostile import CONTROLS, NASTY, harmless, names, quickly, values
from pytest_gitbench.options import read_settings

# Text


@given(text=names)
@example(text=NASTY)
def test_what_is_printed_has_no_controls_and_what_is_plain_stays(text: str) -> None:
    found = printable(text)
    assert harmless(found)
    found.encode()
    if harmless(text):
        assert found == text
    assert "\n" not in printable(text, keep="")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\x1bb\n", r"'a\x1bb\n'"),
        (5, "5"),
        ("x" * 300, f"'{'x' * 199}... (302 characters)"),
        (10**5000, "some int"),
        (eval("[" * 80 + "]" * 80), "[" * 80 + "]" * 80),
    ],
    ids=["control", "number", "long", "digits", "nested"],
)
def test_values_are_shown_in_one_short_line(value: object, expected: str) -> None:
    assert shown(value) == expected


def test_a_value_that_is_nested_too_deep_is_named() -> None:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    assert shown(value) == "some list"


def test_the_nearest_of_a_huge_name_is_not_searched() -> None:
    with quickly():
        assert nearest("x" * 10_000_000, ["ig"]) == " Valid: ig."


# SPECs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "text",
    ["x" * 10_000_000, " " * 10_000_000, "x(" + "[" * 5_000_000 + "]" * 5_000_000 + ")", "x|" * 5_000_000, "(" * 4000, "x(a=" + "{" * 4000],
    ids=["long", "blank", "nested", "pieces", "open", "braces"],
)
def test_huge_specs_are_refused_quickly(kind: Kind, text: str) -> None:
    with quickly(), pytest.raises(SpecError) as caught:
        parse_spec(kind, text)
    assert len(str(caught.value)) < 20_000


@pytest.mark.parametrize("control", CONTROLS, ids=ascii)
@pytest.mark.parametrize("text", ["{}.py:Mine", "a/{}b.py:Mine", "{}", "ig{}x"])
def test_names_with_controls_are_refused_and_shown_escaped(control: str, text: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse_spec("defense", text.format(control))
    assert harmless(str(caught.value))


def test_a_file_with_an_invisible_name_is_told_why() -> None:
    with pytest.raises(SpecError, match=r"expected a name without control or other invisible characters, got 'mi\\u202ene\.py:Mine'"):
        parse_spec("defense", "mi\u202ene.py:Mine")


@settings(max_examples=150)
@given(kind=st.sampled_from(KINDS), text=names | names.map(lambda name: f"{name}.py:X") | names.map(lambda name: f"x(a={name!r})"))
def test_whatever_parses_has_a_harmless_name(kind: Kind, text: str) -> None:
    try:
        spec = parse_spec(kind, text)
    except SpecError as error:
        assert harmless(str(error))
        return
    assert harmless(spec.label)
    assert "\n" not in spec.label
    with contextlib.suppress(SpecError):
        check_spec(spec)


@pytest.mark.parametrize(
    "text",
    [
        "x(a=open('{}', 'w'))",
        "x(a=[open('{}', 'w')])",
        "x(**open('{}', 'w'))",
        "x(a=f\"{{open('{}', 'w')}}\")",
        "x(a=(lambda: open('{}', 'w'))())",
    ],
)
def test_no_spec_is_executed(text: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    with pytest.raises(SpecError):
        parse_spec("attack", text.format(marker))
    assert not marker.exists()


def test_checking_a_spec_executes_neither_file_nor_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = tmp_path / "executed"
    for name in ("hostile.py", "gitbench_test_hostile.py"):
        (tmp_path / name).write_text(f"open({str(marker)!r}, 'w')\nclass Mine: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    for text in (f"{tmp_path}/hostile.py:Mine", "gitbench_test_hostile:Mine"):
        make_cells(make_config({}, {"defense": [text], "attack": ["ig"], "model": ["lenet"]}))
    assert not marker.exists()


def test_a_source_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine: ...")

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(SpecError, match=r"Cannot read .*mine\.py: .*Permission denied"):
        check_spec(parse_spec("defense", f"{file}:Mine"))


@pytest.mark.parametrize("source", ["(" * 100_000, "-" * 100_000 + "1", "x" * 3_000_000, "\x00", "class Mine:\n" + " pass\n" * 30_000])
def test_a_hostile_source_is_refused_or_read_quickly(tmp_path: Path, source: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with quickly(10), contextlib.suppress(SpecError):
        check_spec(parse_spec("defense", f"{file}:Mine"))


@pytest.mark.parametrize("text", [f"x(a='{chr(0xE0001) * 1000}')", f"x(a=0x{'f' * 4000})"])
def test_a_spec_that_grows_when_written_out_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"Expected the SPEC of an attack of at most 4096 characters when written out, got more"):
        parse_spec("attack", text)


# Options


keys = st.sampled_from(sorted(make_config({}, {}).model_dump())) | names


@settings(max_examples=300)
@given(table=st.dictionaries(keys, values, max_size=4))
@example(table={"results": "a\x00b"})
@example(table={"leaderboard": "\x1b[31m"})
@example(table={"threads": 10**30})
@example(table={"seeds": 10**9})
@example(table={"threshold": {"psnr": 10**5000}})
@example(table={"threshold": {"\x1b": []}})
@example(table={"known_leaks": ["[" * 1000, "*" * 1000, "[!]"]})
@example(table={"profile": NASTY})
@example(table={"attack": [NASTY] * 3})
def test_any_table_is_a_config_or_a_config_error(table: dict[str, object]) -> None:
    try:
        config = make_config(table, {})
    except ConfigError as error:
        assert harmless(str(error))
        assert len(str(error)) < 3000
        return
    if config.seeds <= 10:
        with contextlib.suppress(GitbenchError):
            make_cells(config)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"results": "a\x00b"}, r"The option results is 'a\\x00b': .*expected a path without control characters"),
        ({"baseline": "\x1b[31m"}, r"The option baseline is .*expected a path without control characters"),
        ({"seeds": 10**9}, r"The option seeds is 1000000000: .*less than or equal to 10000"),
        ({"threads": 10**9}, r"The option threads is 1000000000: .*less than or equal to 1024"),
        ({"threshold": {"psnr": 10**5000}}, r"Expected a number as the threshold of psnr, got 'some int'"),
        ({"victims": "9" * 10_000}, r"The option victims is '9+\.\.\. \(10002 characters\): "),
        ({"x" * 1_000_000: 1}, r"has no option 'x+\.\.\. \(1000002 characters\)\. Valid: attack"),
        ({"device": NASTY}, r"The option device is '\\x1b\[31m"),
        ({"timeout": "1e999"}, r"The option timeout is '1e999'"),
    ],
)
def test_hostile_options_are_named_briefly(table: dict[str, object], message: str) -> None:
    with quickly(), pytest.raises(ConfigError, match=message) as caught:
        make_config(table, {})
    assert len(str(caught.value)) < 1000
    assert harmless(str(caught.value))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"tool = 5", r"Expected \[tool\.gitbench\] in .*pyproject\.toml to be a table, got 5"),
        (b"[tool]\ngitbench = [1]", r"to be a table, got \[1\]"),
        (b"[[tool.gitbench]]\nvictims = 1", r"to be a table, got \[\{'victims': 1\}\]"),
        (b"[tool.gitbench\n", r"Cannot read .*pyproject\.toml: "),
        (b"\xff\xfe", r"Cannot read .*pyproject\.toml: .*utf-8"),
        (b"a = " + b"[" * 100_000, r"Cannot read .*pyproject\.toml: "),
        (b"a = " + b"9" * 5000, r"Cannot read .*pyproject\.toml: "),
        (b"a = 2021-13-45", r"Cannot read .*pyproject\.toml: "),
        (b"\x00", r"Cannot read .*pyproject\.toml: "),
    ],
)
def test_a_broken_pyproject_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "pyproject.toml"
    path.write_bytes(content)
    with quickly(5), pytest.raises(ConfigError, match=message) as caught:
        read_settings(path)
    assert harmless(str(caught.value))


def test_a_pyproject_that_is_a_folder_or_missing(tmp_path: Path) -> None:
    assert read_settings(tmp_path / "pyproject.toml") == {}
    with pytest.raises(ConfigError, match=r"Cannot read .*: .*Is a directory"):
        read_settings(tmp_path)


@given(
    content=st.binary(max_size=80)
    | st.lists(st.sampled_from(["[tool.gitbench]\n", "victims", "=", "3", "[", "]", "'", '"', "\n", "{", "}", ".", "tool"])).map(
        lambda parts: "".join(parts).encode()
    )
)
def test_any_bytes_are_settings_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    try:
        found = read_settings(path)
    except ConfigError as error:
        assert harmless(str(error))
        return
    assert isinstance(found, dict)
    tomllib.loads(content.decode())


# The terminal


def test_a_defense_cannot_drive_the_terminal(warm: None, pytester: pytest.Pytester, tiny_npz: Path) -> None:
    pytester.makepyprojecttoml(
        f"[tool.gitbench]\ndataset = \"npz(path={str(tiny_npz)!r})\"\nmodel = 'mlp'\nattack = 'ridge'\ndefense = ['mine.py:Mine']\nvictims = 2\n"
    )
    pytester.makepyfile(
        mine="""
        import gitbench
        class Mine(gitbench.Defense):
            def protect(self, update, *, generator):
                raise RuntimeError("first line\\nsecond \\x1b[31m\\u202e line")
        """
    )
    run = pytester.runpytest_inprocess("--gitbench", "--color=no")
    run.assert_outcomes(failed=1)
    text = "\n".join(run.outlines)
    assert "first line\nsecond \\x1b[31m\\u202e line" in text
    assert "not written, nothing was measured, every cell ended in an error" in text
    assert harmless(text)
