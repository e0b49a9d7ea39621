"""The image that a linear map reads off the last layer's input: where there is nothing to walk down, a start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import last_features
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.clients.activation import inverse_before
from gitbench.clients.model import last_linear
from gitbench.clients.update import Update

Tensors = dict[str, torch.Tensor]


def features_of(observation: Observation, update: Update, labels: torch.Tensor) -> list[torch.Tensor]:
    """The last layer's inputs, and those of the activation before it where that has an inverse: ``(V, B, F)`` each.

    Args:
        observation: of which the architecture is read.
        update: of ``V`` victims.
        labels: ``(V, B)``, sorted in each batch.
    """
    found = last_features(observation, update, labels).double()
    model = observation.architecture
    _, linear = last_linear(model)
    inverse = inverse_before(model, linear) if linear.bias is not None else None
    return [found.float()] if inverse is None else [found.float(), inverse(found).float()]


def fit_start(features: Sequence[torch.Tensor], pixels: torch.Tensor, *, holdout: float) -> Tensors:
    """The map from one of the features ``(N, B, F)`` to pixels ``(N, B, n)``.

    Args:
        features: of public images; what suits best is chosen.
        pixels: of these images.
        holdout: share of the images that chooses the features and the penalty.
    """
    rows = pixels.flatten(0, 1)
    held = torch.arange(len(rows), device=rows.device) >= len(rows) - max(1, round(holdout * len(rows)))
    maps = [fit_linear(one.flatten(0, 1), rows, held=held, bounds=(0, 1)) for one in features]
    best = min(range(len(maps)), key=lambda index: maps[index].error)
    return {**maps[best].tensors("start"), "start.map": torch.tensor(best)}


def run_start(observation: Observation, labels: torch.Tensor, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images ``(V, B, C, H, W)`` in [0, 1] of an observation's victims."""
    features = features_of(observation, observation.update, labels)[int(tensors["start.map"])]
    found = LinearMap.stored(dict(tensors), "start")(features).float().clamp(0, 1)
    return found.reshape(*labels.shape, *observation.input_shape)
