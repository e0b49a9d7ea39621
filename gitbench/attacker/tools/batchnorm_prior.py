"""How far the statistics of candidates are from those that BatchNorm layers have seen."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gitbench.attacker.contents import BatchNormStatistics
from gitbench.attacker.observation import Observation
from gitbench.clients.client import batchnorm_statistics

STATISTICS = ("running", "private", "none")


class BatchNormPrior:
    """The distance of a batch's means and variances from those that are known, averaged over layers; each layer's in units of its own.

    Args:
        model: under attack.
        known: layer to mean and variance, each ``(V, channels)``, or ``(channels,)`` for all victims alike.
    """

    def __init__(self, model: nn.Module, known: BatchNormStatistics) -> None:
        self._model = model
        self._known = known

    @classmethod
    def of(cls, observation: Observation, statistics: str) -> BatchNormPrior | None:
        """That of a threat model: None where no layer has statistics.

        Args:
            observation: needs ``parameters``, and ``batchnorm_statistics`` for those of the private batches.
            statistics: ``running``: the model's own, which the server has; ``private``: those of the victims' batches; ``none``.
        """
        if statistics == "none":
            return None
        known = observation.batchnorm_statistics if statistics == "private" else running_statistics(observation.model)
        return cls(observation.model, known) if known else None

    def __call__(self, images: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Distances ``(N,)`` of candidates ``(N, B, C, H, W)`` of the victims ``rows`` ``(N,)``; differentiable."""
        total = images.new_zeros(len(images))
        for name, seen in batchnorm_statistics(self._model, images).items():
            if name in self._known:
                mean, variance = (one if one.ndim == 1 else one[rows] for one in self._known[name])
                total = total + _length(seen[0] - mean) / _length(variance.sqrt()) + _length(seen[1] - variance) / _length(variance)
        return total / len(self._known)


def running_statistics(model: nn.Module) -> Mapping[str, tuple[torch.Tensor, torch.Tensor]]:
    """Mean and variance of each BatchNorm layer that has seen data: one that still holds 0 and 1 has not."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None:
            mean, variance = module.running_mean.detach(), module.running_var.detach()
            if mean.any() or (variance != 1).any():
                found[name] = (mean, variance)
    return found


def _length(vectors: torch.Tensor) -> torch.Tensor:
    """With a slope at zero, too."""
    return (vectors.square().sum(-1) + 1e-12).sqrt()
