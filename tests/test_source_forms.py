"""What Python finds and builds, the look at the source never refuses, however the name is bound. What is surely wrong, it refuses."""

from __future__ import annotations

import itertools
import sys
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.clients.defense import Defense
from gitbench.core.errors import SpecError
from gitbench.core.spec import Part, parse_spec
from gitbench.identity.loading import build_part, check_spec, load_part
from helpers import write

HEADER = """
import functools, sys
from dataclasses import dataclass
import gitbench
from gitbench import Defense
from gitbench_defenses.none import Undefended

def other(self, *, c=1): ...

def wrap(cls):
    class Wrapped(cls):
        def __init__(self, *, c=1): ...
    return Wrapped

class Meta(type):
    def __call__(cls, *, c=1):
        return super().__call__()
"""
# What a SPEC calls, and a file that Python can build it from.
FORMS = {
    "star import": ("Undefended", "from gitbench_defenses.none import *"),
    "import under try": ("Mine", "try:\n    from gitbench_defenses.none import Undefended as Mine\nexcept ImportError:\n    Mine = None"),
    "class under if": ("Mine(a=2)", "if sys:\n    class Mine(Defense):\n        def __init__(self, *, a=1): ..."),
    "class under else": ("Mine", "if not sys:\n    pass\nelse:\n    class Mine(Defense): ..."),
    "class in a loop": ("Mine", "while True:\n    class Mine(Defense): ...\n    break"),
    "two classes under if": (
        "Mine(b=1)",
        "if not sys:\n    class Mine(Defense):\n        def __init__(self, *, a): ...\nelse:\n    class Mine(Defense):\n        def __init__(self, *, b): ...",
    ),
    "name of a loop": ("Mine", "for Mine in [Undefended]: pass"),
    "walrus": ("Mine", "print(Mine := Undefended) if False else (Mine := Undefended)"),
    "match": ("Mine", "match Undefended:\n    case Mine: pass"),
    "global": ("Mine", "def make():\n    global Mine\n    Mine = Undefended\nmake()"),
    "type()": ("Mine", "Mine = type('Mine', (Defense,), {})"),
    "globals()": ("Mine(c=1)", "globals()['Mi' + 'ne'] = wrap(Defense)"),
    "vars()": ("Mine(c=1)", "vars()['Mi' + 'ne'] = wrap(Defense)"),
    "setattr": ("Mine", "setattr(sys.modules[__name__], 'Mi' + 'ne', Undefended)"),
    "exec": ("Mine(c=1)", "exec('Mi' + 'ne = wrap(Defense)')"),
    "exec by another name": ("Mine(c=1)", "from builtins import exec as run\nrun('Mi' + 'ne = wrap(Defense)', sys.modules[__name__].__dict__)"),
    "told its name": ("Mine(c=1)", "def bind(name):\n    getattr(sys, 'mod' + 'ules')[name].__dict__['Mi' + 'ne'] = wrap(Defense)\nbind(__name__)"),
    "__getattr__": ("Mine", "def __getattr__(name):\n    if name == 'Mi' + 'ne':\n        return Undefended\n    raise AttributeError(name)"),
    "__getattr__ assigned": ("Mine", "__getattr__ = lambda name: Undefended"),
    "another module in its place": ("Mine", "sys.modules[__name__] = type('Space', (), {'Mi' + 'ne': Undefended})"),
    "decorator that replaces": ("Mine(c=1)", "@wrap\nclass Mine(Defense):\n    def __init__(self, *, a): ..."),
    "decorator of a base": ("Mine(c=1)", "@wrap\nclass Base(Defense):\n    def __init__(self, *, a): ...\nclass Mine(Base): ..."),
    "dataclass": ("Mine(c=1)", "@dataclass\nclass Mine(Defense):\n    c: int = 0"),
    "dataclass later": ("Mine(c=1)", "class Mine(Defense):\n    c: int = 0\ndataclass(Mine)"),
    "dataclass of an alias": ("Mine(c=1)", "class Mine(Defense):\n    c: int = 0\nAlias = Mine\ndataclass(Alias)"),
    "metaclass": ("Mine(c=1)", "class Mine(Defense, metaclass=Meta):\n    def __init__(self): ..."),
    "metaclass of a base": ("Mine(c=1)", "class Base(Defense, metaclass=Meta): ...\nclass Mine(Base):\n    def __init__(self): ..."),
    "__new__": ("Mine(c=1)", "class Mine(Defense):\n    def __new__(cls, c): return super().__new__(cls)\n    def __init__(self, **options): ..."),
    "__init__ assigned": ("Mine(c=1)", "class Mine(Defense):\n    __init__ = other"),
    "__init__ assigned later": ("Mine(c=1)", "class Mine(Defense):\n    def __init__(self): ...\nMine.__init__ = other"),
    "__init__ under if": (
        "Mine(c=1)",
        "class Mine(Defense):\n    if sys:\n        def __init__(self, *, c): ...\n    else:\n        def __init__(self, *, a): ...",
    ),
    "__init__ decorated": ("Mine(c=1)", "class Mine(Defense):\n    @lambda init: other\n    def __init__(self, *, a): ..."),
    "__init__ replaced by a base": (
        "Mine(c=1)",
        "class Base(Defense):\n    def __init_subclass__(cls): dataclass(cls)\nclass Mine(Base):\n    c: int = 0",
    ),
    "defaults changed": ("Mine", "class Mine(Defense):\n    def __init__(self, *, a): ...\nMine.__init__.__kwdefaults__ = {'a': 1}"),
    "rebound": ("Mine(c=1)", "class Mine(Defense): ...\nMine = wrap(Mine)"),
    "a base that only shares its name": ("Mine(c=1)", "Defense = wrap(Defense)\nclass Mine(Defense): ..."),
    "several bases": ("Mine(c=1)", "class Mixin:\n    def __init__(self, *, c): ...\nclass Mine(Mixin, Defense): ..."),
    "a diamond": (
        "Mine(c=1)",
        "class A(Defense):\n    def __init__(self, *, a): ...\nclass B(A): ...\nclass C(A):\n    def __init__(self, *, c): ...\nclass Mine(B, C): ...",
    ),
    "options of any name": ("Mine(c=1)", "class Mine(Defense):\n    def __init__(self, **options): ..."),
    "a base from elsewhere": ("Mine(c=1)", "from gitbench_defenses.gaussian_noise import GaussianNoise\nclass Mine(wrap(GaussianNoise)): ..."),
    "an imported module of ours": ("Mine(rate=0.5)", "from gitbench_defenses import pruning\nclass Mine(pruning.Pruning): ..."),
    "a class of its base's name": ("Pruning(rate=0.5)", "from gitbench_defenses.pruning import Pruning\nclass Pruning(Pruning): ..."),
}  # fmt: skip
_numbers = itertools.count()


def file_of(folder: Path, source: str) -> Path:
    return write(folder / f"mine{next(_numbers)}.py", HEADER + source + "\n")


@pytest.fixture(autouse=True)
def _paths() -> Iterator[None]:
    before = sys.path[:]
    yield
    sys.path[:] = before


@pytest.mark.parametrize("form", FORMS)
def test_what_python_builds_is_not_refused(form: str, tmp_path: Path) -> None:
    call, source = FORMS[form]
    spec = parse_spec("defense", f"{file_of(tmp_path, source)}:{call}")
    check_spec(spec)
    assert isinstance(build_part("defense", spec.parts[0], Defense), Defense)


DEFINITIONS = [
    "class Mine(Defense):\n    def __init__(self, *, a=1): ...",
    "class Mine(Defense):\n    def __init__(self, *, b): ...",
    "class Mine(Defense): ...",
    "@dataclass\nclass Mine(Defense):\n    a: int = 1\n    c: int = 2",
    "class Base(Defense):\n    def __init__(self, **options): ...\nclass Mine(Base): ...",
    "class Base(Defense):\n    def __init__(self, *, c): ...\nclass Mine(Base): ...",
    "class Mine(Defense):\n    __init__ = other",
    "from gitbench_defenses.none import Undefended as Mine",
    "Mine = wrap(Defense)",
]
AROUND = [
    "{}",
    "if True:\n{}",
    "try:\n{}\nfinally:\n    pass",
    "for _ in [0]:\n{}",
    "def f():\n    global Mine\n{}\nf()",
    "with open(__file__):\n{}",
]
AFTER = [
    "Mine.__init__ = other",
    "setattr(Mine, '__init__', other)",
    "Mine = wrap(Mine)",
    "dataclass(Mine)",
    "globals()['Mine'] = wrap(Mine)",
    "Alias = Mine\nAlias.__init__ = other",
    "Alias = Mine\ndataclass(Alias)",
    "for one in [Mine]:\n    one.__init__ = other",
    "exec('Mine = wrap(Mine)')",
    "Mine.extra = isinstance(1, Mine)",
    "def use(found: Mine) -> Mine:\n    return Mine()",
    "del Mine",
]


def indented(source: str, around: str) -> str:
    lines = source if around == "{}" else "\n".join(f"    {line}" for line in source.split("\n"))
    return around.format(lines)


@given(
    blocks=st.lists(st.tuples(st.sampled_from(DEFINITIONS), st.sampled_from(AROUND)), min_size=1, max_size=2),
    after=st.lists(st.sampled_from(AFTER), max_size=2),
    options=st.sets(st.sampled_from("abc"), max_size=2),
)
def test_whatever_python_builds_is_not_refused(
    tmp_path_factory: pytest.TempPathFactory, blocks: list[tuple[str, str]], after: list[str], options: set[str]
) -> None:
    source = "\n".join([*(indented(*block) for block in blocks), *after])
    file = file_of(tmp_path_factory.getbasetemp(), source)
    part = Part(f"{file}:Mine", tuple((name, 1) for name in sorted(options)))
    try:
        build_part("defense", part, Defense)
    except SpecError:
        return
    check_spec(parse_spec("defense", str(part)))


@pytest.mark.parametrize(
    ("call", "source", "message"),
    [
        ("Mime", "class Mine(Defense): ...", r"has no 'Mime'\. Did you mean 'Mine'\?"),
        ("Mime", "import logging\nlog = logging.getLogger(__name__)\nclass Mine(Defense): ...", r"has no 'Mime'\. Did you mean 'Mine'\?"),
        ("Mime", "if sys:\n    class Mine(Defense): ...", r"has no 'Mime'\. Did you mean 'Mine'\?"),
        ("Mine(factr=1)", "class Mine(Defense):\n    def __init__(self, *, factor=1): ...", r"takes no option 'factr'\. Did you mean 'factor'\?"),
        ("Mine(factr=1)", "class Mine(gitbench.Defense):\n    def __init__(self, *, factor=1): ...", r"Did you mean 'factor'\?"),
        ("Mine", "class Mine(Defense):\n    def __init__(self, *, factor): ...", r"needs factor"),
        ("Mine(rat=1)", "from gitbench_defenses.pruning import Pruning\nclass Mine(Pruning): ...", r"takes no option 'rat'\. Did you mean 'rate'\?"),
        ("Mine(a=1)", "class Mine(Defense): ...", r"takes no option 'a'"),
    ],
)  # fmt: skip
def test_what_is_surely_wrong_is_refused_without_importing(tmp_path: Path, call: str, source: str, message: str) -> None:
    file = file_of(tmp_path, f"{source}\nraise SystemExit")
    with pytest.raises(SpecError, match=message):
        check_spec(parse_spec("defense", f"{file}:{call}"))


@pytest.mark.parametrize(
    ("call", "source", "message"),
    [
        ("Mime", "from gitbench_defenses.none import *", r"has no 'Mime'"),
        ("Mime", "class Mine(Defense): ...\nglobals()['Other'] = 1", r"has no 'Mime'\. Did you mean 'Mine'\?"),
        ("Undefended(x=1)", "from gitbench_defenses.none import *", r"takes no option 'x'"),
        ("Mine(factr=1)", "@wrap\nclass Mine(Defense): ...", r"refuses its options: .*'factr'"),
        ("Mine", "raise SystemExit(3)\nclass Mine(Defense): ...", r"failed: SystemExit\(3\)"),
    ],
)
def test_what_only_importing_can_tell_is_refused_when_it_is_loaded(tmp_path: Path, call: str, source: str, message: str) -> None:
    spec = parse_spec("defense", f"{file_of(tmp_path, source)}:{call}")
    check_spec(spec)
    with pytest.raises(SpecError, match=message):
        build_part("defense", spec.parts[0], Defense)


def test_what_a_function_of_another_module_binds_is_not_refused(tmp_path: Path) -> None:
    helper = (
        "import sys\nfrom gitbench_defenses.none import Undefended\ndef install():\n    sys._getframe(1).f_globals['Mine'] = Undefended\n"
    )
    write(tmp_path / "gitbench_test_installs.py", helper)
    statements = (
        "import gitbench_test_installs as found\nfound.install()",
        "from gitbench_test_installs import install\ntry:\n    install()\nfinally:\n    pass",
        "from gitbench_test_installs import install\ndef other(given=install()): ...",
    )
    for statement in statements:
        spec = parse_spec("defense", f"{file_of(tmp_path, statement)}:Mine")
        check_spec(spec)
        assert load_part("defense", spec.parts[0]).name == "none"


def test_modules_that_python_can_import_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "from gitbench_defenses.none import Undefended as Mine\n"
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as file:
        file.writestr("gitbench_test_zipped/__init__.py", "")
        file.writestr("gitbench_test_zipped/inner.py", source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "packed.zip")
    write(tmp_path / "elsewhere" / "inner.py", source)
    write(tmp_path / "gitbench_test_longer" / "__init__.py", f"__path__.append({str(tmp_path / 'elsewhere')!r})\n")
    write(
        tmp_path / "gitbench_test_hook.py",
        "import sys, types\nimport gitbench_defenses.none\nsys.modules['gitbench_test_hook.inner'] = gitbench_defenses.none\n__path__ = []\n",
    )
    write(tmp_path / "gitbench_test_open" / "below" / "inner.py", source)
    made = types.ModuleType("gitbench_test_made")
    made.Mine = load_part("defense", Part("none"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gitbench_test_made", made)
    targets = [*(f"gitbench_test_{name}.inner:Mine" for name in ("zipped", "longer", "open.below")), "gitbench_test_hook.inner:Undefended"]
    for target in (*targets, "gitbench_test_made:Mine"):
        check_spec(parse_spec("defense", target))
        assert load_part("defense", Part(target)).name == "none"


def test_a_class_of_torch_is_found() -> None:
    spec = parse_spec("model", "torch.nn:Linear(in_features=4, out_features=2)")
    check_spec(spec)
    assert load_part("model", spec.parts[0]).__name__ == "Linear"
