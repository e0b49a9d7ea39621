"""Results on disk: what one case measured, the folder that keeps it, and its picture."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """In 0.1 the store was one module, which is now :mod:`gitbench.store.folder`."""
    return getattr(importlib.import_module("gitbench.store.folder"), name)
