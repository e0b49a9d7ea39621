"""A case's budget of time: what takes longer is interrupted, and says so."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Self

from gitbench.core.errors import ConfigError
from gitbench.core.progress import Progress, TimeUp, silent

# The alarm comes a moment after the budget: work that tells of its progress stops there, between two steps.
_GRACE = 1.0
# Code that swallows the alarm gets another.
_AGAIN = 10.0
_LONGEST = 1e8  # what the system's timer takes


class Deadline:
    """Raises :class:`~gitbench.core.progress.TimeUp` once ``seconds`` have passed between :meth:`begin` and :meth:`end`.

    To be used in a ``with`` block, which ends it whatever happens.

    It is a :class:`~gitbench.core.progress.Progress`, and raises when it is told of progress too late. For code that
    tells nothing there is an alarm as well, where the system has one (SIGALRM, not on Windows), on the main thread,
    and unless somebody else has set it (pytest-timeout). It interrupts Python, also in a sleep or a wait; a call
    into compiled code is interrupted when it returns.

    Args:
        seconds: the budget; None for no limit.
        progress: told what this is told.

    Raises:
        ConfigError: the budget is no positive number.
    """

    def __init__(self, seconds: float | None, progress: Progress = silent) -> None:
        self.seconds = checked(seconds)
        self._progress = progress
        self._start: float | None = None
        self._end: float | None = None
        self._previous: Any = None
        self._armed = False

    @property
    def over(self) -> bool:
        """Whether the work took, or is taking, longer than its budget."""
        if self.seconds is None or self._start is None:
            return False
        return (self._end or time.monotonic()) - self._start >= self.seconds

    def __call__(self, what: str, done: int, total: int) -> None:
        self._progress(what, done, total)
        if self._end is None and self.over:
            raise TimeUp

    def begin(self) -> None:
        """The clock starts."""
        self._start = time.monotonic()
        if self.seconds is not None and _alarm_is_free():
            self._previous = signal.signal(signal.SIGALRM, self._ring)
            self._armed = True
            signal.setitimer(signal.ITIMER_REAL, min(self.seconds + _GRACE, _LONGEST), _AGAIN)

    def end(self) -> None:
        """The clock stops; nothing is raised any more."""
        armed = self._armed
        try:
            self._armed = False
            self._end = self._end or time.monotonic()
        finally:
            if armed:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, signal.SIG_DFL if self._previous is None else self._previous)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    def _ring(self, _signal: int, _frame: FrameType | None) -> None:
        if self._armed:
            raise TimeUp


def checked(seconds: float | None) -> float | None:
    """The budget, if it is one.

    Raises:
        ConfigError: it is no positive number.
    """
    if seconds is not None and not (isinstance(seconds, int | float) and math.isfinite(seconds) and seconds > 0):
        raise ConfigError(f"Expected the timeout to be a number of seconds > 0, or none for no limit, got {seconds!r}.")
    return seconds


def _alarm_is_free() -> bool:
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        return False
    return signal.getitimer(signal.ITIMER_REAL)[0] == 0
