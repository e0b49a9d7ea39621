"""No defense: the control."""

from __future__ import annotations

from gitbench.clients.defense import Defense


class Undefended(Defense):
    """Sends the raw gradient. Its cells are the controls of the attacks."""

    name = "none"
