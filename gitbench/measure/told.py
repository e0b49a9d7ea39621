"""What stands beside every figure of a case."""

from __future__ import annotations

from torch import nn

from gitbench.clients.output import output_of
from gitbench.clients.trained import sent_share


def told_of(model: nn.Module) -> dict[str, str]:
    """What of the model stands beside every figure: its mode, where its logits are, and the share that is sent where a part is not."""
    told = {"model.mode": "train" if model.training else "eval", "model.output": str(output_of(model))}
    share = sent_share(model)
    return told if share == 1 else {**told, "model.sent": f"{share:.2%}"}
