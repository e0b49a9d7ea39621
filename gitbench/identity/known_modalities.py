"""The modalities that are registered, and which one a component is of, as far as its text tells. Nothing of a component is imported."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from gitbench.core.errors import ConfigError, SpecError, nearest
from gitbench.core.modality import Modality
from gitbench.core.spec import Kind, Part, parse_spec
from gitbench.identity.bindings import bindings_of, dotted
from gitbench.identity.loading import load_part
from gitbench.identity.modules import module_file, parse
from gitbench.identity.names import entry_points, locate

USUAL = "image"
"""The modality of what does not say another."""


def known_modalities() -> Mapping[str, type[Modality]]:
    """The class of every registered modality by its name, that of images first.

    Raises:
        SpecError: one cannot be imported, or is none.
    """
    return _loaded(tuple(entry_points("modality").items()))


@functools.cache
def _loaded(registered: tuple[tuple[str, str], ...]) -> Mapping[str, type[Modality]]:
    found: dict[str, type[Modality]] = {}
    for name, target in sorted(registered, key=lambda one: (one[0] != USUAL, one[0])):
        cls = load_part("modality", Part(name))
        missing = [one for one in ("noun", "axes", "gate") if not hasattr(cls, one)]
        if not (isinstance(cls, type) and issubclass(cls, Modality)) or cls.name != name or missing:
            raise SpecError(
                f"The modality {name!r} ({target}) cannot be used: expected a subclass of gitbench.Modality whose name is {name!r} "
                "and that defines noun, axes and gate."
            )
        found[name] = cls
    return MappingProxyType(found)


def modality_of(datasets: Sequence[str]) -> type[Modality]:
    """The modality of some datasets, by their SPECs.

    Raises:
        ConfigError: they are of several.
        SpecError: a SPEC cannot be read or names something unknown, such as a modality that is not registered.
    """
    names = {name: text for text in datasets for name in [declared_modality(text)]}
    if len(names) > 1:
        raise ConfigError(
            f"Expected datasets of one kind of data, got {', '.join(f'{text} ({name})' for name, text in names.items())}: what is judged, "
            "and by which attacks, differs. Run them one after the other."
        )
    name, known = next(iter(names), USUAL), known_modalities()
    if name not in known:
        raise SpecError(f"The dataset {names[name]!r} is of the unknown modality {name!r}.{nearest(name, known)}")
    return known[name]


def default_gate(dataset: str) -> dict[str, float]:
    """What cases on a dataset are judged by where nobody says: metric to threshold.

    Args:
        dataset: SPEC.
    """
    return dict(modality_of([dataset]).gate)


def gate_of(metrics: Iterable[str]) -> dict[str, float]:
    """The default gate of the kind of data that these metrics were measured of."""
    name = gain_of(metrics)
    return next(dict(one.gate) for one in known_modalities().values() if name in one.gate)


def gain_of(metrics: Iterable[str]) -> str:
    """Of the metrics that a case has, the one that its kind of data is judged by; that of images where it has none of them."""
    measured, gates = set(metrics), [next(iter(one.gate)) for one in known_modalities().values()]
    return next((name for name in gates if name in measured), gates[0])


def declared_modality(dataset: str) -> str:
    """The name of the modality that the class of a dataset says."""
    found = _declared("dataset", parse_spec("dataset", dataset).parts[0], "modality")
    return found if isinstance(found, str) else USUAL


def misfit(modality: str, *, attack: str, model: str, defense: str = "none") -> str:
    """Why an attack, a model or a defense cannot do data of a modality; empty where nothing is said against it.

    Args:
        modality: its name.
        attack: SPEC.
        model: SPEC.
        defense: SPEC.
    """
    several: tuple[tuple[Kind, str], ...] = (("attack", attack), ("defense", defense))
    for kind, part in ((one, part) for one, text in several for part in parse_spec(one, text).parts):
        taken = _declared(kind, part, "modalities")
        if isinstance(taken, tuple) and modality not in taken:
            return f"the {kind} {part.label} is one on {' and '.join(map(str, taken))} data, and the dataset is one of {modality} data"
    part = parse_spec("model", model).parts[0]
    taken = _declared("model", part, "modality")
    if isinstance(taken, str) and modality != taken:
        return f"the model {part.label} takes {taken} data, and the dataset is one of {modality} data"
    return ""


def _declared(kind: Kind, part: Part, attribute: str) -> object:
    """The literal that the class of a component, or one of its bases, binds to an attribute; None where the text does not tell."""
    target = locate(kind, part)
    return None if target.path is None else _of_class(target.path, target.attribute, attribute, seen=())


def _of_class(path: Path, name: str, attribute: str, *, seen: tuple[tuple[Path, str], ...]) -> object:
    node = next((item for item in parse(path).body if isinstance(item, ast.ClassDef) and item.name == name), None)
    if node is None or (path, name) in seen:
        return None
    for value in (value for item in node.body for target, value in _bound(item) if dotted(target) == attribute):
        try:
            return ast.literal_eval(value)
        except ValueError:
            return None
    found = (_of_base(path, dotted(base) or "", attribute, seen=(*seen, (path, name))) for base in node.bases)
    return next((one for one in found if one is not None), None)


def _bound(item: ast.stmt) -> list[tuple[ast.expr, ast.expr]]:
    """What a statement of a class binds, and to what: ``a = 1``, ``a: int = 1`` and ``a, b = 1, 2``."""
    value = item.value if isinstance(item, ast.Assign | ast.AnnAssign) else None
    if value is None:
        return []
    targets = item.targets if isinstance(item, ast.Assign) else [item.target] if isinstance(item, ast.AnnAssign) else []
    found: list[tuple[ast.expr, ast.expr]] = []
    for target in targets:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            found += zip(target.elts, value.elts, strict=False)
        else:
            found.append((target, value))
    return found


def _of_base(path: Path, written: str, attribute: str, *, seen: tuple[tuple[Path, str], ...]) -> object:
    names = bindings_of(path)
    if written in names.definitions:
        return _of_class(path, written, attribute, seen=seen)
    first, dot, rest = written.partition(".")
    place, _, name = f"{names.imported(first) or ''}{dot}{rest}".rpartition(".")
    file = module_file(place) if place else None
    return _of_class(file, name, attribute, seen=seen) if file is not None else None
