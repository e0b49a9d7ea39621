"""From a SPEC to the class behind it: entry points, ``module:Name`` and ``file.py:Name``.

Nothing is imported to check a SPEC: names come from the installed entry points, and the accepted
keywords from the source (``ast``), so that pytest can collect a matrix without importing torch.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from gitbench.core.component import Component
from gitbench.core.errors import SpecError, nearest
from gitbench.core.spec import Kind, Part, Spec, parse_spec
from gitbench.identity.files import digest_of_files
from gitbench.identity.libraries import holds_libraries

GROUPS: dict[Kind, str] = {kind: f"gitbench.{kind}s" for kind in get_args(Kind)}
# Options that the loader of a kind takes itself, whatever the component.
COMMON_OPTIONS: dict[Kind, frozenset[str]] = {"model": frozenset({"trained_epochs", "mode"})}
_BASES = frozenset({"Attack", "Defense", "Dataset", "Metric", "ModelFactory"})


@dataclass(frozen=True)
class Target:
    """Where a component lives: a module (and its file, where known) and a name in it."""

    module: str
    attribute: str
    path: Path | None


@dataclass(frozen=True)
class Signature:
    """The keywords a component takes; ``open`` when any keyword may be right. ``texts`` are the defaults that are texts."""

    keywords: tuple[str, ...]
    required: tuple[str, ...]
    open: bool
    texts: tuple[tuple[str, str], ...] = ()


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
        return Target(f"_gitbench_file_{digest}", attribute, path)
    found = _module_file(where)
    if found is None and not _importable(where):
        raise SpecError(f"The {kind} {part.target!r} names the module {where!r}, which cannot be found. Is it installed?")
    return Target(where, attribute, found)


def check(spec: Spec) -> None:
    """Check names and keywords of a SPEC without importing what it names.

    Raises:
        SpecError: unknown name or keyword (the nearest is offered), or a required keyword is missing.
    """
    for part in spec.parts:
        target = locate(spec.kind, part)
        signature = _signature(spec.kind, target)
        if signature is None:
            continue
        given = [key for key, _ in part.arguments]
        allowed = {*signature.keywords, *COMMON_OPTIONS.get(spec.kind, ())}
        for key in given:
            if key not in allowed and not signature.open:
                raise SpecError(f"The {spec.kind} {part.label!r} takes no option {key!r}.{nearest(key, allowed)}")
        missing = [key for key in signature.required if key not in given]
        if missing:
            raise SpecError(
                f"The {spec.kind} {part.label!r} needs {', '.join(missing)}: "
                f"write {part.target}({', '.join(f'{key}=...' for key in missing)})."
            )


def load(kind: Kind, part: Part) -> Any:
    """Import and return the object that one part names.

    Raises:
        SpecError: the import fails or the name is not in the module.
    """
    target = locate(kind, part)
    try:
        module = _import_file(target) if target.module.startswith("_gitbench_file_") else importlib.import_module(target.module)
    except Exception as error:
        raise SpecError(f"Importing {target.path or target.module} for the {kind} {part.label!r} failed: {error!r}.") from error
    if not hasattr(module, target.attribute):
        names = [name for name in vars(module) if not name.startswith("_")]
        where = target.path or target.module
        raise SpecError(f"{where} has no {target.attribute!r}.{nearest(target.attribute, names)}")
    _check_modules(target)
    return getattr(module, target.attribute)


def _check_modules(target: Target) -> None:
    """Whether a file got the modules that lie beside it, and not others of the same name."""
    if target.path is None or not target.module.startswith("_gitbench_file_"):
        return
    for path, name in _closure(target).items():
        there = getattr(sys.modules.get(name.removesuffix(".__init__")), "__file__", None)
        if there is not None and Path(there).resolve() != path.resolve():
            raise SpecError(
                f"{target.path} imports {name}, which is {there} in this process and not {path}: Python knows one module of a name. "
                "Rename one of the two, or measure them in runs of their own."
            )


def build(kind: Kind, part: Part, base: type[Component], **defaults: object) -> Any:
    """Build a component from one part; ``defaults`` are arguments that the SPEC may override.

    Raises:
        SpecError: not a subclass of ``base``, or its constructor refuses the arguments.
    """
    cls = load(kind, part)
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise SpecError(f"Expected {part.target!r} to be a subclass of gitbench.{base.__name__}, got {cls!r}.")
    arguments = dict(part.arguments)
    try:
        component = cls(**{**defaults, **arguments})
    except (TypeError, ValueError) as error:
        raise SpecError(f"The {kind} {part.label!r} refuses its options: {error}") from error
    # What was asked for is the identity; a profile's budget stands beside it, not in it.
    component._part = part
    return component


def part_digest(kind: Kind, part: Part) -> str:
    """Hash of all that stands behind one part of a SPEC: sources, and the files that its options name (16 hex digits).

    Raises:
        SpecError: no such name, file or module.
    """
    target = locate(kind, part)
    signature = _signature(kind, target)
    defaults = dict(signature.texts) if signature else {}
    return with_files(source_digest(target), kind, Part(part.target, tuple({**defaults, **dict(part.arguments)}.items())))


def with_files(source: str, kind: Kind, part: Part) -> str:
    """A digest of sources, changed by the files that the options of a part name."""
    files = digest_of_files(kind, part)
    return hashlib.sha256(f"{source} {files}".encode()).hexdigest()[:16] if files else source


def source_digest(target: Target) -> str:
    """Hash of a component's source and of what it imports from the same package, or from modules beside it (16 hex digits)."""
    if target.path is None:
        return "no-source"
    digest = hashlib.sha256()
    # By dotted name: where the packages are installed must not change the order, nor the digest.
    for _, file, content in sorted((name, path.name, path.read_bytes()) for path, name in _closure(target).items()):
        digest.update(file.encode() + b"\0" + content + b"\0")
    return digest.hexdigest()[:16]


def digest_of_module(module: str) -> str:
    """:func:`source_digest` of a module given by its dotted name."""
    return source_digest(Target(module, "", _module_file(module)))


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
        del sys.modules[target.module]
        raise
    return module


@functools.cache
def _tree(path: Path, _modified: int) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except OSError as error:
        raise SpecError(f"Cannot read {path}: {error}.") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SpecError(f"{path} is not valid Python: {error}.") from None


def _parse(path: Path) -> ast.Module:
    return _tree(path, path.stat().st_mtime_ns)


def _signature(kind: Kind, target: Target) -> Signature | None:
    """Keywords read from the source, or None where they cannot be known without importing."""
    if target.path is None:
        return None
    body = _parse(target.path).body
    definitions = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    node = definitions.get(target.attribute)
    if node is None:
        assigned = {name.id for item in ast.walk(ast.Module(body, [])) for name in ast.walk(item) if isinstance(name, ast.Name)}
        imported = {alias.asname or alias.name for item in body if isinstance(item, ast.Import | ast.ImportFrom) for alias in item.names}
        if target.attribute in assigned | imported:
            return None
        raise SpecError(f"{target.path} has no {target.attribute!r}.{nearest(target.attribute, definitions)}")
    seen: set[str] = set()
    while isinstance(node, ast.ClassDef):
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == "__init__":
                return _arguments(item, skip=1)
        if any(ast.unparse(item).partition("(")[0].rpartition(".")[2] == "dataclass" for item in node.decorator_list):
            return None  # its fields are its keywords, inherited ones included: the constructor will tell
        seen.add(node.name)  # a class may bear the name of the base that it imports
        named = [base.id for base in node.bases if isinstance(base, ast.Name)]
        bases = [definitions[name] for name in named if name in definitions and name not in seen]
        if not bases:
            # Our own bases take no options; a class inherited from elsewhere may take any.
            ours = not seen.intersection(named) and all(ast.unparse(base).rpartition(".")[2] in _BASES for base in node.bases)
            return Signature((), (), open=not ours)
        node = bases[0]
    # A model's factory is handed input_shape and classes by the loader.
    given = ("input_shape", "classes") if kind == "model" else ()
    found = _arguments(node, skip=0)
    return Signature(found.keywords, tuple(name for name in found.required if name not in given), found.open)


def _arguments(node: ast.FunctionDef, *, skip: int) -> Signature:
    positional = [item.arg for item in (*node.args.posonlyargs, *node.args.args)][skip:]
    needed = positional[: len(positional) - len(node.args.defaults)] if node.args.defaults else positional
    only = [item.arg for item in node.args.kwonlyargs]
    pairs = zip(only, node.args.kw_defaults, strict=True)
    needed_only = [name for name, default in pairs if default is None]
    last = positional[len(positional) - len(node.args.defaults) :]
    defaults = [*zip(last, node.args.defaults, strict=True), *zip(only, node.args.kw_defaults, strict=True)]
    texts = [(name, node.value) for name, node in defaults if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return Signature((*positional, *only), (*needed, *needed_only), node.args.kwarg is not None, tuple(texts))


def _closure(target: Target) -> dict[Path, str]:
    """The target's file and, transitively, the files it imports from its own top-level package or from beside it, with their names."""
    assert target.path is not None
    package = target.module.partition(".")[0]
    alone = target.module.startswith("_gitbench_file_")
    first = target.path.resolve() if alone else target.path  # of a link, what lies beside the file that it leads to
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
            found = None
            if name.partition(".")[0] in sys.stdlib_module_names:
                continue
            if name.partition(".")[0] in (package, "gitbench"):
                # gitbench/__init__.py only re-exports: following it would tie every component to every other.
                found = _module_file(name) if name != "gitbench" else None
            elif beside is not None:
                # What lies beside may be installed as well: then Python takes the installed one, and so is what is digested.
                if not _is_library(name):
                    found = _source_at(beside.joinpath(*name.split("."))) or _module_file(name)
                elif _source_at(beside / name.partition(".")[0]) is not None:
                    found = _module_file(name)
            if found is not None:
                waiting.append((found, name))
    return seen


@functools.cache
def _is_library(name: str) -> bool:
    """Whether a module would be imported from where packages are installed."""
    found = _module_file(name)
    if found is None:
        return False
    up = name.count(".") + (found.name == "__init__.py")
    return len(found.parents) > up and holds_libraries(found.parents[up])


@functools.cache
def _imports(path: Path, modified: int, module: str) -> frozenset[str]:
    """What a file imports, by dotted name. A large matrix asks for the same few files again and again."""
    return frozenset(_each_import(path, modified, module))


def _each_import(path: Path, modified: int, module: str) -> Iterator[str]:
    for node in ast.walk(_tree(path, modified)):
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


@functools.cache
def _module_file(name: str) -> Path | None:
    """The source of a module, found without importing its parents (that could import torch)."""
    top, *rest = name.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError, AttributeError):
        return None
    if found is None or (found.origin and not found.origin.endswith(".py")):
        return None
    if not rest:
        return Path(found.origin) if found.origin else None  # a folder without __init__.py has no source, its modules have
    sources = (_source_at(Path(folder, *rest)) for folder in found.submodule_search_locations or ())
    return next((path for path in sources if path is not None), None)


def _source_at(stem: Path) -> Path | None:
    """The module or package whose path without a suffix is ``stem``."""
    return next((path for path in (stem.with_name(f"{stem.name}.py"), stem / "__init__.py") if path.is_file()), None)


def _importable(name: str) -> bool:
    top, *rest = name.split(".")
    try:
        found = importlib.util.find_spec(top)
        if found is None:
            return False
        if not rest or not found.origin or not found.origin.endswith(".py"):
            return True
        # find_spec(name) would import the parents; a compiled submodule lies beside the sources.
        stem = Path(*rest)
        return any(
            Path(folder, stem.parent, stem.name + suffix).is_file()
            for folder in found.submodule_search_locations or ()
            for suffix in importlib.machinery.EXTENSION_SUFFIXES
        )
    except (ImportError, ValueError, AttributeError):
        return False
