"""Scoring: reconstructions against the truth, per input."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from scipy.optimize import linear_sum_assignment

from gitbench.clients.data import Data
from gitbench.clients.modalities.image import ImageData
from gitbench.core.errors import AttackError, GitbenchError, MetricError
from gitbench.core.metric import Metric
from gitbench.core.modality import Modality
from gitbench.identity.known_metrics import known_metrics
from gitbench.judge.statistics import interval
from gitbench.store.result import Baselines, Measure


def score(
    reconstruction: torch.Tensor,
    truth: torch.Tensor,
    *,
    blind: torch.Tensor | None = None,
    private: torch.Tensor | None = None,
    modality: Modality | None = None,
) -> dict[str, torch.Tensor]:
    """Every registered metric of the kind of data, of every input.

    Within a victim's batch, reconstructions are first assigned to true inputs at the lowest total
    distance (of images the squared error): the order that an attack returns carries no meaning.

    Args:
        reconstruction: ``(V, B, *shape)``; of images ``(V, B, C, H, W)`` in [0, 1].
        truth: the same shape.
        blind: the blind guess ``(*shape)``; adds ``psnr_gain``, and what else needs it.
        private: all private inputs ``(M, *shape)``; adds ``identification``, and what else needs them.
        modality: what kind of data they are; None is images.

    Returns:
        Metric name to ``(V, B)``, in the order of ``truth``. NaN where a reconstruction is not finite.

    Raises:
        AttackError: shapes differ.
        MetricError: a metric raised, or returned something malformed.
    """
    modality = modality or ImageData()
    if reconstruction.shape != truth.shape or truth.ndim != 3 + modality.axes.count(","):
        raise AttackError(f"Expected two stacks (V, B, {modality.axes}), got {tuple(reconstruction.shape)} and {tuple(truth.shape)}.")
    shape = truth.shape[:2]
    finite = torch.isfinite(reconstruction).flatten(2).all(dim=2)
    whole = finite.reshape(*shape, *(1,) * (truth.ndim - 2))
    clean = torch.where(whole, reconstruction, 0)
    order = assign(torch.where(whole, reconstruction, torch.nan) if clean.is_floating_point() else clean, truth, modality)
    rows = torch.arange(shape[0], device=truth.device)[:, None]
    images, finite = clean[rows, order].flatten(0, 1), finite[rows, order]
    true = truth.flatten(0, 1)
    there = {name: value for name, value in (("blind", blind), ("private", private)) if value is not None}
    found = {}
    for name, metric in known_metrics().items():
        if metric.modality == modality.name and there.keys() >= {*metric.needs}:
            values = _scored(metric, images, true, {need: there[need] for need in metric.needs})
            found[name] = torch.where(finite, values.reshape(shape), torch.nan)
    return found


def _scored(metric: Metric, images: torch.Tensor, true: torch.Tensor, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    try:
        values = metric.score(images, true, **given)
    except GitbenchError:
        raise
    except Exception as error:
        raise MetricError(f"The metric {metric.name!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(values, torch.Tensor) or values.shape != images.shape[:1]:
        found = f"a tensor {tuple(values.shape)}" if isinstance(values, torch.Tensor) else repr(values)
        raise MetricError(f"Expected the metric {metric.name!r} to return one value for each of {len(images)} images, got {found}.")
    return values.double().to(images.device)


def assign(reconstruction: torch.Tensor, truth: torch.Tensor, modality: Modality) -> torch.Tensor:
    """For each true input the index of the reconstruction assigned to it: ``(V, B)``."""
    if truth.shape[1] == 1:
        return torch.zeros(truth.shape[:2], dtype=torch.long, device=truth.device)
    costs = modality.distances(reconstruction, truth).cpu()
    # What is not finite costs the same everywhere: it gets the truth that the others leave.
    costs = torch.where(torch.isfinite(costs), costs, 0)
    rows = [linear_sum_assignment(cost.numpy())[1] for cost in costs]
    return torch.stack([torch.from_numpy(row) for row in rows]).to(truth.device)


def measures_of(found: torch.Tensor, inputs: torch.Tensor, data: Data) -> tuple[dict[str, Measure], Baselines, list[str]]:
    """Every metric of some victims with its interval, the blind guess's, and flags for what could not be measured."""
    blind = data.modality.blind(data.public.inputs).to(inputs.device)
    scores = score(found, inputs, blind=blind, private=data.private.inputs.to(inputs.device), modality=data.modality)
    guess = score(blind.expand_as(inputs), inputs, modality=data.modality)
    flags = []
    measures = {}
    for name, values in scores.items():
        per_victim = [value if math.isfinite(value) else None for value in values.mean(dim=1).tolist()]
        if None in per_victim:
            flags.append(f"{name}-not-measured")
        bounds = interval([per_victim])
        measures[name] = Measure(mean=bounds.mean, low=bounds.low, high=bounds.high, values=tuple(per_victim))
    return measures, Baselines(blind={name: float(values.mean()) for name, values in guess.items()}), flags
