"""Python's search for objects that hold only each other."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def without_cycle_search() -> Iterator[None]:
    """Inside the block, or in a function that this decorates, Python does not search.

    Thousands of results that were read stay until the end, and each search goes through all of them.
    """
    searching = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if searching:
            gc.enable()
