"""What is measured, and by which code: names and where they lead, cases, threat models, digests."""

from __future__ import annotations

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """In 0.1 this was one module, which is now :mod:`gitbench.identity.objects`."""
    return getattr(importlib.import_module("gitbench.identity.objects"), name)
