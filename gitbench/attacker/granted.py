"""Knowledge that is granted, or not."""

from __future__ import annotations

from typing import TypeVar

from gitbench.core.errors import AttackError, NotGrantedError, nearest
from gitbench.identity.threat import KNOWLEDGE, Knowledge

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
        f"The attack read {name!r}, which is not granted to it. Name it in the attack's requires or uses, in its fit_uses if it has any, "
        "and choose a threat model that grants it (--gitbench-threat)."
    )


def check_knowledge(cls: type, name: str, value: object) -> None:
    """Refuse knowledge that no threat model knows.

    Raises:
        AttackError: naming the attack, the nearest valid name and all of them.
    """
    if name == "fit_uses" and value is None:
        return
    if not isinstance(value, set | frozenset):
        raise AttackError(f"Expected {name} of the attack {cls.__name__} to be a set of names of knowledge, got {value!r}.")
    for found in sorted(value - KNOWLEDGE, key=repr):
        raise AttackError(f"{name} of the attack {cls.__name__} names {found!r}, which is no knowledge.{nearest(str(found), KNOWLEDGE)}")
