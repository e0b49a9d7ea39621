"""Names of components and where they lead: installed entry points, ``module:Name`` and ``file.py:Name``. Nothing of them is imported."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import get_args

from gitbench.core.errors import SpecError, nearest
from gitbench.core.former import present
from gitbench.core.spec import Kind, Part, parse_spec
from gitbench.identity.bindings import bindings_of
from gitbench.identity.modules import find_module, module_file

GROUPS: dict[Kind, str] = {kind: f"gitbench.{kind}s" for kind in get_args(Kind)} | {"modality": "gitbench.modalities"}
_FILE = "_gitbench_file_"


@dataclass(frozen=True)
class Target:
    """Where a component lives: a module (and its file, where known) and a name in it."""

    module: str
    attribute: str
    path: Path | None

    @property
    def is_file(self) -> bool:
        """Whether the SPEC names a file, which is then a module of its own."""
        return self.module.startswith(_FILE)


# What register() added in this process: where a name leads must be known wherever a SPEC is read.
_added: dict[Kind, dict[str, str]] = {}


def entry_points(kind: Kind) -> dict[str, str]:
    """Registered names of a kind and what they point to (``module:Name``): installed ones, and those of :func:`register`.

    Raises:
        SpecError: two packages register different things under one name.
    """
    return {**_installed(kind), **_added.get(kind, {})}


def register(found: Mapping[str, Mapping[str, str]]) -> Callable[[], None]:
    """Register components in this process, as entry points do for all.

    Args:
        found: kind to names and what they point to: ``module:Name`` or ``file.py:Name``.

    Returns:
        Takes them back.

    Raises:
        SpecError: no such kind, a name that is taken or no name, or a target that is none. Nothing is registered then.
    """
    new: dict[Kind, dict[str, str]] = {}
    for kind in found:
        if kind not in GROUPS:
            raise SpecError(f"Cannot register the kind {kind!r}.{nearest(str(kind), GROUPS)}")
    for kind in GROUPS:
        for name, target in found.get(kind, {}).items():
            if not name.isidentifier() or not isinstance(target, str) or ":" not in target:
                raise SpecError(f"Cannot register the {kind} {name!r} as {target!r}: expected a name and module:Name or file.py:Name.")
            parse_spec(kind, target)
            taken = entry_points(kind).get(name, target)
            if taken != target:
                raise SpecError(f"Cannot register the {kind} {name!r} as {target}: it is {taken} already. Choose another name.")
            new.setdefault(kind, {})[name] = target
    for kind, names in new.items():
        _added.setdefault(kind, {}).update(names)

    def forget() -> None:
        for kind, names in new.items():
            for name in names:
                _added[kind].pop(name, None)

    return forget


@functools.cache
def _installed(kind: Kind) -> dict[str, str]:
    found: dict[str, str] = {}
    for point in metadata.entry_points(group=GROUPS[kind]):
        if found.setdefault(point.name, point.value) != point.value:
            raise SpecError(
                f"Two packages register the {kind} {point.name!r}: {found[point.name]} and {point.value}. "
                "Uninstall one of them, or name the one you mean as module:Name."
            )
    return found


def locate(kind: Kind, part: Part) -> Target:
    """Find the file and the name behind one part of a SPEC, importing nothing of it.

    Raises:
        SpecError: no such name, file or module; the nearest valid name is offered.
    """
    target = part.target
    if ":" not in target:
        registered = entry_points(kind)
        if target not in registered:
            raise SpecError(f"Unknown {kind} {target!r}.{nearest(target, registered)}")
        target = registered[target]
    where, _, attribute = target.rpartition(":")
    if where.endswith(".py"):
        path = Path(where)
        try:
            found_file = path.is_file()
        except OSError:  # for example a name that is too long
            found_file = False
        if not found_file:
            raise SpecError(f"The {kind} {part.target!r} names the file {where}, which does not exist.")
        digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
        return Target(f"{_FILE}{digest}", attribute, path)
    found = module_file(where)
    if found is None and not _may_exist(where):
        raise no_such_module(kind, part, where)
    return Target(present(where), attribute, found)


def no_such_module(kind: Kind, part: Part, module: str) -> SpecError:
    """What to raise where the module of a part is not there."""
    return SpecError(f"The {kind} {part.target!r} names the module {module!r}, which cannot be found. Is it installed?")


def _may_exist(module: str) -> bool:
    """Whether importing a module that has no source might succeed."""
    if find_module(module) is not None:
        return True
    parts = module.split(".")
    if parts[0] == "gitbench":  # which has no other ways than former names, and they are known
        return False
    parents = [".".join(parts[:end]) for end in range(1, len(parts))]
    files = [module_file(parent) for parent in parents if find_module(parent) is not None]
    # A package that is compiled, or unclear, may find its modules in ways of its own.
    return any(file is None or not bindings_of(file).clear for file in files)
