"""Imports flow one way, and what must stay light stays light."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import gitbench

ROOT = Path(gitbench.__file__).parent

# From the foundations to the entry: a module may import only what stands before it. One line, one level.
LEVELS = [
    ["_version", "text", "errors", "metric", "progress", "assets", "libraries"],
    ["spec", "threat", "deadline", "scaffold"],
    ["component", "files", "identity"],
    ["registry"],
    ["case"],
    ["result", "statistics"],
    ["flags"],
    ["verdict", "store"],
    ["sequential", "worst"],
    ["config", "baseline", "claim"],
    ["comparison", "bench"],
    ["entries"],
    ["leaderboard", "comment"],
    ["cli"],
    ["activation", "memory", "random", "update", "data", "metrics", "pictures"],
    ["training", "fitting"],
    ["model", "defense"],
    ["datasets", "models"],
    ["client"],
    ["observation", "conformance", "utility", "fingerprint"],
    ["pairs", "regression", "counts"],
    ["labels", "features", "matching", "lbfgs", "attack"],
    ["transcript", "rehearsal"],
    ["recursion"],
    ["criterion"],
    ["attacks", "fits", "inspection"],
    ["auto"],
    ["scoring"],
    ["evaluation"],
    ["submission"],
]
RANK = {name: rank for rank, names in enumerate(LEVELS) for name in names}
LIGHT = ["spec", "registry", "config", "case", "result", "verdict", "store", "leaderboard", "baseline", "bench", "cli", "threat", "metric"]
LIGHT += ["files", "identity", "libraries", "comparison", "comment", "sequential", "worst", "entries", "claim"]


def modules() -> list[Path]:
    return sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def unit(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Units of gitbench that a file imports when it is itself imported (not inside functions or TYPE_CHECKING)."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "gitbench":
            names = [node.module] if "." in node.module else [f"gitbench.{alias.name}" for alias in node.names]
            found.update(name.split(".")[1] for name in names)
    return {"_version" if name == "__version__" else name for name in found}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_no_arrow_runs_backwards(path: Path) -> None:
    own = unit(path)
    assert own in RANK, f"{own} has no level: add it to LEVELS where it belongs"
    for name in imported(path) - {own}:
        assert RANK[name] < RANK[own], f"{path.name} imports {name}, which stands above it"


@pytest.mark.parametrize("folder", ["attacks", "models", "datasets"])
def test_components_do_not_import_their_neighbours(folder: str) -> None:
    for path in (ROOT / folder).glob("*.py"):
        assert folder not in imported(path), path.name


def test_the_library_knows_no_pytest() -> None:
    for path in modules():
        assert "import pytest" not in path.read_text(), path.name


def test_only_evaluation_knows_the_whole_chain() -> None:
    whole = {"data", "model", "client", "defense", "observation", "attack", "scoring", "result"}
    assert [path.name for path in modules() if whole <= imported(path)] == ["evaluation.py"]


def test_light_modules_import_no_torch() -> None:
    code = f"import sys\n{''.join(f'import gitbench.{name}{chr(10)}' for name in LIGHT)}assert not {{'torch', 'pandas', 'scipy'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", gitbench.__all__)
def test_everything_public_can_be_imported(name: str) -> None:
    assert getattr(gitbench, name) is not None
    # A submodule must never hide a function of the same name.
    importlib.import_module("gitbench.evaluation")
    assert callable(gitbench.evaluate)


def test_only_three_packages_are_installed() -> None:
    from importlib import metadata

    tops = {str(file).split("/")[0] for file in metadata.files("gitbench") or [] if str(file).endswith(".py")}
    assert not tops & {"plugins", "defenses", "tests"}
