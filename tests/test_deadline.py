"""The clock behind a case's budget of time."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable

import pytest

from gitbench.core.deadline import Deadline
from gitbench.core.progress import TimeUp
from helpers import alarm, at_most


def test_no_limit_never_rings() -> None:
    told = []
    with Deadline(None, lambda *what: told.append(what)) as deadline:
        deadline.begin()
        deadline("work", 1, 2)
        assert not deadline.over
    assert told == [("work", 1, 2)]


def test_progress_past_the_budget_is_told_and_raises() -> None:
    told = []
    with Deadline(0.01, lambda *what: told.append(what)) as deadline:
        deadline("before the clock starts", 0, 1)
        deadline.begin()
        time.sleep(0.02)
        with pytest.raises(TimeUp):
            deadline("work", 1, 2)
        deadline.end()
        deadline("afterwards", 2, 2)
    assert deadline.over
    assert [what for what, *_ in told] == ["before the clock starts", "work", "afterwards"]


def test_the_clock_stops_at_the_end() -> None:
    with Deadline(0.05) as deadline:
        deadline.begin()
        deadline.end()
        time.sleep(0.06)
    assert not deadline.over


@alarm
@pytest.mark.parametrize("hang", [lambda: time.sleep(60), lambda: threading.Event().wait(60)], ids=["sleep", "wait"])
def test_a_hang_is_interrupted(hang: Callable[[], None]) -> None:
    with at_most(50), pytest.raises(TimeUp), Deadline(0.05) as deadline:
        deadline.begin()
        hang()
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None)


@alarm
def test_anothers_alarm_is_left_alone() -> None:
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 30)
        with Deadline(0.05) as deadline:
            deadline.begin()
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 20
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_other_threads_stop_at_their_progress() -> None:
    stopped = []

    def work() -> None:
        with Deadline(0.01) as deadline:
            deadline.begin()
            time.sleep(0.02)
            try:
                deadline("work", 1, 2)
            except TimeUp:
                stopped.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert stopped == [True]
