"""A client of a few lines."""

from __future__ import annotations

import gitbench


class Halves(gitbench.Client):
    """Sends half of its gradient.

    Everything between the client and the attacker is in gradients: what one client sends is half of one.
    """

    name = "halves"
    unit = 0.5

    def local_update(self, model, inputs, labels, *, generator, per_example=False) -> gitbench.Update:
        return gitbench.load_client("fedsgd").local_update(model, inputs, labels, generator=generator, per_example=per_example)
