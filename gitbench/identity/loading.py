"""Components of a SPEC: checked without importing them, imported, and built."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gitbench.core.component import Component
from gitbench.core.errors import SpecError, nearest
from gitbench.core.spec import Kind, Part, Spec, parse_spec
from gitbench.identity.names import Target, locate, no_such_module
from gitbench.identity.signatures import FILLED_IN, signature_of
from gitbench.identity.sources import closure

# Options that the loader of a kind takes itself, whatever the component.
COMMON_OPTIONS: dict[Kind, frozenset[str]] = {"model": frozenset({"frozen", "trained_epochs", "mode"})}


def check_spec(spec: Spec) -> None:
    """Check names and keywords of a SPEC without importing what it names.

    What cannot be told without importing passes: :func:`load_part` and :func:`build_part` decide.

    Raises:
        SpecError: unknown name or keyword (the nearest is offered), or a required keyword is missing.
    """
    for part in spec.parts:
        signature = signature_of(locate(spec.kind, part))
        if signature is None:
            continue
        given = [key for key, _ in part.arguments]
        allowed = {*signature.keywords, *COMMON_OPTIONS.get(spec.kind, ())}
        for key in given:
            if key not in allowed and not signature.open:
                raise _no_option(spec.kind, part, key, allowed)
        missing = [key for key in signature.required if key not in (*given, *FILLED_IN.get(spec.kind, ()))]
        if missing and not signature.budget:
            raise SpecError(
                f"The {spec.kind} {part.label!r} needs {', '.join(missing)}: "
                f"write {part.target}({', '.join(f'{key}=...' for key in missing)})."
            )


def checked_spec(kind: Kind, text: str) -> Spec:
    """Read a SPEC and check it as :func:`check_spec` does.

    Raises:
        SpecError: it cannot be read, or the check finds something.
    """
    spec = parse_spec(kind, text)
    check_spec(spec)
    return spec


def load_part(kind: Kind, part: Part) -> Any:
    """Import and return the object that one part names.

    Raises:
        SpecError: the import fails or the name is not in the module.
    """
    target = locate(kind, part)
    where = target.path or target.module
    missing = object()
    try:
        module = _import_file(target) if target.is_file else importlib.import_module(target.module)
        found = getattr(module, target.attribute, missing)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{target.module}.".startswith(f"{error.name}."):
            raise no_such_module(kind, part, target.module) from error
        raise SpecError(f"Importing {where} for the {kind} {part.label!r} failed: {error!r}.") from error
    if found is missing:
        names = [name for name in vars(module) if not name.startswith("_")]
        raise SpecError(f"{where} has no {target.attribute!r}.{nearest(target.attribute, names)}")
    _check_modules(target)
    return found


def build_part(kind: Kind, part: Part, base: type[Component], **defaults: object) -> Any:
    """Build a component from one part; ``defaults`` are arguments that the SPEC may override.

    Raises:
        SpecError: not a subclass of ``base``, or its constructor refuses the arguments.
    """
    cls = load_part(kind, part)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise SpecError(f"Expected {part.target!r} to be a subclass of gitbench.{base.__name__}, got {cls!r}.")
    arguments = dict(part.arguments)
    if arguments and cls.__init__ is object.__init__:  # it would take them without a word
        raise _no_option(kind, part, next(iter(arguments)), ())
    try:
        component = cls(**{**defaults, **arguments})
    except (TypeError, ValueError) as error:
        raise SpecError(f"The {kind} {part.label!r} refuses its options: {error}") from error
    # What was asked for is the identity; a profile's budget stands beside it, not in it.
    component._part = part
    return component


def _no_option(kind: Kind, part: Part, key: str, allowed: Iterable[str]) -> SpecError:
    return SpecError(f"The {kind} {part.label!r} takes no option {key!r}.{nearest(key, allowed)}")


def _import_file(target: Target) -> Any:
    if target.module in sys.modules:
        return sys.modules[target.module]
    assert target.path is not None
    spec = importlib.util.spec_from_file_location(target.module, target.path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[target.module] = module
    folder = str(target.path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # it may import what lies beside it; last, so that nothing installed is shadowed
    try:
        spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(target.module, None)
        raise
    return sys.modules.get(target.module, module)  # it may have put something else in its place


def _check_modules(target: Target) -> None:
    """Whether a file got the modules that lie beside it, and not others of the same name."""
    if target.path is None or not target.is_file:
        return
    for path, name in closure(target).items():
        there = getattr(sys.modules.get(name.removesuffix(".__init__")), "__file__", None)
        if there is not None and Path(there).resolve() != path.resolve():
            raise SpecError(
                f"{target.path} imports {name}, which is {there} in this process and not {path}: Python knows one module of a name. "
                "Rename one of the two, or measure them in runs of their own."
            )
