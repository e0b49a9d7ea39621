"""R-GAP with an image prior: the input, layer by layer from the logits down, when the parameters are known."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """In 0.1 this was one module, which is now `attack.py` beside this file."""
    if name != "Recursion":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gitbench.attacker.attacks.recursion.attack import Recursion

    return Recursion
