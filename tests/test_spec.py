"""SPECs: what is typed is what is read, and every mistake is shown with the piece that is wrong."""

from __future__ import annotations

import keyword
import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gitbench.core.errors import SpecError
from gitbench.core.spec import KINDS, Kind, Part, canonical_json, parse_spec

literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)


keywords = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True).filter(lambda name: not keyword.iskeyword(name))


# Pieces that look like SPECs find more than random letters do.


PIECES = [
    *("name", "a=1", "(", ")", "'", '"', "|", "+", ",", "=", "[", "]", "{", "}", ":", ".py", "m.n:C", "\\", "#", "lambda", "**", "*"),
    *("-", "0x", "1e9", "\n", "\t", "é", "None", "'x'", "f''", "b''", "...", "==", ":=", "if", "for", "_", "\x00", "\ud800", " "),
]


spec_like = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


@pytest.mark.parametrize(
    ("text", "target", "arguments"),
    [
        ("ig", "ig", {}),
        ("ig()", "ig", {}),
        ("  ig ( iterations = 10 ) ", "ig", {"iterations": 10}),
        ("ig(iterations=1_000, lr=1e-3,)", "ig", {"iterations": 1000, "lr": 1e-3}),
        ("x(a=-1, b=+2.5, c=None, d=True)", "x", {"a": -1, "b": 2.5, "c": None, "d": True}),
        ("x(a='b', c=\"d'e\")", "x", {"a": "b", "c": "d'e"}),
        ("x(a=[1, (2,)], b={'c': [3]}, d=())", "x", {"a": [1, (2,)], "b": {"c": [3]}, "d": ()}),
        ("x(a='one' 'two')", "x", {"a": "onetwo"}),
        ("x(\n  a=1,\n  b=2,\n)", "x", {"a": 1, "b": 2}),
        ("package.module:Name(a=1)", "package.module:Name", {"a": 1}),
        ("module:Name", "module:Name", {}),
        ("path/to/file.py:Name(a=1)", "path/to/file.py:Name", {"a": 1}),
        ("../a folder/my-file.py:Name", "../a folder/my-file.py:Name", {}),
        ("/abs/größe.py:Name", "/abs/größe.py:Name", {}),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_one_part(kind: Kind, text: str, target: str, arguments: dict[str, object]) -> None:
    spec = parse_spec(kind, text)
    assert [part.target for part in spec.parts] == [target]
    assert dict(spec.parts[0].arguments) == arguments
    assert parse_spec(kind, str(spec)) == spec


@pytest.mark.parametrize(
    ("kind", "text", "targets"),
    [
        ("defense", "clipping(max_norm=1.0) | pruning(rate=0.9)", ["clipping", "pruning"]),
        ("defense", "a|b|c", ["a", "b", "c"]),
        ("attack", "ridge+ig", ["ridge", "ig"]),
        ("attack", "ridge(a=1) + ig(b=2)", ["ridge", "ig"]),
        ("defense", "x(a='|') | y(b=\"|)\")", ["x", "y"]),
        ("defense", "x(a=[1 | 2])", None),  # an operator within brackets is an expression, and no literal
        ("attack", "x(a='+(')+y", ["x", "y"]),
        ("attack", r"x(a='\'+')+y", ["x", "y"]),
        ("attack", "x(a=1+2j)", None),
        ("attack", "x(a=['+', {'+': '('}])+y(b='|')", ["x", "y"]),
        ("defense", "a+b", None),
        ("attack", "a|b", None),
        ("model", "a+b", None),
        ("dataset", "a|b", None),
    ],
)
def test_operators_split_outside_quotes_and_brackets(kind: Kind, text: str, targets: list[str] | None) -> None:
    if targets is None:
        with pytest.raises(SpecError):
            parse_spec(kind, text)
        return
    spec = parse_spec(kind, text)
    assert [part.target for part in spec.parts] == targets
    assert parse_spec(kind, str(spec)) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expected the SPEC of a defense, for example name.*got an empty string"),
        (" \n", "got an empty string"),
        ("x" * 5000, "at most 4096 characters, got 5000"),
        ("(a=1)", "expected name, package.module:Name or path/to/file.py:Name.*got '\\(a=1\\)'"),
        ("a |", "got ''"),
        ("| a", "got ''"),
        ("a | | b", "got ''"),
        ("two words", "got 'two words'"),
        ("9lives", "got '9lives'"),
        ("file.py", "got 'file.py'"),
        ("file.py:", "got 'file.py:'"),
        ("a:b:c", "got 'a:b:c'"),
        ("x(", "a bracket or quote is left open"),
        ("x(a='", "a bracket or quote is left open"),
        ("x)", "a bracket or quote is left open"),
        ("x(a=1))(", "is not name\\(key=value"),
        ("x(a=)", "is not name\\(key=value"),
        ("x(a=1 b=2)", "is not name\\(key=value"),
        ("x(a=1) y", "is not name\\(key=value"),
        ("x(1)", "arguments must be given as key=value"),
        ("x(*a)", "arguments must be given as key=value"),
        ("x(a=1)(b=2)", "arguments must be given as key=value"),
        ("x(a=1).b", "arguments must be given as key=value"),
        ("x(a=1) if y else z", "arguments must be given as key=value"),
        ("x(**{'a': 1})", r"\*\* is not allowed"),
        ("x(a=1, a=2)", "'a' is given twice"),
        ("x(a=b)", "value of 'a' must be a literal"),
        ("x(a=__import__('os').getcwd())", "value of 'a' must be a literal"),
        ("x(a=[b])", "value of 'a' must be a literal"),
        ("x(a=lambda: 1)", "value of 'a' must be a literal"),
        ("x(a=f'{1}')", "value of 'a' must be a literal"),
        ("x(a=2**8)", "value of 'a' must be a literal"),
        ("x(a=1e999)", "value of 'a' must be a literal"),
        ("x(a=1j)", "value of 'a' must be a literal"),
        ("x(a=b'x')", "value of 'a' must be a literal"),
        ("x(a={1})", "value of 'a' must be a literal"),
        ("x(a={1: 2})", "value of 'a' must be a literal"),
        ("x(a={[]: 2})", "value of 'a' must be a literal"),
        ("x(a=...)", "value of 'a' must be a literal"),
        ("x(a=" + "[" * 300 + "]" * 300 + ")", "is not name"),
        ("x(a=" + "-" * 3000 + "1)", "x"),
    ],
)
def test_bad_specs_are_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_spec("defense", text)


def test_the_message_shows_the_whole_text_and_the_piece() -> None:
    with pytest.raises(SpecError, match=r"defense 'pruning \| 7': .* got '7'"):
        parse_spec("defense", "pruning | 7")


def test_labels_leave_out_the_folder() -> None:
    spec = parse_spec("defense", "/home/me/mine.py:Mine(a=1) | none")
    assert spec.label == "mine.py:Mine(a=1) | none"
    assert str(spec) == "/home/me/mine.py:Mine(a=1) | none"
    assert parse_spec("attack", "ridge + ig").label == "ridge+ig"


@settings(max_examples=200)
@given(kind=st.sampled_from(KINDS), text=st.text(max_size=40) | spec_like)
@example(kind="defense", text="x(a='\ud800')")
@example(kind="attack", text="x(a='\\ud800')")
@example(kind="attack", text="x(a=1\x00)")
@example(kind="model", text=r"x(a='\d')")
def test_any_text_parses_or_raises_spec_error(kind: Kind, text: str) -> None:
    try:
        spec = parse_spec(kind, text)
    except SpecError:
        return
    assert parse_spec(kind, str(spec)) == spec


@settings(max_examples=150)
@given(kind=st.sampled_from(KINDS), name=keywords, arguments=st.dictionaries(keywords, literals, max_size=4))
def test_literal_keywords_round_trip(kind: Kind, name: str, arguments: dict[str, object]) -> None:
    part = Part(name, tuple(arguments.items()))
    spec = parse_spec(kind, str(part))
    assert spec.parts == (part,)
    # Equality alone takes True for 1 and 1.0.
    assert repr(dict(spec.parts[0].arguments)) == repr(arguments)
    canonical_json(dict(spec.parts[0].arguments))


def test_huge_numbers_are_refused_when_read() -> None:
    with pytest.raises(SpecError):
        str(parse_spec("attack", f"x(a=0x{'f' * 4000})"))


def test_what_cannot_be_read_back_is_refused_when_read() -> None:
    try:
        spec = parse_spec("attack", f"x(a='{chr(0xE0001) * 1000}')")
    except SpecError:
        return
    assert parse_spec("attack", str(spec)) == spec


def test_canonical_json_has_one_spelling() -> None:
    assert canonical_json({"b": 1, "a": "é"}) == '{"a":"\\u00e9","b":1}'
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical_json(math.nan)


def test_a_path_is_the_same_however_it_is_spelled() -> None:
    assert str(parse_spec("defense", "./a//mine.py:Mine(x=1)")) == "a/mine.py:Mine(x=1)"
