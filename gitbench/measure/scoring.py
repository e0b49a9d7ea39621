"""Scoring: reconstructions against the truth, per image."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment

from gitbench.core.errors import AttackError
from gitbench.measure.metrics.identification import identification
from gitbench.measure.metrics.perceptual import lpips
from gitbench.measure.metrics.pixel import mse, psnr
from gitbench.measure.metrics.ssim import ssim


def score(
    reconstruction: torch.Tensor,
    truth: torch.Tensor,
    *,
    blind: torch.Tensor | None = None,
    private: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Leakage metrics of every image.

    Within a victim's batch, reconstructions are first assigned to true images at the lowest total
    squared error: the order that an attack returns carries no meaning.

    Args:
        reconstruction: ``(V, B, C, H, W)`` in [0, 1].
        truth: the same shape.
        blind: the blind guess ``(C, H, W)``; adds ``psnr_gain``.
        private: all private images ``(M, C, H, W)``; adds ``identification``.

    Returns:
        Metric name to ``(V, B)``, in the order of ``truth``. NaN where a reconstruction is not finite.

    Raises:
        AttackError: shapes differ.
    """
    if reconstruction.shape != truth.shape or truth.ndim != 5:
        raise AttackError(f"Expected two stacks (V, B, C, H, W), got {tuple(reconstruction.shape)} and {tuple(truth.shape)}.")
    shape = truth.shape[:2]
    finite = torch.isfinite(reconstruction).flatten(2).all(dim=2)
    clean = torch.where(finite[..., None, None, None], reconstruction, 0)
    order = assign(torch.where(finite[..., None, None, None], reconstruction, torch.nan), truth)
    rows = torch.arange(shape[0], device=truth.device)[:, None]
    images, finite = clean[rows, order].flatten(0, 1), finite[rows, order]
    true = truth.flatten(0, 1)
    found = {"mse": mse(images, true), "psnr": psnr(images, true), "ssim": ssim(images, true), "lpips": lpips(images, true)}
    if blind is not None:
        found["psnr_gain"] = found["psnr"] - psnr(blind.expand_as(true), true)
    if private is not None:
        found["identification"] = identification(images, true, private)
    return {name: torch.where(finite, values.reshape(shape), torch.nan) for name, values in found.items()}


def assign(reconstruction: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """For each true image the index of the reconstruction assigned to it: ``(V, B)``."""
    if truth.shape[1] == 1:
        return torch.zeros(truth.shape[:2], dtype=torch.long, device=truth.device)
    costs = torch.cdist(truth.flatten(2).double(), reconstruction.flatten(2).double()).square().cpu()
    # What is not finite costs the same everywhere: it gets the truth that the others leave.
    costs = torch.where(torch.isfinite(costs), costs, 0)
    rows = [linear_sum_assignment(cost.numpy())[1] for cost in costs]
    return torch.stack([torch.from_numpy(row) for row in rows]).to(truth.device)
