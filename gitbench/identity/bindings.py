"""What names a Python file binds, as far as its text tells.

Only a file that is *clear* can be told from its text. Whatever may bind or change a name in a way that the text does not
show makes it unclear, and then nothing is refused: importing decides. Only what another module does to this one when it is
merely imported, or derived from, is not considered.
"""

from __future__ import annotations

import ast
import functools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from gitbench.identity.modules import parse

Definition = ast.ClassDef | ast.FunctionDef
_SCOPES = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Functions that bind or change what is named at run time.
_CALLS = frozenset({"globals", "locals", "vars", "exec", "eval", "setattr", "delattr"})
# Ways to the same, and to the names of a module, wherever they are mentioned.
_WAYS = frozenset(
    {
        *("__getattr__", "__setattr__", "__dict__", "__builtins__", "builtins", "_getframe", "currentframe", "f_globals", "f_locals"),
        *("getmodule", "__annotations__", "__defaults__", "__kwdefaults__", "__code__", "__path__", "extend_path", "meta_path"),
        "path_hooks",
    }
)
# Whose functions bind no names where they are called.
_KNOWN = sys.stdlib_module_names | {"gitbench", "gitbench_defenses", "numpy", "torch", "torchvision"}
# Functions that leave a class alone.
_HARMLESS = frozenset({"super", "isinstance", "issubclass"})


class Bindings:
    """The names of one file.

    Args:
        tree: the file's syntax tree.
    """

    def __init__(self, tree: ast.Module) -> None:
        nodes = list(ast.walk(tree))
        self.mentioned = {part for node in nodes for text in _texts(node) for part in text.split(".")}
        """Every word that the file uses as a name, and every text: one that is not among them, a clear file does not bind."""
        self._imported = dict(_each_imported(nodes))
        plain = _WAYS.isdisjoint(self.mentioned) and not any(map(_is_dynamic, nodes)) and not _uses_modules(nodes)
        self.clear = plain and not self._calls_others(tree)
        self._bound = Counter(name for node in nodes for name in binds(node))
        self._defined = {node.name: node for node in scope(tree) if isinstance(node, Definition)}
        self._escaped = _escaped(nodes)

    @property
    def definitions(self) -> list[str]:
        """Names of the classes and functions of the module itself."""
        return list(self._defined)

    def definition(self, name: str, *, decorated: bool = False) -> Definition | None:
        """The class or function of a name, where the text alone says what it is.

        That is a clear file that binds the name once, leaves it undecorated (unless ``decorated``: then its decorators are
        the caller's to judge), and hands it to nobody who could change it.
        """
        found = self._defined.get(name)
        plain = found is not None and (decorated or not found.decorator_list) and self.times_bound(name) == 1 and name not in self._escaped
        return found if self.clear and plain else None

    def imported(self, name: str) -> str | None:
        """The dotted name of what a name was imported as, where the file binds it to nothing else."""
        return self._imported.get(name) if self.times_bound(name) == 1 else None

    def times_bound(self, name: str) -> int:
        """How many statements bind a name, wherever they stand."""
        return self._bound[name]

    def _calls_others(self, tree: ast.Module) -> bool:
        """Whether other people's functions run when the file is imported: they may bind names in it."""
        called: list[ast.expr] = []
        for node in _run_by_import(tree):
            called += [node.func] if isinstance(node, ast.Call) else getattr(node, "decorator_list", [])
        roots = {(dotted(one) or "").partition(".")[0] for one in called}
        return any(self._imported[root].partition(".")[0] not in _KNOWN for root in roots & self._imported.keys())


def bindings_of(path: Path) -> Bindings:
    """The names of a Python file.

    Raises:
        SpecError: it cannot be read, or is not valid Python.
    """
    return _bindings(parse(path))


@functools.cache
def _bindings(tree: ast.Module) -> Bindings:
    return Bindings(tree)


def scope(node: ast.AST) -> Iterator[ast.AST]:
    """What stands in a module or class itself, also under ``if``, ``try`` and the like, but in no function or class within it."""
    waiting = list(ast.iter_child_nodes(node))
    while waiting:
        found = waiting.pop()
        yield found
        if not isinstance(found, _SCOPES):
            waiting += ast.iter_child_nodes(found)


def _run_by_import(tree: ast.Module) -> Iterator[ast.AST]:
    """What runs when a file is imported: all but the bodies of functions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        found = waiting.pop()
        yield found
        if isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef):
            waiting += [*found.decorator_list, found.args]
        elif not isinstance(found, ast.Lambda):
            waiting += ast.iter_child_nodes(found)


def binds(node: ast.AST) -> Iterable[str]:
    """The names that one node of a syntax tree binds."""
    if isinstance(node, ast.Name):
        return () if isinstance(node.ctx, ast.Load) else (node.id,)
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0],)
    if isinstance(node, ast.Global | ast.Nonlocal):
        return node.names
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return (node.name,)
    if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar | ast.MatchMapping):
        name = node.rest if isinstance(node, ast.MatchMapping) else node.name
        return (name,) if name else ()
    return ()


def dotted(node: ast.AST) -> str | None:
    """``a.b.c`` as it is written, or None where it is something else."""
    if isinstance(node, ast.Attribute):
        parent = dotted(node.value)
        return f"{parent}.{node.attr}" if parent else None
    return node.id if isinstance(node, ast.Name) else None


def _is_dynamic(node: ast.AST) -> bool:
    """Whether a node may bind or change a name in a way that it does not show."""
    if isinstance(node, ast.Name):
        return node.id in _CALLS
    if isinstance(node, ast.alias):
        return node.name in ("*", "modules")
    if isinstance(node, ast.Attribute):
        special = node.attr in ("profiles", "Options") or (node.attr.startswith("__") and node.attr.endswith("__"))
        return special and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.Call):  # who is told the module's name may look the module up
        logs = (dotted(node.func) or "").endswith("getLogger")
        return not logs and any(isinstance(given, ast.Name) and given.id == "__name__" for given in _arguments(node))
    return False


def _uses_modules(nodes: list[ast.AST]) -> bool:
    """Whether ``sys.modules`` is looked into; ``network.modules()`` is something else."""
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    return any(isinstance(node, ast.Attribute) and node.attr == "modules" and id(node) not in called for node in nodes)


def _texts(node: ast.AST) -> Iterator[str]:
    for _, value in ast.iter_fields(node):
        if isinstance(value, str):
            yield value
        elif isinstance(value, list):
            yield from (item for item in value if isinstance(item, str))


def _each_imported(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((item.asname, item.name) if item.asname else (item.name.partition(".")[0],) * 2 for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((item.asname or item.name, f"{'.' * node.level}{node.module}.{item.name}") for item in node.names)


def _escaped(nodes: list[ast.AST]) -> set[str]:
    """Names whose values are handed on, so that somebody may change them: ``register(Mine)``, ``[Mine]``."""
    safe: set[int] = set()
    aliases: list[tuple[str, str]] = []
    for node in nodes:
        safe.update(id(child) for child in _kept(node))
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
            safe.add(id(node.value))
            aliases += [(target.id, node.value.id) for target in node.targets if isinstance(target, ast.Name)]
    found = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and id(node) not in safe}
    for alias, name in reversed(aliases):
        if alias in found:
            found.add(name)
    return found


def _kept(node: ast.AST) -> Iterable[ast.AST]:
    """Nodes below this one whose value it only looks at: called, a base, an annotation, left of a dot."""
    if isinstance(node, ast.Call):
        harmless = isinstance(node.func, ast.Name) and node.func.id in _HARMLESS
        return [node.func, *(_arguments(node) if harmless else ())]
    if isinstance(node, ast.ClassDef):
        return node.bases
    if isinstance(node, ast.Attribute):
        return [node.value]
    notes = [getattr(node, name, None) for name in ("annotation", "returns")]
    return [child for note in notes if isinstance(note, ast.AST) for child in ast.walk(note)]


def _arguments(call: ast.Call) -> list[ast.expr]:
    return [*call.args, *(keyword.value for keyword in call.keywords)]
