"""The keywords that a component takes, as far as its source tells.

This look may say yes, and it says no where the text leaves no doubt. It never says a wrong no: what it cannot see is
decided by importing, when the component is loaded. Nothing is imported here, since a SPEC may come from a stranger's file.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, replace

from gitbench.core.errors import SpecError, nearest
from gitbench.core.spec import Kind
from gitbench.identity.bindings import Bindings, Definition, bindings_of, binds, dotted, scope
from gitbench.identity.modules import module_file, parse
from gitbench.identity.names import Target

# What the loader of a kind gives to whatever asks for it by name: an option may be left out, also where it has no default.
FILLED_IN: dict[Kind, tuple[str, ...]] = {"model": ("input_shape", "classes", "modality")}
_ROOTS = frozenset({"Attack", "Refiner", "Defense", "Dataset", "Client", "Metric", "Modality", "ModelFactory", "Component"})
_TORCH_MODULE = frozenset({"torch.nn.Module", "torch.nn.modules.Module", "torch.nn.modules.module.Module"})


@dataclass(frozen=True)
class Signature:
    """The keywords that a component takes.

    Args:
        keywords: their names.
        required: those without a default.
        open: any other keyword may be right too.
        budget: an attack's profile may give what is required.
    """

    keywords: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    open: bool = False
    budget: bool = False


# What a class says of its keywords.
_TELLING = ("__init__", "__new__", "__init_subclass__", "profiles", "Options")
_NONE = Signature()
_ANY = Signature(open=True)


def signature_of(target: Target) -> Signature | None:
    """The keywords of a component, or None where only importing it can tell.

    Raises:
        SpecError: its file is not Python, or surely does not have the name; the nearest is offered.
    """
    if target.path is None:
        return None
    names = bindings_of(target.path)
    if names.clear and target.attribute not in names.mentioned:
        raise SpecError(f"{target.path} has no {target.attribute!r}.{nearest(target.attribute, names.definitions)}")
    node = names.definition(target.attribute)
    return _arguments(node, skip=0) if isinstance(node, ast.FunctionDef) else _of_class(names, node, ())


def default_texts(target: Target) -> dict[str, str]:
    """Options whose default is a text, which may name a file. One too many does no harm here."""
    nodes = [node for node in ast.walk(parse(target.path)) if isinstance(node, Definition)] if target.path else []
    found: dict[str, str] = {}
    waiting, seen = [target.attribute], set()
    while waiting:
        name = waiting.pop()
        for node in (node for node in nodes if node.name == name and name not in seen):
            inner = [node] if isinstance(node, ast.FunctionDef) else [item for item in node.body if isinstance(item, ast.FunctionDef)]
            for function in inner:
                found |= {**_texts(function), **found} if function is node or function.name == "__init__" else {}
            for item in ast.walk(node):
                if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
                    found.setdefault(ast.unparse(item.target), item.value.value)
            waiting += [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
        seen.add(name)
    return found


def _of_class(names: Bindings, node: ast.AST | None, seen: tuple[ast.AST, ...]) -> Signature | None:
    """The keywords of a class; None where its metaclass, its bases or its own text leave a doubt."""
    if not isinstance(node, ast.ClassDef) or node.keywords or node in seen:
        return None
    own = {name: [item for item in scope(node) if name in binds(item)] for name in _TELLING}
    bases = [_of_base(names, base, (*seen, node)) for base in node.bases]
    known = [base for base in bases if base is not None]
    if own["__new__"] or own["__init_subclass__"] or len(known) < len(bases):
        return None
    budget = bool(own["profiles"]) or any(base.budget for base in known)
    if not own["__init__"]:
        taking = [base for base in known if replace(base, budget=False) != _NONE]
        if own["Options"]:
            fields = None if taking or len(own["Options"]) > 1 else _of_options(names, node)
            return None if fields is None else Signature(fields, budget=budget)
        return replace(taking[0] if taking else _NONE, budget=budget) if len(taking) < 2 else None
    (init, *others) = own["__init__"]
    if others or init not in node.body or not isinstance(init, ast.FunctionDef) or init.decorator_list:
        return None
    return replace(_arguments(init, skip=1), budget=budget)


def _of_base(names: Bindings, base: ast.expr, seen: tuple[ast.AST, ...]) -> Signature | None:
    written = dotted(base)
    if written is None:
        return None
    first, dot, rest = written.partition(".")
    if written in names.definitions:
        return _of_class(names, names.definition(written), seen)
    module = names.imported(first)
    if module is None:
        return _NONE if written == "object" and not names.times_bound("object") else None
    full = f"{module}{dot}{rest}"
    if full in _TORCH_MODULE:
        return _ANY
    place, _, name = full.rpartition(".")
    if full == "abc.ABC" or (place.partition(".")[0] == "gitbench" and name in _ROOTS):
        return _NONE
    if place.partition(".")[0] not in ("gitbench", "gitbench_defenses"):
        return None  # who knows what its metaclass does
    path = module_file(place)
    found = bindings_of(path) if path else None
    return (_of_class(found, found.definition(name), seen) if found else None) or _ANY


def _of_options(names: Bindings, owner: ast.ClassDef) -> tuple[str, ...] | None:
    """The fields of an attack's class ``Options``; None where the text leaves a doubt."""
    for item in owner.body:
        if isinstance(item, ast.ClassDef) and item.name == "Options":
            return _fields(names, item)
        if isinstance(item, ast.Assign) and [dotted(target) for target in item.targets] == ["Options"]:
            return _fields_named(names, item.value)
    return None


def _fields_named(names: Bindings, written: ast.expr) -> tuple[str, ...] | None:
    """The fields of the dataclass that an expression names: one of this file or of gitbench."""
    name = dotted(written) or ""
    if name in names.definitions:
        return _fields(names, names.definition(name, decorated=True))
    place, _, attribute = (names.imported(name) or "").rpartition(".")
    path = module_file(place) if place.partition(".")[0] == "gitbench" else None
    found = bindings_of(path) if path else None
    return _fields(found, found.definition(attribute, decorated=True)) if found else None


def _fields(names: Bindings, node: ast.AST | None) -> tuple[str, ...] | None:
    if not isinstance(node, ast.ClassDef) or node.keywords or len(node.decorator_list) != 1:
        return None
    decorator = names.imported("dataclass") if ast.unparse(node.decorator_list[0]) == "dataclass(frozen=True, kw_only=True)" else None
    if decorator != "dataclasses.dataclass" or any(name in _TELLING for item in scope(node) for name in binds(item)):
        return None
    found: list[str] = []
    for base in node.bases:
        inherited = _fields_named(names, base)
        if inherited is None:
            return None
        found += inherited
    for item in (item for item in scope(node) if isinstance(item, ast.AnnAssign)):
        # Others than plain fields (ClassVar, InitVar, field(init=False)) may be no keywords: one too many does no harm.
        found += [item.target.id] if isinstance(item.target, ast.Name) else []
    return tuple(dict.fromkeys(found))  # a class may give an inherited option another default


def _arguments(node: ast.FunctionDef, *, skip: int) -> Signature:
    positional = [item.arg for item in (*node.args.posonlyargs, *node.args.args)][skip:]
    only = [item.arg for item in node.args.kwonlyargs]
    given = {name for name, _ in _defaults(node)}
    required = tuple(name for name in (*positional, *only) if name not in given)
    return Signature((*positional, *only), required, open=node.args.kwarg is not None)


def _texts(node: ast.FunctionDef) -> dict[str, str]:
    return {name: value.value for name, value in _defaults(node) if isinstance(value, ast.Constant) and isinstance(value.value, str)}


def _defaults(node: ast.FunctionDef) -> list[tuple[str, ast.expr]]:
    """The parameters that have a default, with it."""
    positional = [item.arg for item in (*node.args.posonlyargs, *node.args.args)]
    last = positional[len(positional) - len(node.args.defaults) :]
    only = zip([item.arg for item in node.args.kwonlyargs], node.args.kw_defaults, strict=True)
    return [*zip(last, node.args.defaults, strict=True), *((name, value) for name, value in only if value is not None)]
