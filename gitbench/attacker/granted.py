"""Knowledge that is granted, or not."""

from __future__ import annotations

from typing import TypeVar

from gitbench.core.errors import NotGrantedError
from gitbench.identity.threat import Knowledge

T = TypeVar("T")


def granted_or_raise(name: Knowledge, value: T | None) -> T:
    """The value, where there is one.

    Raises:
        NotGrantedError: there is none.
    """
    if value is None:
        raise not_granted(name)
    return value


def not_granted(name: Knowledge) -> NotGrantedError:
    """What to raise where an attack reads what is not granted."""
    return NotGrantedError(
        f"The attack read {name!r}, which is not granted to it. Name it in the attack's requires or uses, "
        "and choose a threat model that grants it (--gitbench-threat)."
    )
