"""Ridge regression in closed form, the penalty chosen on rows that were held out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_POWERS = (-9, -8, -7, -6, -5, -4, -3, -2, -1, 0, 1)
_COLUMNS = 96  # outputs that choose the penalty


@dataclass(frozen=True)
class LinearMap:
    """``y = (x - input_mean) @ weight + output_mean``, for ``x (N, F)`` and ``y (N, P)``.

    Args:
        input_mean: ``(F,)``.
        output_mean: ``(P,)``.
        weight: ``(F, P)``.
        error: mean squared error on the held-out rows.
    """

    input_mean: torch.Tensor
    output_mean: torch.Tensor
    weight: torch.Tensor
    error: float

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs - self.input_mean) @ self.weight + self.output_mean

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """The map as tensors to store, named with ``prefix``."""
        return {
            f"{prefix}.input_mean": self.input_mean,
            f"{prefix}.output_mean": self.output_mean,
            f"{prefix}.weight": self.weight,
            f"{prefix}.error": torch.tensor(self.error),
        }

    @classmethod
    def stored(cls, tensors: dict[str, torch.Tensor], prefix: str) -> LinearMap:
        """The inverse of :meth:`tensors`."""
        mean, out, weight, error = (tensors[f"{prefix}.{name}"] for name in ("input_mean", "output_mean", "weight", "error"))
        return cls(mean, out, weight, float(error))


def fit_linear(
    inputs: torch.Tensor, targets: torch.Tensor, *, held: torch.Tensor, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> LinearMap:
    """Fit on the rows that are not held out; the normal equations are solved in float64.

    Args:
        inputs: ``(N, F)``.
        targets: ``(N, P)``.
        held: ``(N,)`` bool: rows that choose the penalty, which is in units of the inputs' mean variance.
        bounds: of the targets. Guesses are cut to them before they are compared, as they will be when
            they are used: a few wild inputs must not choose the penalty.
    """
    train, train_targets = inputs[~held], targets[~held]
    input_mean, output_mean = train.mean(0), train_targets.mean(0)
    centred = train - input_mean
    gram = (centred.T @ centred).double() / len(centred)
    cross = (centred.T @ (train_targets - output_mean)).double() / len(centred)
    test, test_targets = inputs[held] - input_mean, targets[held]
    some = torch.linspace(0, targets.shape[1] - 1, min(_COLUMNS, targets.shape[1]), device=targets.device).long()
    scale = gram.diagonal().mean().clamp_min(1e-30)
    errors = {}
    for power in _POWERS:
        weight = _solved(gram, cross[:, some], 10.0**power * scale)
        errors[power] = math.inf
        if weight is not None:
            guess = (test @ weight.float() + output_mean[some]).clamp(*bounds)
            errors[power] = float((guess - test_targets[:, some]).square().mean())
    best = min(errors, key=lambda power: errors[power])
    weight = _solved(gram, cross, 10.0**best * scale)
    assert weight is not None
    error = float(((test @ weight.float() + output_mean).clamp(*bounds) - test_targets).square().mean())
    return LinearMap(input_mean, output_mean, weight.float(), error)


def _solved(gram: torch.Tensor, cross: torch.Tensor, penalty: torch.Tensor) -> torch.Tensor | None:
    ridge = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, failed = torch.linalg.cholesky_ex(ridge)
    return None if int(failed) else torch.cholesky_solve(cross, factor)
