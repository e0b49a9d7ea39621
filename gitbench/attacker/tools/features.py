"""The last linear layer's inputs in closed form, where every attack from public pairs starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from gitbench.attacker.observation import Observation
from gitbench.clients.activation import inverse_before
from gitbench.clients.model import last_linear
from gitbench.clients.update import Update
from gitbench.core.errors import ModelError

_CHUNK = 64  # images at once: more of them may not fit into the processor's cache


def last_features(observation: Observation, update: Update, labels: torch.Tensor) -> torch.Tensor:
    """Estimates of the last linear layer's inputs: ``(V, B, features)``, one for each label ``(V, B)``.

    Raises:
        ModelError: the update does not hold the gradient of that layer's weight.
    """
    name, linear = last_linear(observation.architecture)
    weight = update.tensors.get(f"{name}.weight")
    if weight is None:
        raise ModelError(
            f"The update does not hold the gradient of the weight of {name!r} ({type(linear).__name__}), the last layer: it is shared with "
            "another layer, computed from other parameters, or frozen. Its input cannot be read off: use lti, ig or dlg."
        )
    labels = labels.clamp_max(weight.shape[1] - 1)  # one logit has one row for both classes
    if f"{name}.bias" not in update.tensors:
        return _without_bias(weight, labels)
    bias = update.tensors[f"{name}.bias"]
    if labels.shape[1] == 1:
        squares = bias.square().sum(dim=1, keepdim=True)
        feature = torch.einsum("vk,vkf->vf", bias, weight) / squares.clamp_min(1e-20)
        return torch.where(squares > 0, feature, 0)[:, None]
    rows = torch.arange(len(labels), device=weight.device)[:, None]
    scale = bias[rows, labels][..., None]
    return torch.where(scale.abs() > 1e-20, weight[rows, labels] / scale, 0)


def forward_features(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last linear layer reads of inputs ``(N, C, H, W)``, and the logits, both in float64."""
    with torch.no_grad():
        features, logits = zip(*(passed(model, part) for part in inputs.split(_CHUNK)), strict=True)
    return torch.cat(features).double(), torch.cat(logits).double()


def passed(model: nn.Module, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as the model computes it, at once; differentiable."""
    seen: list[torch.Tensor] = []
    handle = last_linear(model)[1].register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    try:
        logits: torch.Tensor = model(inputs)
    finally:
        handle.remove()
    return torch.cat(seen), logits


def principal_directions(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """In which rows ``(N, F)`` are longest: root mean squares ``(R,)``, falling, and directions ``(R, F)``, for ``R = min(N, F)``.

    Of many rows by their products, which is faster than a singular value decomposition and has half its digits: what is shorter than
    1e-7 of the longest is lost in rounding.
    """
    if len(rows) <= rows.shape[1]:
        _, deviations, directions = torch.linalg.svd(rows, full_matrices=False)
        return deviations / len(rows) ** 0.5, directions
    squares, directions = torch.linalg.eigh(rows.T @ rows / len(rows))
    return squares.flip(0).clamp_min(0).sqrt(), directions.T.flip(0)


def input_inverse(observation: Observation) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """The inverse of the activation whose output the features are; None where there is none, or where only their direction is known."""
    model = observation.architecture
    name, linear = last_linear(model)
    return inverse_before(model, linear) if f"{name}.bias" in observation.sent else None


def _without_bias(weight: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Direction of the features: the true class's row is ``(p_y - 1) a``, so its negative points along ``a``.

    The length is lost with the bias; that of the row stands in for it, through its logarithm.
    """
    rows = torch.arange(len(labels), device=weight.device)[:, None]
    row = -weight[rows, labels]
    length = row.norm(dim=2, keepdim=True).clamp_min(1e-20)
    return torch.cat([row / length, length.log()], dim=2)
