"""The loss that clients differentiate."""

from __future__ import annotations

import torch
from torch.nn import functional


def mean_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of logits ``(B, classes)``, by class indices ``(B,)`` or probabilities ``(B, classes)``.

    Of a model that predicts at several positions all have one more dimension, before the classes, and the mean is over positions too.
    """
    if targets.is_floating_point():
        return -(targets * functional.log_softmax(logits, dim=-1)).sum(-1).mean()
    return functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
