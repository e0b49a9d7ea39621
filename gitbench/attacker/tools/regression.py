"""Ridge regression in closed form, the penalty chosen on rows that were held out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_START, _LOWEST, _HIGHEST = -4, -10, 2  # powers of ten of the penalty
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
    system = _System(train - input_mean, train_targets - output_mean)
    test, test_targets = inputs[held] - input_mean, targets[held]
    some = torch.linspace(0, targets.shape[1] - 1, min(_COLUMNS, targets.shape[1]), device=targets.device).long()
    errors: dict[int, float] = {}

    def error(power: int) -> float:
        if power not in errors:
            weight = system.weight(10.0**power, some)
            guess = None if weight is None else (test @ weight + output_mean[some]).clamp(*bounds)
            errors[power] = math.inf if guess is None else float((guess - test_targets[:, some]).square().mean())
        return errors[power]

    best = _START
    for direction in (-1, 1):  # errors have one valley
        while _LOWEST < best < _HIGHEST and error(best + direction) < error(best):
            best += direction
    weight = system.weight(10.0**best, slice(None))
    if weight is None:  # nothing but rounding in the inputs
        weight = train.new_zeros(train.shape[1], targets.shape[1])
    left = float(((test @ weight + output_mean).clamp(*bounds) - test_targets).square().mean())
    return LinearMap(input_mean, output_mean, weight, left)


class _System:
    """The normal equations of centred rows, in whichever of their two forms is the smaller."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        self._inputs = inputs
        self._few = len(inputs) < inputs.shape[1]
        product = inputs @ inputs.T if self._few else inputs.T @ inputs
        self._gram = product.double() / len(inputs)
        self._cross = (targets if self._few else inputs.T @ targets).double() / len(inputs)
        self._scale = inputs.square().mean().double().clamp_min(1e-30)

    def weight(self, penalty: float, columns: torch.Tensor | slice) -> torch.Tensor | None:
        """``(F, P)`` for a penalty in units of the inputs' mean variance; None where it is too small to solve for."""
        ridge = self._gram + penalty * self._scale * torch.eye(len(self._gram), dtype=torch.float64, device=self._gram.device)
        factor, failed = torch.linalg.cholesky_ex(ridge)
        if int(failed):
            return None
        solved = torch.cholesky_solve(self._cross[:, columns], factor).float()
        return self._inputs.T @ solved if self._few else solved
