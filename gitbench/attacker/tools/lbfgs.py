"""L-BFGS for a stack of independent problems, every victim with its own curvature: stepwise, or as a descent that never rises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from gitbench.core.progress import TimeUp

_HISTORY = 5
_BACKTRACK = 1 / 3
_STUCK = 1e-9  # of a step: no shorter one of any problem is worth a try
_CURVED = 1e-10

Closure = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Points ``(V, N)`` to losses ``(V,)`` and gradients ``(V, N)``."""
Map = Callable[[torch.Tensor], torch.Tensor]
Pair = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A step and the gradient's change along it, ``(V, N)``, and one over their product, ``(V, 1)``."""


class BatchedLbfgs:
    """The update of ``torch.optim.LBFGS`` without line search, for ``V`` problems side by side.

    ``torch.optim.LBFGS`` on a stack would share one curvature estimate among all of them.

    Args:
        points: starts ``(V, N)``.
        lr: step length; the first step is shortened to ``min(1, 1 / |gradient|_1) * lr``.
        history: how many past steps shape the curvature.
    """

    def __init__(self, points: torch.Tensor, *, lr: float = 1.0, history: int = 100) -> None:
        self.points = points.clone()
        self._lr = lr
        self._limit = history
        victims = len(points)
        self._pairs: list[Pair] = []
        self._scale = points.new_ones(victims, 1)
        self._last_gradient: torch.Tensor | None = None
        self._last_step = torch.zeros_like(points)
        self._fresh = torch.ones(victims, dtype=torch.bool, device=points.device)

    def restart(self, chosen: torch.Tensor, points: torch.Tensor) -> None:
        """Give the problems in the mask ``chosen`` new starts and forget their curvature."""
        self.points[chosen] = points[chosen]
        self._fresh |= chosen
        self._scale[chosen] = 1
        self._last_step[chosen] = 0
        for pair in self._pairs:
            for tensor in pair:
                tensor[chosen] = 0

    def step(self, closure: Closure, *, active: torch.Tensor) -> torch.Tensor:
        """One iteration of the problems in the mask ``active``; returns the losses before it, ``(V,)``."""
        losses, gradient = closure(self.points)
        gradient = torch.where(active[:, None] & gradient.isfinite().all(1, keepdim=True), gradient, 0)
        if self._last_gradient is not None:
            self._remember(gradient - self._last_gradient)
        direction = -_towards_the_minimum(gradient, self._pairs, lambda vectors: vectors * self._scale)
        length = torch.full_like(self._scale, self._lr)
        first = (1 / gradient.abs().sum(1, keepdim=True).clamp_min(1e-30)).clamp_max(1) * self._lr
        length = torch.where(self._fresh[:, None], first, length)
        step = torch.where(active[:, None], direction * length, 0)
        self.points = self.points + step
        self._last_gradient, self._last_step = gradient, step
        self._fresh &= ~active
        return losses

    def _remember(self, change: torch.Tensor) -> None:
        pair = _pair(self._last_step, change, ~self._fresh[:, None])
        usable = pair[2] > 0
        if not usable.any():
            return
        self._pairs = [*self._pairs, pair][-self._limit :]
        curvature = (self._last_step * change).sum(1, keepdim=True)
        self._scale = torch.where(usable, curvature / change.square().sum(1, keepdim=True).clamp_min(1e-30), self._scale)


def descend(
    start: torch.Tensor,
    objective: Closure,
    precondition: Map,
    iterations: int,
    *,
    history: int = _HISTORY,
    growth: float = math.inf,
    tell: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """L-BFGS of many problems side by side, from a known curvature and without leaving a better point for a worse one.

    Args:
        start: points ``(V, n)``.
        objective: values and gradients of points.
        precondition: an approximate inverse of the curvature, to rows ``(V, n)``.
        iterations: each one call of the objective.
        history: steps that shape the curvature.
        growth: of a step's length after one that led lower, up to the whole step; a step that led nowhere is cut to a third.
        tell: told how many iterations are done; where it raises :class:`~gitbench.core.progress.TimeUp`, the points so far are returned.
    """
    points = start
    values, gradients = objective(points)
    length = torch.ones_like(values)[:, None]
    pairs: list[Pair] = []
    for iteration in range(iterations):
        there = points - length * _towards_the_minimum(gradients, pairs, precondition)
        found, slopes = objective(there)
        pairs = [*pairs, _pair(there - points, slopes - gradients)][-history:]
        better = (found < values)[:, None]
        points, gradients = torch.where(better, there, points), torch.where(better, slopes, gradients)
        values = torch.where(better[:, 0], found, values)
        length = torch.where(better, (length * growth).clamp_max(1), length * _BACKTRACK)
        if bool((length < _STUCK).all()):
            break
        try:
            tell(iteration + 1)
        except TimeUp:
            break
    return points


def _pair(step: torch.Tensor, change: torch.Tensor, usable: torch.Tensor | bool = True) -> Pair:
    """What a step says of the curvature; zeros, which count for nothing, where it is not positive."""
    curvature = (step * change).sum(1, keepdim=True)
    usable = usable & (curvature > _CURVED)
    return torch.where(usable, step, 0), torch.where(usable, change, 0), torch.where(usable, 1 / curvature, 0)


def _towards_the_minimum(gradients: torch.Tensor, pairs: Sequence[Pair], precondition: Map) -> torch.Tensor:
    """The two-loop recursion: gradients ``(V, N)`` times the approximate inverse of the curvature.

    Args:
        gradients: at the points.
        pairs: of past steps, the oldest first.
        precondition: the inverse of the curvature that is known beforehand.
    """
    direction, shares = gradients, []
    for step, change, inverse in reversed(pairs):
        share = (step * direction).sum(1, keepdim=True) * inverse
        shares.append(share)
        direction = direction - share * change
    direction = precondition(direction)
    for (step, change, inverse), share in zip(pairs, reversed(shares), strict=True):
        direction = direction + step * (share - (change * direction).sum(1, keepdim=True) * inverse)
    return direction
