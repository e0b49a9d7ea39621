"""The digest of a component changes with its source, with what that imports of the same work, and with nothing else."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import gitbench
from gitbench.core.spec import Part
from gitbench.identity.loading import load_part
from gitbench.identity.names import locate
from gitbench.identity.sources import TELLING, closure, part_digest, source_digest
from gitbench.run.bench import case_of
from helpers import SCALE, write


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

    first = case_id(SCALE)
    assert case_id(SCALE) == first
    assert case_id(SCALE.replace("0.5", "0.6")) != first
    assert case_id(SCALE) == first


def package_digest(folder: Path, name: str, statement: str) -> tuple[str, str]:
    """Digests of a component before and after an edit of the neighbour that it imports."""
    write(folder / name / "__init__.py", "")
    write(folder / name / "mine.py", f"{statement}\nclass Mine: ...\n")
    return around_an_edit(folder / name / "helper.py", f"{name}.mine:Mine")


def around_an_edit(helper: Path, target: str) -> tuple[str, str]:
    """Digests of a component before and after an edit of another file."""
    write(helper, "X = 1\n")
    before = source_digest(locate("defense", Part(target)))
    write(helper, "X = 2\n")
    return before, source_digest(locate("defense", Part(target)))


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
    return source_digest(locate("defense", Part(f"{file}:Mine")))


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
        digests.append(part_digest("defense", Part("mine.py:Mine")))
    typed = part_digest("defense", Part("mine.py:Mine", (("config", "missing.txt"),)))
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
        load_part("defense", Part(f"{file}:Mine"))
    finally:
        sys.modules.pop("gitbench_test_both", None)
        sys.path[:] = [path for path in sys.path if path != str(tmp_path)]


def test_a_file_within_a_package_is_followed_by_the_names_it_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "gitbench_test_whole"
    file = write(package / "inner" / "mine.py", "from gitbench_test_whole.inner.random import X\nclass Mine: ...\n")
    write(package / "inner" / "random.py", "from ..consts import X\n")
    before, after = around_an_edit(package / "consts.py", f"{file}:Mine")
    assert before != after
    try:
        load_part("defense", Part(f"{file}:Mine"))  # its random is not Python's
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


def test_other_peoples_packages_beside_an_installed_one_are_not_followed(tmp_path: Path) -> None:
    file = write(tmp_path / "site-packages" / "mine.py", "import helper\nclass Mine: ...\n")
    write(tmp_path / "site-packages" / "helper.py", "X = 1\n")
    before = component_digest(file)
    write(tmp_path / "site-packages" / "helper.py", "X = 2\n")
    assert component_digest(file) == before


def test_the_digest_does_not_depend_on_where_the_packages_lie(tmp_path: Path) -> None:
    import gitbench_defenses

    digests = []
    for layout in (("same", "same"), ("z", "a")):
        folders = [tmp_path / "-".join(layout) / name for name in layout]
        for package, folder in zip((gitbench, gitbench_defenses), folders, strict=True):
            source = Path(package.__file__).parent
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        code = (
            f"import sys; sys.path[:0] = {[str(folder) for folder in folders]!r}\n"
            "from gitbench.identity import sources\n"
            "print(sources.digest_of_module('gitbench_defenses.clipping'), sources.__file__)"
        )
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
        digest, file = found.stdout.split()
        assert file.startswith(str(tmp_path))
        digests.append(digest)
    assert digests[0] == digests[1]


EDITED = """
import sys
from pathlib import Path
root = Path(sys.argv[1])
sys.path[:0] = [str(root)]
from gitbench.core.spec import Part
from gitbench.identity import case, sources
assert sources.__file__.startswith(str(root)), sources.__file__
for name in sys.argv[2:]:
    file = root / f"{name.replace('.', '/')}.py"
    if name and not file.is_file():
        sys.exit(f"no {file}")
    text = file.read_bytes() if name else b""
    if name:
        file.write_bytes(text + b"# edited\\n")
    print(name, case.core_digest.__wrapped__(), sources.part_digest("attack", Part("ig")), sources.part_digest("defense", Part("none")))
    if name:
        file.write_bytes(text)
"""


def test_what_only_tells_re_measures_nothing_and_what_measures_does(tmp_path: Path) -> None:
    """Each module of a copy of gitbench is edited in turn."""
    shutil.copytree(Path(gitbench.__file__).parent, tmp_path / "gitbench", ignore=shutil.ignore_patterns("__pycache__"))
    telling = [f"gitbench.{name}" for name in ("judge.flags", "core.progress", "core.text", "core.errors", "core.memory", "store.pictures")]
    measuring = [f"gitbench.{name}" for name in ("measure.scoring", "clients.client", "attacker.observation", "core.random")]
    own = "gitbench.attacker.attacks.ig"
    command = [sys.executable, "-c", EDITED, str(tmp_path), "", *telling, *measuring, own]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    plain, *edited = [line.split(" ") for line in done.stdout.splitlines()]
    digests = {name: [one != before for one, before in zip(found, plain[1:], strict=True)] for name, *found in edited}
    assert all(digests[name] == [False, False, False] for name in telling), digests
    assert all(digests[name][0] for name in measuring), digests
    assert digests["gitbench.attacker.observation"] == [True, True, False]
    assert digests[own] == [False, True, False]


def test_what_only_tells_is_there() -> None:
    assert all(importlib.util.find_spec(name) for name in TELLING)


def test_a_file_that_imports_by_a_former_name_is_digested_with_what_it_imports(tmp_path: Path) -> None:
    former = write(tmp_path / "former.py", "from gitbench.attack import Attack\nfrom gitbench import regression\nclass Mine(Attack): ...\n")
    names = set(closure(locate("attack", Part(f"{former}:Mine"))).values())
    assert {"gitbench.attacker.attack", "gitbench.attacker.tools.regression", "gitbench.attacker.observation"} <= names


def test_torch_is_known_by_its_version() -> None:
    start = time.monotonic()
    assert source_digest(locate("model", Part("torch.nn:Linear"))) not in ("no-source", source_digest(locate("model", Part("lenet"))))
    assert time.monotonic() - start < 5  # reading all of it would take half a minute
