"""What attacks, defenses, models, datasets and metrics have in common: a name and a SPEC that rebuilds them."""

from __future__ import annotations

import inspect
from typing import Any, ClassVar, Self

from gitbench.core.spec import Part


class Component:
    """Base of everything that a SPEC can name. Remembers the arguments it was built with.

    Subclasses take keyword arguments only and set :attr:`name` to the name they are registered
    under; an unregistered class goes by its class name, and so does a class derived from a registered one.
    """

    name: ClassVar[str] = ""
    _part: Part

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        try:
            bound = inspect.signature(cls.__init__).bind(self, *args, **kwargs)
        except TypeError:  # __init__ is about to raise the same error, with the better message
            bound = None
        given = tuple(bound.arguments.items())[1:] if bound else ()
        flat: dict[str, object] = {}
        for key, value in given:
            if isinstance(value, dict) and key in ("kwargs", "options"):
                flat.update(value)
            else:
                flat[key] = value
        self._part = Part(cls.__dict__.get("name") or cls.__name__, tuple(flat.items()))
        return self

    def __repr__(self) -> str:
        return str(self._part)
