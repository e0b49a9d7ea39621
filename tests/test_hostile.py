"""Hostile and broken input: refused quickly, with a message that can be read, and nothing of it is obeyed."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import struct
import time
import tomllib
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from test_store import GATE, SETTING, result, rows

from gitbench import leaderboard, registry
from gitbench.baseline import load_baseline
from gitbench.cli import main
from gitbench.config import make_cells, make_config
from gitbench.data import load_dataset
from gitbench.datasets import npz
from gitbench.datasets.folder import Folder
from gitbench.datasets.npz import Npz
from gitbench.errors import ConfigError, DataError, GitbenchError, SpecError, StoreError, nearest
from gitbench.leaderboard import Table
from gitbench.result import Result
from gitbench.spec import KINDS, Kind, parse_spec
from gitbench.store import Store, read_result
from gitbench.text import printable, shown
from pytest_gitbench.options import read_settings

# Each is invisible, or tells a terminal or a table to do something.
CONTROLS = (
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x00",
    "\x7f",
    "\x9b2J",
    "\r",
    "\x08",
    "\u202e",
    "\u2066",
    "\u200b",
    "\ufeff",
    "\ud800",
    "\u2028",
)
NASTY = "".join(CONTROLS) + "|`*_[x](y)<img src=x onerror=alert(1)>#\n\n| a | b |\n--> "
names = st.text(max_size=30) | st.lists(st.sampled_from([*CONTROLS, "|", "`", "\n", "a", "-->", "<b>", "\\"]), max_size=8).map("".join)


@contextlib.contextmanager
def quickly(seconds: float = 2.0) -> Iterator[None]:
    start = time.process_time()  # on a busy machine the wall clock tells of others
    yield
    assert time.process_time() - start < seconds


def harmless(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


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
        registry.check(spec)


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
        registry.check(parse_spec("defense", f"{file}:Mine"))


@pytest.mark.parametrize("source", ["(" * 100_000, "-" * 100_000 + "1", "x" * 3_000_000, "\x00", "class Mine:\n" + " pass\n" * 30_000])
def test_a_hostile_source_is_refused_or_read_quickly(tmp_path: Path, source: str) -> None:
    file = tmp_path / "mine.py"
    file.write_text(source)
    with quickly(10), contextlib.suppress(SpecError):
        registry.check(parse_spec("defense", f"{file}:Mine"))


# Options


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | names
    | st.dates()
    | st.sampled_from([10**4000, "\x00", "9" * 5000, NASTY, math.nan]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
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


# Results, baselines, leaderboards


VALID = json.loads(result().to_json())
paths = st.sampled_from(
    [("schema",), ("case",), ("case", "defense"), ("case", "victims"), ("case_id",), ("status",), ("verdict_reason",), ("gate",), ("metrics",),
     ("metrics", "psnr_gain"), ("metrics", "psnr_gain", "values"), ("baselines",), ("flags",), ("cost",), ("environment", "python"), ("settings",),
     ("finished_at",), ("timeout",), ("new",)]
)  # fmt: skip


def changed(path: tuple[str, ...], value: object) -> dict[str, object]:
    found = json.loads(json.dumps(VALID))
    where = found
    for key in path[:-1]:
        where = where[key]
    where[path[-1]] = value
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("hostile"))


@settings(max_examples=300)
@given(path=paths, value=values)
@example(path=("gate",), value={"nope": 1.0})
@example(path=("gate",), value={})
@example(path=("finished_at",), value="yesterday")
@example(path=("finished_at",), value="0001-01-01T00:00:00+00:00")
@example(path=("finished_at",), value="2025-01-01")
@example(path=("metrics",), value={"psnr_gain": {"mean": 1e308, "low": -1e308, "high": 1e308, "values": [1e308, 1e308, -1e308, 1e308]}})
@example(path=("settings",), value={"model.mode": NASTY})
@example(path=("environment", "python"), value=NASTY)
@example(path=("schema",), value=10**4000)
@pytest.mark.filterwarnings("ignore:.*was damaged:UserWarning", "ignore:.*:RuntimeWarning")
def test_any_result_is_read_shown_or_refused(
    store: Store, tmp_path_factory: pytest.TempPathFactory, path: tuple[str, ...], value: object
) -> None:
    try:
        text = json.dumps(changed(path, value), default=str).encode()
    except ValueError:
        return
    file = store.case_path(result().case_id)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text)
    with contextlib.suppress(StoreError):
        for found in store.results():
            assert harmless(found.verdict_reason)
        for table in leaderboard.tables(list(store.results())):
            assert harmless(leaderboard.render(table))
    with contextlib.suppress(ConfigError):
        load_baseline(store.root)
    arguments = ["leaderboard", str(store.root), "--out", str(tmp_path_factory.getbasetemp() / "boards")]
    assert main(arguments) in (0, 2)
    with contextlib.suppress(StoreError):
        store.load(result().case_id)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("gate",), {"nope": 1.0}, "the gate names the unknown metric 'nope'"),
        (("finished_at",), "yesterday", "finished_at 'yesterday' is no time with a zone"),
        (("finished_at",), "2025-01-01T00:00:00", "is no time with a zone"),
        (("case", "victims"), 5, "does not belong to its case"),
        (("metrics", "psnr_gain", "values"), [1.0], "psnr_gain has 1 values for 4 victims"),
    ],
)
def test_what_does_not_fit_together_is_named(path: tuple[str, ...], value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Result.model_validate(changed(path, value))


def test_messages_of_users_code_cannot_drive_the_terminal() -> None:
    found = result(error=f"my error\n{NASTY}")
    assert harmless(found.error)
    assert found.error.startswith("my error\n\\x1b[31m")
    assert Result.model_validate_json(found.to_json()) == found


def test_a_result_that_is_no_file_or_too_large_is_refused_quickly(store: Store) -> None:
    pipe = store.case_path("f" * 20)
    pipe.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(pipe)
    with quickly(), pytest.raises(StoreError, match=r"Cannot read .*json: expected a file, found something else\. Move it away"):
        store.load("f" * 20)
    pipe.unlink()
    with pipe.open("wb") as file:
        file.truncate(2**40)  # a hole: it takes no disk
    with quickly(), pytest.raises(StoreError, match=r"Cannot read .*: it has 1099511627776 bytes, and no result is that large"):
        read_result(pipe)
    pipe.unlink()


@pytest.mark.parametrize("field", ["dataset", "model", "defense", "attack", "environment", "mode", "options"])
def test_a_leaderboard_survives_any_name(field: str) -> None:
    plain = {"dataset": "photos", "model": "lenet", "defense": "pruning", "attack": "ig"}
    name = {**plain, **({field: NASTY} if field in plain else {})}
    one = result()
    if field == "environment":
        spoilt = dict.fromkeys(("gitbench", "torch", "torchvision", "python", "platform", "device"), NASTY)
        one = one.model_copy(update={"environment": one.environment.model_copy(update=spoilt)})
    elif field in ("mode", "options"):
        one = one.model_copy(update={"settings": {"model.mode" if field == "mode" else "iterations": NASTY}})
    cells = {("none", name["attack"]): [one], (name["defense"], name["attack"]): [one]}
    text = leaderboard.render(Table(name["dataset"], name["model"], cells, setting=SETTING, gate=GATE))
    assert harmless(text)
    assert len({len(row) for row in rows(text)[:4]}) == 1
    plain_text = re.sub(r"<!-- gitbench-cells: .*? -->|`[^`\n]*`|\\.", "", text)
    assert "<img" not in plain_text
    assert "](y)" not in plain_text
    assert "| a | b |" not in plain_text


def test_the_command_line_prints_no_controls_of_an_old_leaderboard(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(tmp_path).save(result())
    out = tmp_path / "boards"
    assert main(["leaderboard", str(tmp_path), "--out", str(out)]) == 0
    (board,) = out.iterdir()
    board.write_text("<!-- gitbench-cells: " + json.dumps([f"\x1b[31mevil{chr(0x202E)}/ig"]) + " -->")
    capsys.readouterr()
    assert main(["leaderboard", str(tmp_path), "--out", str(out)]) == 0
    shown_there = capsys.readouterr().out
    assert r"\x1b[31mevil\u202e/ig" in shown_there
    assert harmless(shown_there)
    board.write_text("<!-- gitbench-cells: " + "[" * 100_000 + " -->")
    assert leaderboard.written_cells(board) == set()
    assert main(["leaderboard", f"no\x1b[31m\n{chr(0x202E)}"]) == 2
    assert harmless(capsys.readouterr().err)


# npz


def member(header: bytes, *, version: bytes = b"\x01\x00", body: bytes = b"", size: int = 2) -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(size, "little") + header + body


def archive(path: Path, content: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        opened.writestr("train_images.npy", content)
    return path


def refused(path: Path, message: str, *, seconds: float = 5) -> None:
    with quickly(seconds), pytest.raises(DataError, match=message) as caught:
        load_dataset(Npz(path=str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shape", ["(4000000000000,)", "(1000000, 1000, 1000, 3)", "(9223372036854775807, 9)", f"({10**30},)"])
def test_a_header_that_claims_terabytes_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    refused(
        archive(tmp_path / "x.npz", member(header, body=bytes(64))),
        r"'train_images' is damaged: it claims \d+ bytes, shape .*, and holds 64",
    )


def test_a_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    content = member(b" " * 2**20, version=b"\x02\x00", size=4)
    refused(archive(tmp_path / "x.npz", content, compression=zipfile.ZIP_DEFLATED), r"is damaged: its header claims 1048576 bytes")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (64, 1024, 1024, 1)}"
    path = archive(tmp_path / "x.npz", member(header, body=bytes(2**26)), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(npz, "available_memory", lambda device: 2**28)
    refused(path, r"'train_images' unpacks to 0\.1 GiB and needs 0\.3; 0\.2 GiB are available")


def test_a_size_that_the_directory_lies_about_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (64,)}", body=bytes(64)))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)  # the unpacked size
    path.write_bytes(content)
    refused(path, "x.npz: ")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    refused(tmp_path / "x.npz", "expected an npz archive, found no regular file")


# Image folders


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / split / "cat" / "1.png")
    return tmp_path


def image_refused(root: Path, message: str) -> None:
    with quickly(10), pytest.raises(DataError, match=message) as caught:
        load_dataset(Folder(path=str(root)))
    assert "1.png: expected a readable PNG or JPEG image, got: " in str(caught.value)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (11_000, 11_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_an_image_of_too_many_pixels_is_refused(images: Path, width: int, height: int, warned: str) -> None:
    (images / "train" / "cat" / "1.png").write_bytes(png(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        image_refused(images, r"pixels")


def test_no_other_format_is_opened_under_the_name_of_a_png(images: Path) -> None:
    # Pillow runs Ghostscript for PostScript.
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(executed) (w) file\n"
    (images / "train" / "cat" / "1.png").write_bytes(content)
    image_refused(images, "cannot identify image file")
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "BMP")
    (images / "train" / "cat" / "1.png").write_bytes(stream.getvalue())
    image_refused(images, "cannot identify image file")


def test_a_pipe_in_a_folder_is_not_waited_for(images: Path) -> None:
    (images / "train" / "cat" / "1.png").unlink()
    os.mkfifo(images / "train" / "cat" / "1.png")
    image_refused(images, "no regular file")


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("changing")
    for split in ("train", "test"):
        (root / split / "cat").mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(root / split / "cat" / "1.png")
    return root


PICTURES = {}
for suffix, save_as in ((".png", "PNG"), (".jpg", "JPEG")):
    with io.BytesIO() as made:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(made, save_as)
        PICTURES[suffix] = made.getvalue()


@settings(max_examples=150)
@given(
    suffix=st.sampled_from([".png", ".jpg"]),
    where=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=8),
    cut=st.integers(0, 8),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image_is_read_or_named(changing: Path, suffix: str, where: float, put: bytes, cut: int) -> None:
    content = PICTURES[suffix]
    at = math.floor(where * len(content))
    file = changing / "train" / "cat" / f"2{suffix}"
    file.write_bytes(content[:at] + put + content[at + cut :])
    try:
        data = load_dataset(Folder(path=str(changing)))
    except DataError as error:
        assert str(file) in str(error)
    else:
        assert data.input_shape == (3, 32, 32)
    finally:
        file.unlink()


def test_a_folder_that_cannot_be_listed_is_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"Cannot read the folder .*train: .*Permission denied.*Check its permissions"):
        load_dataset(Folder(path=str(images)))


def test_a_class_without_public_images_is_named(images: Path) -> None:
    (images / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"train/dog holds no image\. Public data must cover all classes"):
        load_dataset(Folder(path=str(images)))


def test_sixteen_bits_are_refused(images: Path) -> None:
    Image.fromarray(np.full((9, 9), 32768, np.uint16)).save(images / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: expected 8 bits per channel, got Pillow mode I.*Save it again with 8 bits"):
        load_dataset(Folder(path=str(images)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("npz(path=5)", r"Expected the path of an npz archive, got 5"),
        ("npz(path='~no-such-user-here/x.npz')", r"Expected an npz archive at ~no-such-user-here/x\.npz, but there can be none: "),
        ("photos(public=1.5)", r"expected whole numbers and seed >= 0, got 1\.5, 64, 32, 0"),
        ("folder(path='x', size=0)", r"expected size in 1\.\.1024 and limit >= 1, got 0 and None"),
    ],
)
def test_data_that_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(GitbenchError, match=message):
        load_dataset(text)


@pytest.mark.parametrize("text", [f"x(a='{chr(0xE0001) * 1000}')", f"x(a=0x{'f' * 4000})"])
def test_a_spec_that_grows_when_written_out_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match=r"Expected the SPEC of an attack of at most 4096 characters when written out, got more"):
        parse_spec("attack", text)


@pytest.mark.parametrize("options", ["size=1.5", "size=True", "limit=1.5", "limit='a'"])
def test_folder_refuses_numbers_that_are_none(images: Path, options: str) -> None:
    with pytest.raises(SpecError, match=r"expected whole numbers, got size="):
        load_dataset(f"folder(path={str(images)!r}, {options})")


def test_photos_refuse_to_crop_for_ever() -> None:
    with quickly(), pytest.raises(SpecError, match="expected at most 100000 public and private crops per class, got 1000000000000 and 64"):
        load_dataset("photos(public=1000000000000)")


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
    assert harmless(text)
