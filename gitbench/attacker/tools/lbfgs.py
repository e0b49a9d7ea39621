"""L-BFGS for a stack of independent problems, every victim with its own curvature: stepwise, or as a descent that never rises."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gitbench.core.progress import TimeUp

_HISTORY = 5
_BACKTRACK = 1 / 3

Closure = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""Points ``(V, N)`` to losses ``(V,)`` and gradients ``(V, N)``."""


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
        self._steps: list[torch.Tensor] = []
        self._changes: list[torch.Tensor] = []
        self._inverse: list[torch.Tensor] = []
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
        for stack in (self._steps, self._changes, self._inverse):
            for tensor in stack:
                tensor[chosen] = 0

    def step(self, closure: Closure, *, active: torch.Tensor) -> torch.Tensor:
        """One iteration of the problems in the mask ``active``; returns the losses before it, ``(V,)``."""
        losses, gradient = closure(self.points)
        gradient = torch.where(active[:, None] & gradient.isfinite().all(1, keepdim=True), gradient, 0)
        if self._last_gradient is not None:
            self._remember(gradient - self._last_gradient)
        direction = self._direction(gradient)
        length = torch.full_like(self._scale, self._lr)
        first = (1 / gradient.abs().sum(1, keepdim=True).clamp_min(1e-30)).clamp_max(1) * self._lr
        length = torch.where(self._fresh[:, None], first, length)
        step = torch.where(active[:, None], direction * length, 0)
        self.points = self.points + step
        self._last_gradient, self._last_step = gradient, step
        self._fresh &= ~active
        return losses

    def _remember(self, change: torch.Tensor) -> None:
        step = self._last_step
        curvature = (step * change).sum(1, keepdim=True)
        usable = (curvature > 1e-10) & ~self._fresh[:, None]
        if not usable.any():
            return
        # A problem without a usable pair stores zeros, which the recursion passes over.
        self._steps.append(torch.where(usable, step, 0))
        self._changes.append(torch.where(usable, change, 0))
        self._inverse.append(torch.where(usable, 1 / curvature, 0))
        norm = change.square().sum(1, keepdim=True)
        self._scale = torch.where(usable, curvature / norm.clamp_min(1e-30), self._scale)
        if len(self._steps) > self._limit:
            for stack in (self._steps, self._changes, self._inverse):
                stack.pop(0)

    def _direction(self, gradient: torch.Tensor) -> torch.Tensor:
        direction = -gradient
        weights = []
        for step, change, inverse in zip(reversed(self._steps), reversed(self._changes), reversed(self._inverse), strict=True):
            weight = (step * direction).sum(1, keepdim=True) * inverse
            weights.append(weight)
            direction = direction - weight * change
        direction = direction * self._scale
        pairs = zip(self._steps, self._changes, self._inverse, reversed(weights), strict=True)
        for step, change, inverse, weight in pairs:
            direction = direction + step * (weight - (change * direction).sum(1, keepdim=True) * inverse)
        return direction


def descend(
    start: torch.Tensor,
    objective: Closure,
    precondition: Callable[[torch.Tensor], torch.Tensor],
    iterations: int,
    *,
    history: int = _HISTORY,
    tell: Callable[[int], None] = lambda _done: None,
) -> torch.Tensor:
    """L-BFGS of many problems side by side, from a known curvature and without leaving a better point for a worse one.

    Args:
        start: points ``(V, n)``.
        objective: values and gradients of points.
        precondition: an approximate inverse of the curvature, to rows ``(V, n)``.
        iterations: each one call of the objective.
        history: steps that shape the curvature.
        tell: told how many iterations are done; where it raises :class:`~gitbench.core.progress.TimeUp`, the points so far are returned.
    """
    points = start
    values, gradients = objective(points)
    length = torch.ones_like(values)[:, None]
    steps: list[torch.Tensor] = []
    changes: list[torch.Tensor] = []
    for iteration in range(iterations):
        direction = _direction(gradients, steps, changes, precondition)
        there = points - length * direction
        found, slopes = objective(there)
        steps, changes = [*steps, there - points][-history:], [*changes, slopes - gradients][-history:]
        better = (found < values)[:, None]
        points, gradients = torch.where(better, there, points), torch.where(better, slopes, gradients)
        values = torch.where(better[:, 0], found, values)
        length = torch.where(better, torch.ones_like(length), length * _BACKTRACK)
        try:
            tell(iteration + 1)
        except TimeUp:
            break
    return points


def _direction(
    gradients: torch.Tensor, steps: list[torch.Tensor], changes: list[torch.Tensor], precondition: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    """The two-loop recursion; a pair without positive curvature does not count."""
    direction, kept = gradients, []
    for step, change in zip(reversed(steps), reversed(changes), strict=True):
        curvature = (step * change).sum(1, keepdim=True)
        inverse = torch.where(curvature > 1e-10, 1 / curvature.clamp_min(1e-10), 0)
        share = inverse * (step * direction).sum(1, keepdim=True)
        direction = direction - share * change
        kept.append((step, change, inverse, share))
    direction = precondition(direction)
    for step, change, inverse, share in reversed(kept):
        direction = direction + step * (share - inverse * (change * direction).sum(1, keepdim=True))
    return direction
