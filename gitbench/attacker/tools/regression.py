"""Ridge regression in closed form, the penalty chosen on rows that were held out."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

_START, _LOWEST, _HIGHEST, _THOROUGH_HIGHEST = -4, -10, 2, 3  # powers of ten of the penalty
_COLUMNS = 96  # outputs that choose it
_ALL = slice(None)
_TINY = 1e-30


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
    """The map of :class:`LinearFit`, which describes the arguments."""
    return LinearFit(inputs, targets, held=held, bounds=bounds, thorough=thorough).map


class LinearFit:
    """A fit on the rows that are not held out; the normal equations are solved in float64.

    Args:
        inputs: ``(N, F)``, whose dtype is that of the products and of the map.
        targets: ``(N, P)``.
        held: ``(N,)`` bool: rows that choose the penalty, which is in units of the inputs' mean variance.
        bounds: of the targets. Guesses are cut to them before they are compared, as they will be when
            they are used: a few wild inputs must not choose the penalty.
        thorough: let all outputs choose the penalty, rather than some; then fit again, on all rows.
    """

    def __init__(
        self, inputs: torch.Tensor, targets: torch.Tensor, *, held: torch.Tensor, bounds: tuple[float, float], thorough: bool
    ) -> None:
        self._bounds, self._thorough = bounds, thorough
        self._equations = _NormalEquations.of(inputs[~held], targets[~held])
        self._test, self._test_targets = inputs[held], targets[held]
        every = targets.shape[1]
        self._some = _ALL if thorough else torch.linspace(0, every - 1, min(_COLUMNS, every), device=targets.device).long()
        self._errors: dict[int, float] = {}
        best, highest = _START, _THOROUGH_HIGHEST if thorough else _HIGHEST
        for direction in (-1, 1):  # errors have one valley
            while _LOWEST < best < highest and self._error(best + direction) < self._error(best):
                best += direction
        self._best = best

    @functools.cached_property
    def error(self) -> float:
        """Mean squared error on the held-out rows; a thorough fit knows it without its map."""
        if self._thorough:
            return self._error(self._best)
        guess = self._fitted(self._test).clamp(*self._bounds)
        return float((guess - self._test_targets).square().mean())

    @property
    def map(self) -> LinearMap:
        """What was fitted, with its error."""
        return replace(self._fitted, error=self.error)

    @functools.cached_property
    def _fitted(self) -> LinearMap:
        final = self._equations.extended(self._test, self._test_targets) if self._thorough else self._equations
        return final.solved(10.0**self._best) or final.constant

    def _error(self, power: int) -> float:
        if power not in self._errors:
            guess = self._equations.guess(self._test, 10.0**power, self._some)
            missed = None if guess is None else guess.clamp(*self._bounds) - self._test_targets[:, self._some]
            self._errors[power] = math.inf if missed is None else float(missed.square().mean())
        return self._errors[power]


@dataclass(frozen=True)
class _NormalEquations:
    """Of rows ``(N, F)`` and targets ``(N, P)`` less their means, in whichever of their two forms is the smaller.

    Args:
        count: ``N``.
        rows: less their mean, where they are few; None where there are more than entries.
        input_mean: ``(F,)``.
        output_mean: ``(P,)``.
        gram: the rows' products, over their number, in float64: ``(F, F)``; ``(N, N)`` of few rows.
        cross: their products with the targets, likewise ``(F, P)``; of few rows the targets ``(N, P)``.
        scale: the inputs' mean variance.
    """

    count: int
    rows: torch.Tensor | None
    input_mean: torch.Tensor
    output_mean: torch.Tensor
    gram: torch.Tensor
    cross: torch.Tensor
    scale: torch.Tensor

    @classmethod
    def of(cls, inputs: torch.Tensor, targets: torch.Tensor) -> _NormalEquations:
        """The equations of some rows."""
        targets = targets.to(inputs.dtype)
        mean, middle, count = inputs.mean(0), targets.mean(0), len(inputs)
        inputs, targets = inputs - mean, targets - middle
        few = count < inputs.shape[1]
        gram = (inputs @ inputs.T if few else inputs.T @ inputs).double() / count
        cross = (targets if few else inputs.T @ targets).double() / count
        scale = inputs.square().mean().double().clamp_min(_TINY)
        return cls(count, inputs if few else None, mean, middle, gram, cross, scale)

    def extended(self, inputs: torch.Tensor, targets: torch.Tensor) -> _NormalEquations:
        """With more rows ``(n, F)`` and targets ``(n, P)``: of many rows at the price of the new ones alone."""
        targets = targets.to(inputs.dtype)
        if self.rows is not None:
            before = (self.cross * self.count).to(targets.dtype) + self.output_mean
            return self.of(torch.cat([self.rows + self.input_mean, inputs]), torch.cat([before, targets]))
        inputs, targets = inputs - self.input_mean, targets - self.output_mean
        count = self.count + len(inputs)
        shift, lift = inputs.sum(0) / count, targets.sum(0) / count  # of the means
        share = self.count / count
        gram = share * self.gram + (inputs.T @ inputs / count - torch.outer(shift, shift)).double()
        cross = share * self.cross + (inputs.T @ targets / count - torch.outer(shift, lift)).double()
        scale = gram.diagonal().mean().clamp_min(_TINY)
        return _NormalEquations(count, None, self.input_mean + shift, self.output_mean + lift, gram, cross, scale)

    def solved(self, penalty: float, columns: torch.Tensor | slice = _ALL) -> LinearMap | None:
        """The map to some of the outputs, for a penalty in units of the inputs' mean variance; None where it is too small."""
        factor = self._factor(penalty)
        if factor is None:
            return None
        solved = torch.cholesky_solve(self.cross[:, columns], factor).to(self.input_mean.dtype)
        weight = solved if self.rows is None else self.rows.T @ solved
        return LinearMap(self.input_mean, self.output_mean[columns], weight, math.nan)

    def guess(self, inputs: torch.Tensor, penalty: float, columns: torch.Tensor | slice) -> torch.Tensor | None:
        """Outputs of rows ``(n, F)``. Of all outputs, without the map: it costs more than a few rows."""
        if columns is not _ALL:
            fitted = self.solved(penalty, columns)
            return None if fitted is None else fitted(inputs)
        factor = self._factor(penalty)
        if factor is None:
            return None
        rows = inputs - self.input_mean
        rows = rows if self.rows is None else rows @ self.rows.T
        return torch.cholesky_solve(rows.double().T, factor).T @ self.cross + self.output_mean

    def _factor(self, penalty: float) -> torch.Tensor | None:
        ridge = self.gram + penalty * self.scale * torch.eye(len(self.gram), dtype=torch.float64, device=self.gram.device)
        factor, failed = torch.linalg.cholesky_ex(ridge)
        return None if int(failed) else factor

    @property
    def constant(self) -> LinearMap:
        """The targets' mean: what is left where the inputs hold nothing but rounding."""
        weight = self.input_mean.new_zeros(len(self.input_mean), len(self.output_mean))
        return LinearMap(self.input_mean, self.output_mean, weight, math.nan)
