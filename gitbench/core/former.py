"""Where modules stood in 0.1: what imports them by that name, a third party's plugin say, gets the module that they are now."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

# (former package, present room): modules that kept their own names.
_MOVED = {
    ("", "attacker"): "attack attacks observation",
    ("", "attacker.attacks.auto"): "criterion",
    ("", "attacker.tools"): "features labels lbfgs matching regression rehearsal",
    ("", "clients"): "activation client data datasets defense model models training update",
    ("", "core"): "component deadline errors memory metric progress random spec text",
    ("", "identity"): "case files libraries registry threat",
    ("", "judge"): "flags sequential statistics verdict",
    ("", "measure"): "conformance fingerprint metrics scoring utility",
    ("", "publish"): "baseline comment comparison entries inspection leaderboard scaffold submission",
    ("", "run"): "bench config",
    ("", "store"): "pictures result",
}
_RENAMED = {
    "auto": "attacker.attacks.auto.attack",
    "claim": "publish.manifest",
    "counts": "attacker.tools.label_counts",
    "evaluation": "measure.evaluator",
    "fits": "attacker.fit_cache",
    "fitting": "attacker.learning",
    "pairs": "attacker.tools.public_pairs",
    "worst": "judge.worst_case",
}
FORMER = {
    **{f"{package}.{name}".lstrip("."): f"{room}.{name}" for (package, room), names in _MOVED.items() for name in names.split()},
    **_RENAMED,
}


def present(module: str) -> str:
    """The dotted name that a module of gitbench, or one within it, has now."""
    package, *parts = module.split(".")
    for end in range(len(parts), 0, -1):
        moved = FORMER.get(".".join(parts[:end])) if package == "gitbench" else None
        if moved is not None:
            return ".".join((package, moved, *parts[end:]))
    return module


class _FormerModule(importlib.abc.Loader):
    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(present(module.__name__))


class FormerNames(importlib.abc.MetaPathFinder):
    """Finds modules by the names of :data:`FORMER`; the first of the finders, since a package that moved would find a second copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return None if present(fullname) == fullname else importlib.machinery.ModuleSpec(fullname, _FormerModule())
