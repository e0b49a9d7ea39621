"""What iterative attacks share: Adam with a schedule, the best candidate of each victim, and whether the loss still fell."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

import torch

from gitbench.core.progress import TimeUp

Schedule = Literal["cosine", "step"]
SCHEDULES: tuple[str, ...] = get_args(Schedule)
_STILL = 0.05

Losses = Callable[[], torch.Tensor]
"""Losses ``(V,)`` of the present points, differentiable in them."""


def adam(
    points: Sequence[torch.Tensor],
    losses_of: Losses,
    *,
    iterations: int,
    lr: float,
    schedule: str,
    tell: Callable[[int], None],
    signed: bool = False,
    bounded: bool = False,
) -> bool:
    """Minimise the sum of losses over points, which are changed in place. One Adam over a stack is one for each of it.

    Args:
        points: leaves, whose first dimension is that of victims or images.
        losses_of: of the points.
        iterations: one gradient each.
        lr: first step size.
        schedule: ``cosine``, or ``step``: tenfold down after 3/8, 5/8 and 7/8 of the iterations.
        tell: told how many iterations are done.
        signed: use the sign of the gradient.
        bounded: keep the points in [0, 1].

    Returns:
        Whether all iterations were made before time was up.
    """
    for point in points:
        point.requires_grad_(True)
    optimizer = torch.optim.Adam(points, lr=lr)
    falls = _schedule(optimizer, schedule, iterations)
    try:
        for iteration in range(iterations):
            gradients = torch.autograd.grad(losses_of().sum(), points)
            for point, gradient in zip(points, gradients, strict=True):
                point.grad = gradient.sign() if signed else gradient
            optimizer.step()
            falls.step()
            if bounded:
                with torch.no_grad():
                    for point in points:
                        point.clamp_(0, 1)
            tell(iteration + 1)
    except TimeUp:
        return False
    return True


def _schedule(optimizer: torch.optim.Optimizer, schedule: str, iterations: int) -> torch.optim.lr_scheduler.LRScheduler:
    if schedule == "cosine":
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
    milestones = [iterations * eighths // 8 for eighths in (3, 5, 7)]
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


class Best:
    """The candidates with the lowest loss, victim by victim.

    Args:
        candidates: ``(V, ...)`` to begin with; None begins with the first that is offered.
        losses: theirs, ``(V,)``; None takes any candidate for better.
    """

    def __init__(self, candidates: torch.Tensor | None = None, losses: torch.Tensor | None = None) -> None:
        self._candidates = candidates
        self._losses = losses

    @property
    def empty(self) -> bool:
        return self._candidates is None

    @property
    def candidates(self) -> torch.Tensor:
        assert self._candidates is not None
        return self._candidates

    @property
    def losses(self) -> torch.Tensor:
        assert self._losses is not None
        return self._losses

    def offer(self, candidates: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Keep what is better; returns for which victims ``(V,)`` it was. A loss that is no number is no better."""
        candidates, losses = candidates.detach(), losses.detach()
        if self._candidates is None:
            self._candidates = candidates.clone()
        if self._losses is None:
            self._losses = torch.full_like(losses, math.inf)
        better = losses < self._losses
        self._candidates = torch.where(better.reshape(-1, *(1,) * (candidates.ndim - 1)), candidates, self._candidates)
        self._losses = torch.where(better, losses, self._losses)
        return better


class Falling:
    """Watches the losses of an iterative attack, to tell whether its budget ended too early.

    Args:
        iterations: of the budget.
    """

    def __init__(self, iterations: int) -> None:
        self._late = 3 * iterations // 4
        self._first: torch.Tensor | None = None
        self._then: torch.Tensor | None = None
        self._last: torch.Tensor | None = None

    def see(self, iteration: int, losses: torch.Tensor) -> None:
        """Losses ``(V,)`` at an iteration, counted from 0."""
        self._last = losses.detach().clone()
        if self._first is None:
            self._first = self._last
        if iteration <= self._late:
            self._then = self._last

    @property
    def still(self) -> bool:
        """Whether the last quarter brought the median victim over 5 % of the whole fall."""
        if self._first is None or self._then is None or self._last is None:
            return False
        whole, late = self._first - self._last, self._then - self._last
        fell = whole.isfinite() & (whole > 0)
        return bool(fell.any()) and float((late[fell] / whole[fell]).median()) > _STILL
