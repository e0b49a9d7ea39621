"""Where suites are found: among those that gitbench ships, in packages that an entry point names, and in files."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

from gitbench.core.errors import ConfigError, nearest
from gitbench.core.text import shown
from gitbench.identity.modules import find_module
from gitbench.run.suite import Suite, read_suite

GROUP = "gitbench.suites"
"""The entry-point group: each entry names a package whose ``*.toml`` files are suites."""
SUFFIX = ".toml"
SHIPPED = Path(__file__).with_name("suites")

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,79}\Z", re.ASCII)


def suite_files() -> dict[str, Path]:
    """Every installed suite: its name, and its file. None of them is read.

    Raises:
        ConfigError: an entry point leads nowhere, or two packages have suites of one name.
    """
    found: dict[str, Path] = {}
    for folder in dict.fromkeys((SHIPPED, *_of_packages())):
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if found.setdefault(path.stem, path) != path:
                raise ConfigError(f"Two suites are called {path.stem!r}: {found[path.stem]} and {path}. Name the one you mean by its path.")
    return found


def find_suite(given: str) -> tuple[str, Suite]:
    """The suite of a name or of a file, with the name that its table goes by.

    Raises:
        ConfigError: no such suite, or what is there is none.
    """
    if given.endswith(SUFFIX) or os.sep in given or "/" in given:
        path = Path(given)
        if not _NAME.match(path.stem):
            raise ConfigError(f"Expected a suite's file to have a name of letters, digits, '-', '_' and '.', got {shown(path.name)}.")
        return path.stem, read_suite(path)
    known = suite_files()
    if given not in known:
        raise ConfigError(f"Unknown suite {shown(given)}.{nearest(given, known)} Or name a file of yours: path/to/mine{SUFFIX}.")
    return given, read_suite(known[given])


def _of_packages() -> list[Path]:
    folders = []
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.value):
        spec = find_module(point.value) if all(part.isidentifier() for part in point.value.split(".")) else None
        where = list(spec.submodule_search_locations or ()) if spec is not None else []
        if not where:
            raise ConfigError(
                f"The entry point {point.name!r} of {GROUP} names {shown(point.value)}, expected a package with suites in it. "
                "Mend or uninstall that package."
            )
        folders += [Path(folder) for folder in where]
    return folders
