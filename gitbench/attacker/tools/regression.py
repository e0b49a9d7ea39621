"""Ridge regression in closed form, the penalty chosen on rows that were held out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

_START, _LOWEST, _HIGHEST, _THOROUGH_HIGHEST = -4, -10, 2, 3  # powers of ten of the penalty
_COLUMNS = 96  # outputs that choose it
_ALL = slice(None)


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
    def stored(cls, tensors: Mapping[str, torch.Tensor], prefix: str) -> LinearMap:
        """The inverse of :meth:`tensors`."""
        mean, out, weight, error = (tensors[f"{prefix}.{name}"] for name in ("input_mean", "output_mean", "weight", "error"))
        return cls(mean, out, weight, float(error))


def fit_linear(
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    held: torch.Tensor,
    bounds: tuple[float, float] = (-math.inf, math.inf),
    thorough: bool = False,
) -> LinearMap:
    """Fit on the rows that are not held out; the normal equations are solved in float64.

    Args:
        inputs: ``(N, F)``, whose dtype is that of the products and of the map.
        targets: ``(N, P)``.
        held: ``(N,)`` bool: rows that choose the penalty, which is in units of the inputs' mean variance.
        bounds: of the targets. Guesses are cut to them before they are compared, as they will be when
            they are used: a few wild inputs must not choose the penalty.
        thorough: let all outputs choose the penalty, rather than some; then fit again, on all rows.
    """
    equations = _NormalEquations(inputs[~held], targets[~held])
    test, test_targets = inputs[held], targets[held]
    every = targets.shape[1]
    some = _ALL if thorough else torch.linspace(0, every - 1, min(_COLUMNS, every), device=targets.device).long()
    errors: dict[int, float] = {}

    def error(power: int) -> float:
        if power not in errors:
            guess = equations.guess(test, 10.0**power, some)
            errors[power] = math.inf if guess is None else float((guess.clamp(*bounds) - test_targets[:, some]).square().mean())
        return errors[power]

    best, highest = _START, _THOROUGH_HIGHEST if thorough else _HIGHEST
    for direction in (-1, 1):  # errors have one valley
        while _LOWEST < best < highest and error(best + direction) < error(best):
            best += direction
    final = _NormalEquations(inputs, targets) if thorough else equations
    fitted = final.solved(10.0**best) or final.constant
    left = error(best) if thorough else float((fitted(test).clamp(*bounds) - test_targets).square().mean())
    return replace(fitted, error=left)


class _NormalEquations:
    """Of rows ``(N, F)`` and targets ``(N, P)`` less their means, in whichever of their two forms is the smaller."""

    def __init__(self, inputs: torch.Tensor, targets: torch.Tensor) -> None:
        targets = targets.to(inputs.dtype)
        self._input_mean, self._output_mean = inputs.mean(0), targets.mean(0)
        self._inputs, targets = inputs - self._input_mean, targets - self._output_mean
        self._few = len(inputs) < inputs.shape[1]
        product = self._inputs @ self._inputs.T if self._few else self._inputs.T @ self._inputs
        self._gram = product.double() / len(inputs)
        self._cross = (targets if self._few else self._inputs.T @ targets).double() / len(inputs)
        self._scale = self._inputs.square().mean().double().clamp_min(1e-30)

    def solved(self, penalty: float, columns: torch.Tensor | slice = _ALL) -> LinearMap | None:
        """The map to some of the outputs, for a penalty in units of the inputs' mean variance; None where it is too small."""
        factor = self._factor(penalty)
        if factor is None:
            return None
        solved = torch.cholesky_solve(self._cross[:, columns], factor).to(self._inputs.dtype)
        return LinearMap(self._input_mean, self._output_mean[columns], self._inputs.T @ solved if self._few else solved, math.nan)

    def guess(self, inputs: torch.Tensor, penalty: float, columns: torch.Tensor | slice) -> torch.Tensor | None:
        """Outputs of rows ``(n, F)``. Of all outputs, without the map: it costs more than a few rows."""
        if columns is not _ALL:
            fitted = self.solved(penalty, columns)
            return None if fitted is None else fitted(inputs)
        factor = self._factor(penalty)
        if factor is None:
            return None
        rows = inputs - self._input_mean
        rows = rows @ self._inputs.T if self._few else rows
        return torch.cholesky_solve(rows.double().T, factor).T @ self._cross + self._output_mean

    def _factor(self, penalty: float) -> torch.Tensor | None:
        ridge = self._gram + penalty * self._scale * torch.eye(len(self._gram), dtype=torch.float64, device=self._gram.device)
        factor, failed = torch.linalg.cholesky_ex(ridge)
        return None if int(failed) else factor

    @property
    def constant(self) -> LinearMap:
        """The targets' mean: what is left where the inputs hold nothing but rounding."""
        weight = self._inputs.new_zeros(self._inputs.shape[1], len(self._output_mean))
        return LinearMap(self._input_mean, self._output_mean, weight, math.nan)
