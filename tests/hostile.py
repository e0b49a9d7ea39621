"""Hostile names and values, and what must become of them."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator

from hypothesis import strategies as st

# Each is invisible, or tells a terminal or a table to do something.
CONTROLS = (
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x00",
    "\x7f",
    "\x9b2J",
    "\r",
    "\x08",
    "\u202e",
    "\u2066",
    "\u200b",
    "\ufeff",
    "\ud800",
    "\u2028",
)
NASTY = "".join(CONTROLS) + "|`*_[x](y)<img src=x onerror=alert(1)>#\n\n| a | b |\n--> "
names = st.text(max_size=30) | st.lists(st.sampled_from([*CONTROLS, "|", "`", "\n", "a", "-->", "<b>", "\\"]), max_size=8).map("".join)


@contextlib.contextmanager
def quickly(seconds: float = 2.0) -> Iterator[None]:
    start = time.process_time()  # on a busy machine the wall clock tells of others
    yield
    assert time.process_time() - start < seconds


def harmless(text: str) -> bool:
    return all(char.isprintable() or char in "\n\t" for char in text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | names
    | st.dates()
    | st.sampled_from([10**4000, "\x00", "9" * 5000, NASTY, math.nan]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=5,
)
