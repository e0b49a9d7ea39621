"""GIT: back-propagation read backwards, layer by layer (arXiv 2505.20026)."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """In 0.1 this was one module, which is now `attack.py` beside this file."""
    if name != "Git":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gitbench.attacker.attacks.git.attack import Git

    return Git
