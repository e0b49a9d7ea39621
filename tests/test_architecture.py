"""Imports flow one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import graphlib
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gitbench
from gitbench.core.former import FORMER

ROOT = Path(gitbench.__file__).parent
HERE = Path(__file__).parents[1]

# From the foundations to the entry: a room may import only rooms that stand before it. docs/design.md is the map.
ROOMS = ["core", "identity", "store", "judge", "clients", "attacker", "measure", "run", "publish", "cli"]
# The attacker's own rooms, likewise; the modules beside them stand between the layers and the tools.
INNER = ["layers", "", "tools", "attacks"]
LIGHT = ["core", "identity", "judge", "run", "cli"]  # whole rooms that import no torch
LIGHT_MODULES = [
    *("store.result", "store.folder", "publish.leaderboard", "publish.baseline", "publish.comparison"),
    *("publish.comment", "publish.entries", "publish.manifest", "publish.table"),
    *("publish.suite_table", "publish.suite_page", "publish.suite_rebuild"),
]
HEAVY = ["core.random", "core.memory"]


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name == "cli.py")


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    """Modules of gitbench that a file imports when it is itself imported (not inside functions or TYPE_CHECKING)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "gitbench":
            inside = node.module.partition(".")[2]
            names = [".".join(part for part in (inside, alias.name) if part) for alias in node.names]
            found.update(name if (ROOT / f"{name.replace('.', '/')}.py").is_file() else inside for name in names)
    return found - {"", "_version"}


@pytest.mark.parametrize("path", modules(), ids=dotted)
def test_no_arrow_runs_backwards(path: Path) -> None:
    room, *rest = dotted(path).split(".")
    assert room in ROOMS, f"{room} has no level: add it to ROOMS where it belongs"
    for name in imported(path):
        other, *inner = name.split(".")
        assert ROOMS.index(other) <= ROOMS.index(room), f"{dotted(path)} imports {name}, which stands above it"
        if room == other == "attacker":
            ranks = [INNER.index(parts[0] if len(parts) > 1 and parts[0] in INNER else "") for parts in (inner, rest)]
            assert ranks[0] <= ranks[1], f"{dotted(path)} imports {name}, which stands above it"


def test_no_imports_in_circles() -> None:
    graphlib.TopologicalSorter({dotted(path): imported(path) - {dotted(path)} for path in modules()}).prepare()


@pytest.mark.parametrize("folder", ["attacker/attacks", "clients/models", "clients/datasets", "measure/metrics"])
def test_components_do_not_import_their_neighbours(folder: str) -> None:
    room = folder.replace("/", ".")
    for path in (ROOT / folder).rglob("*.py"):
        own = ".".join(dotted(path).split(".")[:3])
        neighbours = {name for name in imported(path) if name.startswith(f"{room}.") and not f"{name}.".startswith(f"{own}.")}
        # `auto` runs the others: it is above them.
        assert not neighbours or own == "attacker.attacks.auto", f"{dotted(path)} imports {sorted(neighbours)}"


def test_the_library_knows_no_pytest() -> None:
    for path in modules():
        assert "import pytest" not in path.read_text(), path.name


def test_only_the_evaluator_knows_the_whole_chain() -> None:
    whole = {
        *("clients.data", "clients.model", "clients.client", "clients.defense", "attacker.observation"),
        *("attacker.attack", "measure.scoring", "store.result"),
    }
    assert [dotted(path) for path in modules() if whole <= imported(path)] == ["measure.evaluator"]


def test_light_modules_import_no_torch() -> None:
    found = [dotted(path) for path in modules()]
    names = [name for name in found if (name.partition(".")[0] in LIGHT and name not in HEAVY) or name in LIGHT_MODULES]
    names += [name for name in found if name.startswith("publish.report.")]
    assert set(LIGHT_MODULES) <= set(names)
    code = "import sys\n" + "".join(f"import gitbench.{name}\n" for name in names)
    subprocess.run([sys.executable, "-c", f"{code}assert not {{'torch', 'pandas', 'scipy'}} & set(sys.modules)"], check=True)


@pytest.mark.parametrize("name", gitbench.__all__)
def test_everything_public_can_be_imported(name: str) -> None:
    assert getattr(gitbench, name) is not None
    # A room must never hide a function of the same name.
    importlib.import_module("gitbench.measure.evaluator")
    assert callable(gitbench.evaluate)


@pytest.mark.parametrize("name", sorted(FORMER))
def test_where_a_module_stood_in_0_1_it_is_still_found(name: str) -> None:
    assert importlib.import_module(f"gitbench.{name}") is importlib.import_module(f"gitbench.{FORMER[name]}")


def test_two_classes_never_share_a_name() -> None:
    seen: dict[str, str] = {}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name != "Options":  # an attack's own, within it
                assert seen.setdefault(node.name, dotted(path)) == dotted(path), f"{node.name} in {seen[node.name]} and {dotted(path)}"


FILES = [path for folder in ("gitbench", "plugins", "defenses", "tests", "benchmarks", "fuzz") for path in (HERE / folder).rglob("*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(HERE)))
def test_what_is_written_can_be_read(path: Path) -> None:
    """No function over 50 lines, no file over 350 unless its first line says why."""
    text = path.read_text()
    assert text.count("\n") <= 350 or "One file, " in text.partition("\n")[0]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 50, node.name


def test_only_three_packages_are_installed() -> None:
    from importlib import metadata

    tops = {str(file).split("/")[0] for file in metadata.files("gitbench") or [] if str(file).endswith(".py")}
    assert not tops & {"plugins", "defenses", "tests"}
