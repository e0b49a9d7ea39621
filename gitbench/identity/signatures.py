"""The keywords that a component takes, as far as its source tells.

This look may say yes, and it says no where the text leaves no doubt. It never says a wrong no: what it cannot see is
decided by importing, when the component is loaded. Nothing is imported here, since a SPEC may come from a stranger's file.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from gitbench.core.errors import SpecError, nearest
from gitbench.core.spec import Kind
from gitbench.identity.bindings import Bindings, Definition, bindings_of, binds, dotted, scope
from gitbench.identity.modules import module_file, parse
from gitbench.identity.names import Target

# What the loader of a kind gives to whatever asks for it by name: an option may be left out, also where it has no default.
FILLED_IN: dict[Kind, tuple[str, ...]] = {"model": ("input_shape", "classes")}
_ROOTS = frozenset({"Defense", "Dataset", "Metric", "ModelFactory", "Component"})
_ATTACKS = frozenset({"Attack", "Refiner"})
_CONSTRUCTORS = ("__init__", "__new__", "__init_subclass__")
_WATCHED = (*_CONSTRUCTORS, "profiles", "Options")  # what a class may bind that decides what it takes
_DATACLASS_SETTINGS = frozenset({"frozen", "kw_only", "slots", "eq", "repr", "order"})  # that leave its constructor alone
_TORCH_MODULE = frozenset({"torch.nn.Module", "torch.nn.modules.Module", "torch.nn.modules.module.Module"})


@dataclass(frozen=True)
class Signature:
    """The keywords that a component takes.

    Args:
        keywords: their names.
        required: those without a default.
        open: any other keyword may be right too.
        budget: an attack's profile may give what is required.
        by_options: they are the fields of the class ``Options``, which a subclass may replace.
    """

    keywords: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    open: bool = False
    budget: bool = False
    by_options: bool = False


_NONE = Signature()
_ANY = Signature(open=True)
_OPTIONS = Signature(by_options=True)


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
            found |= {**dict(_field_texts(node)), **found}
            waiting += [base.id for base in getattr(node, "bases", ()) if isinstance(base, ast.Name)]
        seen.add(name)
    return found


def _field_texts(node: ast.AST) -> Iterator[tuple[str, str]]:
    for item in ast.walk(node):
        if isinstance(item, ast.AnnAssign) and isinstance(item.value, ast.Constant) and isinstance(item.value.value, str):
            yield ast.unparse(item.target), item.value.value


def _of_class(names: Bindings, node: ast.AST | None, seen: tuple[ast.AST, ...]) -> Signature | None:
    """The keywords of a class; None where its metaclass, its bases or its own text leave a doubt."""
    if not isinstance(node, ast.ClassDef) or node.keywords or node in seen:
        return None
    own = {name: [item for item in scope(node) if name in binds(item)] for name in _WATCHED}
    bases = [_of_base(names, base, (*seen, node)) for base in node.bases]
    known = [base for base in bases if base is not None]
    if own["__new__"] or own["__init_subclass__"] or len(known) < len(bases):
        return None
    budget = bool(own["profiles"]) or any(base.budget for base in known)
    if own["__init__"]:
        (init, *others) = own["__init__"]
        plain = not others and init in node.body and isinstance(init, ast.FunctionDef) and not init.decorator_list
        return replace(_arguments(init, skip=1), budget=budget) if plain and isinstance(init, ast.FunctionDef) else None
    taking = {replace(base, budget=False) for base in known} - {_NONE}
    if len(taking) > 1:
        return None
    inherited = taking.pop() if taking else _NONE
    if not own["Options"] or not inherited.by_options:
        return replace(inherited, budget=budget)
    fields = _of_options(names, node, own["Options"])
    return None if fields is None else replace(fields, budget=budget)


def _of_options(names: Bindings, node: ast.ClassDef, bound: list[ast.AST]) -> Signature | None:
    """The fields of an attack's ``Options``, a dataclass of its own or one that is named; None where the text does not tell."""
    if len(bound) > 1 or names.escapes("Options"):
        return None
    named = [item.value for item in node.body if isinstance(item, ast.Assign) and item.targets == bound]
    fields = _fields_named(names, named[0]) if named else _fields(names, bound[0])
    if fields is None:
        return None
    return Signature(tuple(fields), tuple(name for name, has_default in fields.items() if not has_default), by_options=True)


def _fields_named(names: Bindings, written: ast.expr) -> dict[str, bool] | None:
    """The fields of a dataclass of this file, or of one of ours."""
    name = dotted(written) or ""
    full = names.imported(name)
    if full is None or full.partition(".")[0] != "gitbench":
        return _fields(names, names.definition(name, decorated=True))
    place, _, name = full.rpartition(".")
    path = module_file(place)
    where = bindings_of(path) if path else names
    return _fields(where, where.definition(name, decorated=True))


def _fields(names: Bindings, node: ast.AST | None) -> dict[str, bool] | None:
    """The fields of a dataclass, and whether each has a default; None where its text does not tell."""
    if not isinstance(node, ast.ClassDef) or not _is_dataclass(names, node):
        return None
    found: dict[str, bool] = {}
    for base in reversed(node.bases):
        fields = _fields_named(names, base)
        if fields is None:
            return None
        found |= fields
    own = [item for item in node.body if isinstance(item, ast.AnnAssign)]
    if sum(isinstance(item, ast.AnnAssign) for item in scope(node)) > len(own):
        return None
    for item in own:
        if isinstance(item.target, ast.Name) and not {"ClassVar", "KW_ONLY"}.intersection(re.findall(r"\w+", ast.unparse(item.annotation))):
            found[item.target.id] = item.value is not None
    return found


def _is_dataclass(names: Bindings, node: ast.ClassDef) -> bool:
    """Whether a class is a dataclass whose constructor takes its fields."""
    if node.keywords or len(node.decorator_list) != 1 or any(name in binds(item) for item in scope(node) for name in _CONSTRUCTORS):
        return False
    decorator = node.decorator_list[0]
    if isinstance(decorator, ast.Call):
        if decorator.args or not {keyword.arg or "" for keyword in decorator.keywords} <= _DATACLASS_SETTINGS:
            return False
        decorator = decorator.func
    written = dotted(decorator) or ""
    full = f"{names.imported(written.partition('.')[0])}{written.partition('.')[1]}{written.partition('.')[2]}"
    return full == "dataclasses.dataclass"


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
    if full == "abc.ABC":
        return _NONE
    if place.partition(".")[0] not in ("gitbench", "gitbench_defenses"):
        return None  # who knows what its metaclass does
    if name in _ROOTS | _ATTACKS:
        return _NONE if name in _ROOTS else _OPTIONS
    path = module_file(place)
    found = bindings_of(path) if path else None
    return (_of_class(found, found.definition(name), seen) if found else None) or _ANY


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
