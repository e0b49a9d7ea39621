"""Files that the options of a SPEC name. What is in them belongs to the identity of what is measured, as code does."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from gitbench.core.spec import Kind, Part

LARGE = 2**26  # bytes of a file or folder that is read to know it; a larger one is known by sizes and when files were changed
DEPTH = 3  # folders: split, class, image
NESTED = 8  # lists within lists that are looked into


def digest_of_files(kind: Kind, part: Part) -> str:
    """Digest of the files that the options of one part name, the empty string where they name none.

    A file counts by its content. A folder counts where it may hold images: of a dataset, by the names and contents of the
    files down to ``DEPTH``, unless the option is ``root``, where torchvision keeps data sets side by side and checks them.

    Args:
        kind: of the part.
        part: of a SPEC; paths are relative to the working directory.
    """
    digest = hashlib.sha256()
    named = False
    for key, value in part.arguments:
        for text in _texts(value):
            for line in _described(text, folders=kind == "dataset" and key != "root"):
                named = True
                digest.update(f"{key} {line}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16] if named else ""


def _texts(value: object, depth: int = NESTED) -> Iterator[str]:
    if isinstance(value, str | PurePath):
        yield str(value)
    elif depth and isinstance(value, Mapping | list | tuple | set | frozenset):
        items = value.values() if isinstance(value, Mapping) else sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        for item in items:
            yield from _texts(item, depth - 1)


def _described(text: str, *, folders: bool) -> Iterator[str]:
    try:
        path = Path(text).expanduser()
        if path.is_file():
            found = path.stat()
            yield _content(path.resolve(), found.st_size, found.st_mtime_ns)
        elif folders and text and path.is_dir():
            yield from _listing(path.resolve(), tuple(sorted(_folders(path, "", DEPTH))))
    except (OSError, RuntimeError, ValueError):  # no path at all, or one that cannot be read: whoever loads it will say so
        return


@functools.cache
def _content(path: Path, size: int, changed: int) -> str:
    if size > LARGE:
        return f"{size} bytes, {changed}"
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()  # never more: a file of /proc has no size, and may have no end


def _folders(folder: Path, name: str, depth: int) -> Iterator[tuple[str, int]]:
    """A folder and those below it, by name and when something was last added or taken away."""
    yield name, folder.stat().st_mtime_ns
    if depth > 1:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir() and not entry.name.startswith("."):  # .gitbench, say, which a run itself writes
                    yield from _folders(Path(entry.path), f"{name}{entry.name}/", depth - 1)


@functools.cache
def _listing(path: Path, folders: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    found: dict[str, os.stat_result] = {}
    for name, _ in folders:
        with os.scandir(path / name) as entries:
            found.update({f"{name}{entry.name}": entry.stat() for entry in entries if entry.is_file() and entry.name[0] != "."})
    large = sum(one.st_size for one in found.values()) > LARGE
    return tuple(
        f"{name} {one.st_size} bytes, {one.st_mtime_ns}" if large else f"{name} {_content(path / name, one.st_size, one.st_mtime_ns)}"
        for name, one in sorted(found.items())
    )
