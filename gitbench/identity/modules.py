"""Where a module's source lies, and what it reads: found without importing it or its parents (that could import torch)."""

from __future__ import annotations

import ast
import functools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from gitbench.core.errors import SpecError
from gitbench.core.former import present


def find_module(name: str) -> ModuleSpec | None:
    """What ``importlib.util.find_spec`` finds, but no parent of the module is imported. A module of gitbench may go by its former name."""
    found: ModuleSpec | None = None
    folders: Sequence[str] | None = None
    parts = present(name).split(".")
    for end in range(1, len(parts) + 1):
        if end > 1 and folders is None:
            return None  # a module holds no modules
        one = ".".join(parts[:end])
        found = _asked(one, folders)
        if found is None:
            return None
        folders = getattr(sys.modules.get(one), "__path__", found.submodule_search_locations)
    return found


@functools.cache
def module_file(name: str) -> Path | None:
    """The source of a module; None where there is none, or none that can be read (compiled, zipped, a folder)."""
    found = find_module(name)
    if found is None or not found.origin or not found.origin.endswith(".py"):
        return None
    path = Path(found.origin)
    return path if path.is_file() else None


def source_at(stem: Path) -> Path | None:
    """The module or package whose path without a suffix is ``stem``."""
    return next((path for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if path.is_file()), None)


def parse(path: Path) -> ast.Module:
    """The syntax tree of a Python file.

    Raises:
        SpecError: it cannot be read, or is not valid Python.
    """
    return _tree(path, path.stat().st_mtime_ns)


def _asked(name: str, folders: Sequence[str] | None) -> ModuleSpec | None:
    loaded = sys.modules.get(name)
    if loaded is not None:  # a notebook's module, or one made in memory, has no spec
        spec: ModuleSpec | None = getattr(loaded, "__spec__", None)
        return spec or ModuleSpec(name, None, origin=getattr(loaded, "__file__", None))
    for finder in sys.meta_path:
        try:
            found = finder.find_spec(name, folders) if hasattr(finder, "find_spec") else None
        except KeyError:  # a folder without __init__.py, whose parent Python would have to import first
            found = ModuleSpec(name, None, is_package=True)
            found.submodule_search_locations = [str(Path(folder, name.rpartition(".")[2])) for folder in folders or ()]
        except (ImportError, ValueError, AttributeError):
            continue
        if found is not None:
            return found
    return None


@functools.cache
def _tree(path: Path, _modified: int) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except OSError as error:
        raise SpecError(f"Cannot read {path}: {error}.") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"{path} is not valid Python: {error}.") from None
