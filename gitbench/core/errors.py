"""Every error that gitbench raises on purpose.

Each message says what was expected, what was found and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GitbenchError(Exception):
    """Base of all errors raised by gitbench."""


class SpecError(GitbenchError):
    """A SPEC string cannot be read, or names something that does not exist."""


class ConfigError(GitbenchError):
    """An option has a value that gitbench cannot use."""


class DataError(GitbenchError):
    """A dataset is missing, damaged or too small."""


class ModelError(GitbenchError):
    """A model cannot be built, or cannot be used as a model under attack."""


class DefenseError(GitbenchError):
    """A defense raised, or returned something malformed."""


class AttackError(GitbenchError):
    """An attack raised, or returned something malformed."""


class MetricError(GitbenchError):
    """A metric raised, or returned something malformed."""


class NotGrantedError(GitbenchError):
    """An attack read knowledge that the threat model does not grant."""


class StoreError(GitbenchError):
    """A stored result cannot be read or written."""


class ClusterError(GitbenchError):
    """A cluster cannot be reached, or could not measure a case."""


def told(error: Exception) -> str:
    """What a result says of an error: our own speaks for itself, of somebody's code the kind is named."""
    return str(error) if isinstance(error, GitbenchError) else f"{type(error).__name__}: {error}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a sentence that offers the valid name closest to ``name``, then all of them."""
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5) if len(name) <= 100 else []  # slow for a long one
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Valid: {', '.join(names) or 'none'}."
