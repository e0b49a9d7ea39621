"""The digest of a component: its source, with what that imports of the same work, and the files that its options name."""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from gitbench.core.former import present
from gitbench.core.spec import Kind, Part
from gitbench.identity.files import digest_of_files
from gitbench.identity.libraries import holds_libraries
from gitbench.identity.modules import module_file, parse, source_at
from gitbench.identity.names import Target, locate
from gitbench.identity.signatures import default_texts

# Our own modules, and rooms, that only tell or keep what was measured. No digest holds them: a reworded message measures nothing anew.
TELLING = (
    "gitbench.core.errors",  # messages
    "gitbench.core.memory",  # what a case took, and whether there is room to begin
    "gitbench.core.progress",
    "gitbench.core.text",
    "gitbench.identity.bindings",  # with signatures: refuses a SPEC before anything is measured
    "gitbench.identity.signatures",
    "gitbench.judge.flags",  # raised from the figures whenever a result is judged
    "gitbench.store",  # results on disk: cost, pictures
)
# Options that name code, as module:name or file.py:name, which is then part of what is measured.
CODE_OPTIONS: Mapping[Kind, tuple[str, ...]] = {"attack": ("generator",)}


# Modules of the standard library that are data: their content differs with Python's version, and so does what is measured.
CONTENT = ("pydoc_data.topics",)


@dataclass(frozen=True)
class Written:
    """What the text of a component says of every SPEC that names it: the digest of its sources, and options whose default is a text."""

    digest: str
    defaults: Mapping[str, str]


def written(target: Target) -> Written:
    """Read the text of a component.

    Raises:
        SpecError: a file cannot be read, or is not valid Python.
    """
    defaults = default_texts(target)
    return Written(source_digest(target), defaults)


def part_digest(kind: Kind, part: Part, *, read: Callable[[Target], Written] = written) -> str:
    """Hash of all that stands behind one part of a SPEC: sources, and the files that its options name (16 hex digits).

    Args:
        kind: of the part.
        part: of a SPEC.
        read: :func:`written`, or what remembers its answers for a hundred SPECs of one component.

    Raises:
        SpecError: no such name, file or module.
    """
    found = read(locate(kind, part))
    arguments = {**found.defaults, **dict(part.arguments)}
    source = found.digest
    for named in (arguments.get(option) for option in CODE_OPTIONS.get(kind, ())):
        if isinstance(named, str) and ":" in named:
            source = hashlib.sha256(f"{source} {read(locate(kind, Part(named))).digest}".encode()).hexdigest()[:16]
    return with_files(source, kind, Part(part.target, tuple(arguments.items())))


def with_files(source: str, kind: Kind, part: Part) -> str:
    """A digest of sources, changed by the files that the options of a part name."""
    files = digest_of_files(kind, part)
    return hashlib.sha256(f"{source} {files}".encode()).hexdigest()[:16] if files else source


def source_digest(target: Target) -> str:
    """Hash of a component's source and of what it imports from the same package, or from modules beside it (16 hex digits)."""
    if target.path is None:
        return "no-source"
    digest = hashlib.sha256()
    if target.module.partition(".")[0] == "torch":  # its modules import nearly all of it: half a minute to read
        digest.update(f"torch {metadata.version('torch')}".encode())
        return digest.hexdigest()[:16]
    # By dotted name: where the packages are installed must not change the order, nor the digest.
    for _, file, content in sorted((name, path.name, path.read_bytes()) for path, name in closure(target).items()):
        digest.update(file.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]


def digest_of_module(module: str) -> str:
    """:func:`source_digest` of a module given by its dotted name."""
    return source_digest(Target(module, "", module_file(module)))


def closure(target: Target) -> dict[Path, str]:
    """The target's file and, transitively, the files it imports from its own top-level package or from beside it, with their names.

    Of gitbench's own modules those in :data:`TELLING` are left out.
    """
    assert target.path is not None
    package = target.module.partition(".")[0]
    first = target.path.resolve() if target.is_file else target.path  # of a link, what lies beside the file that it leads to
    root = first.parents[target.module.count(".") + (first.name == "__init__.py")]
    # A user's file, what lies beside it and the project's own packages are one work; installed packages are other people's.
    beside = None if holds_libraries(root) else root
    seen: dict[Path, str] = {}
    waiting = [(first, target.module)]
    while waiting:
        path, called = waiting.pop()
        if path in seen:
            continue
        seen[path] = called
        for name in sorted(_imports(path, path.stat().st_mtime_ns, called)):
            found = _followed(name, package, beside)
            if found is not None:
                waiting.append((found, name))
    return seen


def _followed(name: str, package: str, beside: Path | None) -> Path | None:
    """The file of a module that belongs to the same work as a component; None for other people's."""
    top = name.partition(".")[0]
    if name in CONTENT:
        return module_file(name)
    if top in sys.stdlib_module_names or any(f"{name}.".startswith(f"{one}.") for one in TELLING):
        return None
    if top in (package, "gitbench"):
        # gitbench/__init__.py only re-exports: following it would tie every component to every other.
        return module_file(name) if name != "gitbench" else None
    if beside is None:
        return None
    # What lies beside may be installed as well: then Python takes the installed one, and so is what is digested.
    if not _is_library(name):
        return source_at(beside.joinpath(*name.split("."))) or module_file(name)
    return module_file(name) if source_at(beside / top) is not None else None


@functools.cache
def _is_library(name: str) -> bool:
    """Whether a module would be imported from where packages are installed."""
    found = module_file(name)
    if found is None:
        return False
    up = name.count(".") + (found.name == "__init__.py")
    return len(found.parents) > up and holds_libraries(found.parents[up])


@functools.cache
def _imports(path: Path, _modified: int, module: str) -> frozenset[str]:
    """What a file imports, by the dotted names of today. A large matrix asks for the same few files again and again."""
    return frozenset(map(present, _each_import(path, module)))


def _each_import(path: Path, module: str) -> Iterator[str]:
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # An __init__.py is the package itself: its first dot takes nothing away.
            up = node.level - (path.name == "__init__.py" and not module.endswith("__init__"))
            parts = module.split(".")[: len(module.split(".")) - up] if node.level else []
            source = ".".join([*parts, *([node.module] if node.module else [])])
            if source:
                yield source
                yield from (f"{source}.{alias.name}" for alias in node.names)
