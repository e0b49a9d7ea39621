"""How long work tells what it is doing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(what, done, total)``, often; must return fast. Raises :class:`TimeUp` when the case has no time left."""

    def __call__(self, what: str, done: int, total: int) -> None: ...


class TimeUp(BaseException):  # so that no ``except Exception`` swallows it
    """The case's time is over: raised by ``progress(...)``, or by an alarm at any point.

    An attack that has something to show catches it and returns that; all others let it pass.
    """


def silent(what: str, done: int, total: int) -> None:
    """Tells nobody."""
