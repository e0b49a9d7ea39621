"""SPECs and the registry: what is typed is what is built, and every mistake is answered with the nearest right word."""

from __future__ import annotations

import keyword
import math
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

import gitbench
from gitbench.clients.data import Dataset
from gitbench.clients.defense import Defense
from gitbench.core.errors import SpecError
from gitbench.core.spec import KINDS, Kind, Part, canonical_json, parse_spec
from gitbench.identity import registry
from gitbench.run.bench import case_of

DEFENSE = """
from gitbench import Defense

class Scale(Defense):
    def __init__(self, *, factor: float = 0.5, layers=None):
        self.factor = factor

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * self.factor)
"""

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


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


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


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("defense", "prunning(rate=0.5)", r"Unknown defense 'prunning'\. Did you mean 'pruning'\? Valid: .*clipping.*none"),
        ("defense", "none | cliping(max_norm=1)", r"Unknown defense 'cliping'\. Did you mean 'clipping'\?"),
        ("attack", "rigde+ig", r"Unknown attack 'rigde'\. Did you mean 'ridge'\?"),
        ("model", "lennet", r"Unknown model 'lennet'\. Did you mean 'lenet'\?"),
        ("dataset", "photo", r"Unknown dataset 'photo'\. Did you mean 'photos'\?"),
        ("dataset", "zzzzzz", r"Unknown dataset 'zzzzzz'\. Valid: cifar10"),
        ("defense", "pruning(rat=0.5)", r"'pruning\(rat=0.5\)' takes no option 'rat'\. Did you mean 'rate'\? Valid: rate, scope"),
        ("attack", "ridge+ig(iteration=5)", r"takes no option 'iteration'\. Did you mean 'iterations'\?"),
        ("model", "lenet(trained_epoch=1)", r"takes no option 'trained_epoch'\. Did you mean 'trained_epochs'\?"),
        ("dataset", "photos(sizes=32)", r"takes no option 'sizes'\. Did you mean 'size'\?"),
        ("defense", "none(x=1)", r"takes no option 'x'\. Valid: none"),
        ("defense", "pruning", r"The defense 'pruning' needs rate: write pruning\(rate=\.\.\.\)"),
        ("defense", "none | pruning(scope='layer')", r"needs rate"),
        ("dataset", "npz", r"needs path: write npz\(path=\.\.\.\)"),
        ("dataset", "cifar10(download=True)", r"needs root"),
        ("defense", "no/such/file.py:Mine", r"names the file no/such/file.py, which does not exist"),
        ("defense", "no_such_module.at_all:Mine", r"names the module 'no_such_module.at_all', which cannot be found\. Is it installed\?"),
        ("defense", "gitbench_defenses.pruning:Prunning(rate=1)", r"pruning.py has no 'Prunning'\. Did you mean 'Pruning'\?"),
        ("defense", "gitbench_defenses.pruning:Pruning", r"needs rate"),
    ],
)
def test_check_names_the_mistake_and_the_nearest(kind: Kind, text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        registry.check(parse_spec(kind, text))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("defense", "none"),
        ("defense", "clipping(max_norm=1.0) | pruning(rate=0.9, scope='layer')"),
        ("defense", "gitbench_defenses.pruning:Pruning(rate=0.9)"),
        ("attack", "ridge+ig(iterations=3)"),
        ("model", "lenet(trained_epochs=2, mode='train')"),
        ("dataset", "photos(public=8, private=4, size=16, seed=1)"),
        ("dataset", "stl10(root='x', download=True)"),  # its constructor is inherited
    ],
)
def test_check_accepts(kind: Kind, text: str) -> None:
    registry.check(parse_spec(kind, text))


def test_check_imports_neither_torch_nor_the_component(tmp_path: Path) -> None:
    file = write(tmp_path / "loud.py", "raise RuntimeError('imported')\nclass Loud:\n    def __init__(self, *, a): ...\n")
    script = (
        "import sys\n"
        "from gitbench.identity import registry\n"
        "from gitbench.core.spec import parse_spec\n"
        "registry.check(parse_spec('defense', 'pruning(rate=0.9)'))\n"
        "registry.check(parse_spec('attack', 'ridge+ig'))\n"
        "registry.check(parse_spec('model', 'lenet'))\n"
        "registry.check(parse_spec('dataset', 'photos'))\n"
        f"registry.check(parse_spec('defense', {f'{file}:Loud(a=1)'!r}))\n"
        "registry.source_digest(registry.locate('defense', parse_spec('defense', 'pruning(rate=0.9)').parts[0]))\n"
        "assert 'torch' not in sys.modules and 'gitbench_defenses.pruning' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_check_does_not_import_the_package_of_a_missing_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "gitbench_test_loud" / "__init__.py", "raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SpecError, match="cannot be found"):
        registry.check(parse_spec("defense", "gitbench_test_loud.missing:Mine"))


def test_check_ends_for_a_class_named_like_its_base(tmp_path: Path) -> None:
    file = write(tmp_path / "same.py", "from gitbench_defenses.pruning import Pruning\n\nclass Pruning(Pruning):\n    pass\n")
    script = f"from gitbench.core import spec; from gitbench.identity import registry; registry.check(spec.parse_spec('defense', {f'{file}:Pruning(rate=0.5)'!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=5, check=False)
    assert done.returncode == 0, done.stderr


def test_check_accepts_the_fields_of_a_dataclass(tmp_path: Path) -> None:
    body = "from dataclasses import dataclass\nfrom gitbench import Defense\n\n@dataclass\nclass Mine(Defense):\n    rate: float = 0.5\n"
    registry.check(parse_spec("defense", f"{write(tmp_path / 'mine.py', body)}:Mine(rate=0.1)"))


def test_check_reads_what_a_class_inherits(tmp_path: Path) -> None:
    body = DEFENSE + "\nclass Child(Scale):\n    pass\n\nclass Open(Scale):\n    def __init__(self, **options): ...\n\nAlias = Child\n"
    file = write(tmp_path / "mine.py", body)
    registry.check(parse_spec("defense", f"{file}:Child(factor=2)"))
    registry.check(parse_spec("defense", f"{file}:Open(anything=2)"))
    registry.check(parse_spec("defense", f"{file}:Alias(unknown=2)"))  # only importing would tell; the constructor will
    with pytest.raises(SpecError, match=r"takes no option 'fctor'\. Did you mean 'factor'"):
        registry.check(parse_spec("defense", f"{file}:Child(fctor=2)"))
    with pytest.raises(SpecError, match=r"has no 'Chld'\. Did you mean 'Child'"):
        registry.check(parse_spec("defense", f"{file}:Chld"))


def test_check_names_a_file_that_is_not_python(tmp_path: Path) -> None:
    file = write(tmp_path / "broken.py", "class Mine(:\n")
    with pytest.raises(SpecError, match=r"broken.py is not valid Python: .*line 1"):
        registry.check(parse_spec("defense", f"{file}:Mine"))
    file = tmp_path / "null.py"
    file.write_bytes(b"\x00\xff")
    with pytest.raises(SpecError, match=r"null.py is not valid Python"):
        registry.check(parse_spec("defense", f"{file}:Mine"))


def test_check_refuses_a_path_that_is_too_long() -> None:
    with pytest.raises(SpecError, match="does not exist"):
        registry.check(parse_spec("defense", f"{'x' * 300}.py:Mine"))


def test_a_component_in_a_file_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", DEFENSE)
    text = f"{file}:Scale(factor=2.0)"
    defense = gitbench.load_defense(text)
    assert repr(defense) == text  # what was asked for rebuilds it
    update = gitbench.Update({"weight": torch.ones(2, 3)})
    assert torch.equal(defense.protect(update, generator=torch.Generator()).tensors["weight"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        (
            "import no_such_module_at_all\nclass Mine: ...\n",
            "Mine",
            r"Importing .*mine.py for the defense 'mine.py:Mine' failed: ModuleNotFoundError",
        ),
        ("raise SystemError('x')\nclass Mine: ...\n", "Mine", r"failed: SystemError\('x'\)"),
        ("class Mine: ...\n", "Mine", r"Expected '.*mine.py:Mine' to be a subclass of gitbench.Defense, got <class"),
        ("if False:\n    Mine = 1\nMined = 2\n", "Mine", r"mine.py has no 'Mine'\. Did you mean 'Mined'"),
        (
            DEFENSE.replace("self.factor = factor", "raise ValueError('expected factor > 0')"),
            "Scale(factor=-1)",
            "refuses its options: expected factor > 0",
        ),
    ],
)
def test_a_component_that_cannot_be_built_is_named(tmp_path: Path, body: str, name: str, message: str) -> None:
    spec = parse_spec("defense", f"{write(tmp_path / 'mine.py', body)}:{name}")
    with pytest.raises(SpecError, match=message):
        registry.build("defense", spec.parts[0], Defense)


def test_a_component_of_another_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Expected 'gitbench_defenses.none:Undefended' to be a subclass of gitbench.Dataset"):
        registry.build("dataset", Part("gitbench_defenses.none:Undefended"), Dataset)


def test_two_packages_with_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def points(*values: str) -> list[metadata.EntryPoint]:
        return [metadata.EntryPoint("mine", value, "gitbench.defenses") for value in values]

    monkeypatch.setattr(metadata, "entry_points", lambda group: points("a:A", "b:B"))
    read = registry._installed.__wrapped__  # the cache keeps what is really installed
    with pytest.raises(SpecError, match=r"Two packages register the defense 'mine': a:A and b:B\. Uninstall one"):
        read("defense")
    monkeypatch.setattr(metadata, "entry_points", lambda group: points("a:A", "a:A"))
    assert read("defense") == {"mine": "a:A"}


def test_an_edit_of_a_users_file_is_a_new_case(tmp_path: Path) -> None:
    def case_id(text: str) -> str:
        file = write(tmp_path / "mine.py", text)
        return case_of(
            attack="ig",
            defense=f"{file}:Scale",
            model="lenet",
            dataset="photos",
            threat="server",
            profile="quick",
            victims=2,
            batch_size=1,
            seed=0,
        ).case_id

    first = case_id(DEFENSE)
    assert case_id(DEFENSE) == first
    assert case_id(DEFENSE.replace("0.5", "0.6")) != first
    assert case_id(DEFENSE) == first


def package_digest(folder: Path, name: str, statement: str) -> tuple[str, str]:
    """Digests of a component before and after an edit of the neighbour that it imports."""
    write(folder / name / "__init__.py", "")
    write(folder / name / "mine.py", f"{statement}\nclass Mine: ...\n")
    return around_an_edit(folder / name / "helper.py", f"{name}.mine:Mine")


def around_an_edit(helper: Path, target: str) -> tuple[str, str]:
    """Digests of a component before and after an edit of another file."""
    write(helper, "X = 1\n")
    before = registry.source_digest(registry.locate("defense", Part(target)))
    write(helper, "X = 2\n")
    return before, registry.source_digest(registry.locate("defense", Part(target)))


@pytest.mark.parametrize(
    "statement",
    [
        "from gitbench_test_{n}.helper import X",
        "import gitbench_test_{n}.helper",
        "from gitbench_test_{n} import helper",
        "from .helper import X",
        "from . import helper",
    ],
)
def test_an_edit_of_an_imported_neighbour_changes_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, request: pytest.FixtureRequest
) -> None:
    # Modules are remembered by name, so every package needs a name of its own.
    number = request.node.callspec.indices["statement"]
    monkeypatch.syspath_prepend(tmp_path)
    before, after = package_digest(tmp_path, f"gitbench_test_{number}", statement.format(n=number))
    assert before != after


def component_digest(file: Path) -> str:
    return registry.source_digest(registry.locate("defense", Part(f"{file}:Mine")))


@pytest.mark.parametrize(
    ("statement", "helper"),
    [
        ("import helper", "helper.py"),
        ("from helper import X", "helper.py"),
        ("from helpers.inner import X", "helpers/inner.py"),
        ("import middle", "helper.py"),
        ("def later():\n    import helper", "helper.py"),
    ],
)
def test_an_edit_of_what_lies_beside_a_file_and_is_imported_changes_its_digest(tmp_path: Path, statement: str, helper: str) -> None:
    file = write(tmp_path / "mine.py", f"import math, torch\n{statement}\nclass Mine: ...\n")
    write(tmp_path / "middle.py", "import helper, mine\n")
    write(tmp_path / "unused.py", "X = 1\n")
    write(tmp_path / helper, "X = 1\n")
    before = component_digest(file)
    write(tmp_path / "unused.py", "X = 2\n")
    assert component_digest(file) == before
    write(tmp_path / helper, "X = 2\n")
    assert component_digest(file) != before


def test_packages_beside_each_other_are_followed_with_their_relative_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "gitbench_test_one" / "__init__.py", "")
    write(tmp_path / "gitbench_test_one" / "mine.py", "from gitbench_test_two import X\nclass Mine: ...\n")
    write(tmp_path / "gitbench_test_two" / "__init__.py", "from .inner import X\n")
    before, after = around_an_edit(tmp_path / "gitbench_test_two" / "inner.py", "gitbench_test_one.mine:Mine")
    assert before != after


def test_a_package_without_init_has_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    write(tmp_path / "gitbench_test_bare" / "mine.py", "from gitbench_test_bare.helper import X\nclass Mine: ...\n")
    before, after = around_an_edit(tmp_path / "gitbench_test_bare" / "helper.py", "gitbench_test_bare.mine:Mine")
    assert before != after
    assert "no-source" not in (before, after)


def test_a_file_is_followed_into_the_projects_own_packages_and_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "src")
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    lines = "import gitbench_test_library\nfrom gitbench_test_own.inner import X\nclass Mine: ...\n"
    file = write(tmp_path / "defs" / "mine.py", lines)
    write(tmp_path / "src" / "gitbench_test_own" / "__init__.py", "")
    digests = []
    for own, library in (("1", "1"), ("1", "2"), ("2", "2")):
        write(tmp_path / "src" / "gitbench_test_own" / "inner.py", f"X = {own}\n")
        write(tmp_path / "site-packages" / "gitbench_test_library.py", f"X = {library}\n")
        digests.append(component_digest(file))
    assert digests[0] == digests[1] != digests[2]


def test_a_file_that_a_default_names_is_part_of_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine.py", "class Mine:\n    def __init__(self, *, config='std.txt', other='grey'): ...\n")
    digests = []
    for text in ("1", "2"):
        write(tmp_path / "std.txt", text)
        digests.append(registry.part_digest("defense", Part("mine.py:Mine")))
    typed = registry.part_digest("defense", Part("mine.py:Mine", (("config", "missing.txt"),)))
    assert len({*digests, typed}) == 3


def test_what_lies_beside_and_is_installed_is_digested_as_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path / "site-packages")
    file = write(tmp_path / "mine.py", "from gitbench_test_both import X\nclass Mine: ...\n")
    digests = []
    for installed, beside in (("1", "1"), ("1", "2"), ("2", "2")):
        write(tmp_path / "site-packages" / "gitbench_test_both" / "__init__.py", "from .inner import X\n")
        write(tmp_path / "site-packages" / "gitbench_test_both" / "inner.py", f"X = {installed}\n")
        write(tmp_path / "gitbench_test_both" / "__init__.py", f"X = {beside}\n")
        digests.append(component_digest(file))
    assert digests[0] == digests[1] != digests[2]
    try:
        registry.load("defense", Part(f"{file}:Mine"))
    finally:
        sys.modules.pop("gitbench_test_both", None)
        sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / which / "mine.py", f"from gitbench_test_core import X\nclass Mine: {which} = X\n") for which in "ab"]
    for number, which in enumerate("ab"):
        write(tmp_path / which / "gitbench_test_core.py", f"X = {number}\n")
    try:
        assert registry.load("defense", Part(f"{files[0]}:Mine")).a == 0
        with pytest.raises(
            SpecError, match=r"imports gitbench_test_core, which is .*a.gitbench_test_core\.py in this process and not .* Rename"
        ):
            registry.load("defense", Part(f"{files[1]}:Mine"))
    finally:
        sys.modules.pop("gitbench_test_core", None)
        sys.path[:] = [path for path in sys.path if not path.startswith(str(tmp_path))]


def test_a_file_within_a_package_is_followed_by_the_names_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "gitbench_test_whole"
    file = write(package / "inner" / "mine.py", "from gitbench_test_whole.inner.random import X\nclass Mine: ...\n")
    write(package / "inner" / "random.py", "from ..consts import X\n")
    before, after = around_an_edit(package / "consts.py", f"{file}:Mine")
    assert before != after
    try:
        registry.load("defense", Part(f"{file}:Mine"))  # its random is not Python's
    finally:
        for name in [name for name in sys.modules if name.startswith("gitbench_test_whole")]:
            del sys.modules[name]
        sys.path[:] = [path for path in sys.path if not path.startswith(str(package))]


def test_beside_a_link_is_where_it_leads(tmp_path: Path) -> None:
    real = write(tmp_path / "real" / "mine.py", "import helper\nclass Mine: ...\n")
    link = tmp_path / "project" / "mine.py"
    link.parent.mkdir()
    link.symlink_to(real)
    before, after = around_an_edit(tmp_path / "real" / "helper.py", f"{link}:Mine")
    assert before != after


def test_a_path_is_the_same_however_it_is_spelled() -> None:
    assert str(parse_spec("defense", "./a//mine.py:Mine(x=1)")) == "a/mine.py:Mine(x=1)"


def test_other_peoples_packages_beside_an_installed_one_are_not_followed(tmp_path: Path) -> None:
    file = write(tmp_path / "site-packages" / "mine.py", "import helper\nclass Mine: ...\n")
    write(tmp_path / "site-packages" / "helper.py", "X = 1\n")
    before = component_digest(file)
    write(tmp_path / "site-packages" / "helper.py", "X = 2\n")
    assert component_digest(file) == before


def test_the_digest_does_not_depend_on_where_the_packages_lie(tmp_path: Path) -> None:
    import gitbench
    import gitbench_defenses

    digests = []
    for layout in (("same", "same"), ("z", "a")):
        folders = [tmp_path / "-".join(layout) / name for name in layout]
        for package, folder in zip((gitbench, gitbench_defenses), folders, strict=True):
            source = Path(package.__file__).parent
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        code = (
            f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n"
            "from gitbench.identity import registry\n"
            "print(registry.digest_of_module('gitbench_defenses.clipping'), registry.__file__)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        digest, file = found.stdout.split()
        assert file.startswith(str(tmp_path))
        digests.append(digest)
    assert digests[0] == digests[1]
