"""The metrics that are registered. Whatever measures, judges or prints asks here; no torch is imported for it."""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
from collections.abc import Mapping
from types import MappingProxyType

from gitbench.core.errors import SpecError, nearest
from gitbench.core.metric import Metric
from gitbench.core.spec import Part
from gitbench.identity.loading import build_part
from gitbench.identity.names import entry_points
from gitbench.identity.sources import part_digest

GIVEN = ("blind", "private")  # what a metric's score may ask for by keyword
_FIRST = ("mse", "psnr", "ssim", "lpips", "psnr_gain", "identification")  # in results and tables; the others follow by name


def known_metrics() -> Mapping[str, Metric]:
    """Every registered metric by its name.

    Raises:
        SpecError: one cannot be imported or is malformed, or two packages register one name.
    """
    return _built(_registered())


def digest_of_metrics() -> str:
    """Digest of the sources of all registered metrics (16 hex digits): where one is added or edited, cases are measured again.

    Raises:
        SpecError: one cannot be found.
    """
    return _digest(_registered())


def _registered() -> tuple[tuple[str, str], ...]:
    """Names and where they lead. A file goes by its whole path: a relative one is another file in another folder."""
    found = tuple(entry_points("metric").items())
    if not _names_a_file(found):  # asked thousands of times
        return found
    return tuple((name, os.path.abspath(target) if ".py:" in target else target) for name, target in found)


@functools.cache
def _names_a_file(found: tuple[tuple[str, str], ...]) -> bool:
    return any(".py:" in target for _, target in found)


@functools.cache
def _built(registered: tuple[tuple[str, str], ...]) -> Mapping[str, Metric]:
    names = sorted((name for name, _ in registered), key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name))
    return MappingProxyType({name: _metric(name) for name in names})


@functools.cache
def _digest(registered: tuple[tuple[str, str], ...]) -> str:
    parts = [f"{name} {part_digest('metric', Part(name))}" for name, _ in sorted(registered)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _metric(name: str) -> Metric:
    metric: Metric = build_part("metric", Part(name), Metric)
    problem = _problem(metric, name)
    if problem:
        raise SpecError(f"The metric {name!r} ({entry_points('metric')[name]}) cannot be used: {problem}")
    return metric


def _problem(metric: Metric, name: str) -> str:
    """What is wrong with how a metric is defined; empty where nothing is."""
    if metric.name != name or not name.isidentifier():
        return f"expected a class whose name is the identifier that it is registered by, got {metric.name!r}."
    missing = [attribute for attribute in ("higher_leaks", "tolerance", "summary") if not hasattr(metric, attribute)]
    missing += ["score"] if type(metric).score is Metric.score else []
    if missing:
        return f"its class does not define {', '.join(missing)}."
    unknown = next((need for need in metric.needs if need not in GIVEN), None)
    if unknown is not None:
        return f"its score asks for {unknown!r}, which there is not.{nearest(unknown, GIVEN)}"
    try:
        inspect.signature(metric.score).bind(None, None, **dict.fromkeys(metric.needs))
    except TypeError as error:
        return f"expected score(self, found, truth), and what it needs besides as keywords (*, blind, private): {error}."
    return ""
