"""Searches for images whose update is the observed one: restarts, the best victim by victim, and an end when time is up."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch

from gitbench.core.progress import Progress, TimeUp

SCHEDULES = ("cosine", "step", "ramp")
_STILL = 0.05


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


class Best:
    """What had the lowest loss, victim by victim.

    Args:
        victims: how many.
        device: where they are.
    """

    def __init__(self, victims: int, device: torch.device) -> None:
        self.losses = torch.full((victims,), math.inf, device=device)
        self.found: tuple[torch.Tensor, ...] = ()
        """Stacks ``(V, ...)`` that are kept together; empty as long as nothing was offered."""

    def offer(self, losses: torch.Tensor, *found: torch.Tensor) -> None:
        """Keep what is better; of a victim that had nothing before, anything."""
        better = losses.detach() < self.losses  # False for NaN
        pairs = zip(found, self.found or found, strict=True)
        self.found = tuple(torch.where(better.reshape(-1, *(1,) * (new.ndim - 1)), new.detach(), old.detach()) for new, old in pairs)
        self.losses = torch.where(better, losses.detach(), self.losses)


class Optimisation(ABC):
    """A search for all victims side by side. A subclass says where a restart begins and what an iteration is.

    Args:
        what: it is called where progress is told.
        best: where what is found is kept.
        iterations: of a restart, at most.
        progress: told after each of them.
        restarts: how often the search begins.
    """

    def __init__(self, what: str, best: Best, *, iterations: int, progress: Progress, restarts: int = 1) -> None:
        self.best = best
        self.iterations = iterations
        self.restarts = restarts
        self.falling = Falling(iterations)
        """Of the last restart."""
        self._what = what
        self._progress = progress

    def run(self) -> None:
        """Search until nothing is left to do, or time is up; :attr:`best` has what was found by then.

        Raises:
            TimeUp: nothing was found by then.
        """
        for restart in range(self.restarts):
            self.falling = Falling(self.iterations)
            self.begin(restart)
            try:
                for iteration in range(self.iterations):
                    if not self.iterate(iteration):
                        break
                    self._progress(self._what, restart * self.iterations + iteration + 1, self.restarts * self.iterations)
                self.finish()
            except TimeUp:
                self.interrupted()
                break

    @abstractmethod
    def begin(self, restart: int) -> None:
        """Where a restart begins, counted from 0."""

    @abstractmethod
    def iterate(self, iteration: int) -> bool:
        """One step, counted from 0; False where there is nothing left to do."""

    @abstractmethod
    def finish(self) -> None:
        """What is to be done after the last step of a restart."""

    def interrupted(self) -> None:
        """What is to be done when time is up."""
        if not self.best.found:
            raise TimeUp


class AdamOptimisation(Optimisation):
    """Adam on all victims' points at once: its steps are elementwise, so that each victim has its own.

    A subclass says which images points stand for, and what their loss is; it may change what is minimised, kept and followed.

    Args:
        what: it is called where progress is told.
        best: where what is found is kept.
        iterations: of a restart.
        progress: told after each of them.
        schedule: ``cosine``; ``step``: tenfold down after 3/8, 5/8 and 7/8 of the iterations; ``ramp``: up over the first twentieth and
            down along a cosine over the last three quarters.
        restarts: how often the search begins.
    """

    points: Sequence[torch.Tensor]

    def __init__(self, what: str, best: Best, *, iterations: int, progress: Progress, schedule: str, restarts: int = 1) -> None:
        super().__init__(what, best, iterations=iterations, progress=progress, restarts=restarts)
        self._kind = schedule

    def start(self, *points: torch.Tensor, lr: float) -> None:
        """Begin at copies of these points."""
        self.points = [point.detach().clone().requires_grad_() for point in points]
        self._adam = torch.optim.Adam(self.points, lr=lr, fused=True)
        self._schedule = self._rates()

    def _rates(self) -> torch.optim.lr_scheduler.LRScheduler:
        if self._kind == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(self._adam, self.iterations)
        if self._kind == "ramp":
            return torch.optim.lr_scheduler.LambdaLR(self._adam, lambda done: _ramp((done + 1) / (self.iterations + 1)))
        milestones = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        return torch.optim.lr_scheduler.MultiStepLR(self._adam, milestones, gamma=0.1)

    @abstractmethod
    def images(self) -> torch.Tensor:
        """What the points stand for: ``(V, B, C, H, W)``, differentiable."""

    @abstractmethod
    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """By which images are judged: ``(V,)``, differentiable."""

    def minimised(self, images: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """What the steps lower, ``(V,)``."""
        return losses

    def keep(self, images: torch.Tensor, losses: torch.Tensor) -> None:
        """Offer what was found."""
        self.best.offer(losses, images)

    def followed(self, gradient: torch.Tensor) -> torch.Tensor:
        """The gradient that Adam is given."""
        return gradient

    def project(self) -> None:
        """Bring the points back to where they may be."""

    def iterate(self, iteration: int) -> bool:
        images = self.images()
        losses = self.loss(images)
        self.falling.see(iteration, losses)
        self.keep(images, losses)
        gradients = torch.autograd.grad(self.minimised(images, losses).sum(), self.points)
        for point, gradient in zip(self.points, gradients, strict=True):
            # The fused step reads both in the order in which they lie in memory: another order would be silently wrong.
            point.grad = self.followed(gradient).contiguous()
        self._adam.step()
        self._schedule.step()
        with torch.no_grad():
            self.project()
        return True

    @torch.no_grad()
    def finish(self) -> None:
        images = self.images()
        losses = self.loss(images)
        self.falling.see(self.iterations, losses)
        self.keep(images, losses)


def _ramp(share: float) -> float:
    """Of the first step size, after a share of the iterations in (0, 1]."""
    return min(1.0, share / 0.05) * 0.5 * (1 - math.cos(math.pi * min(1.0, (1 - share) / 0.75)))
