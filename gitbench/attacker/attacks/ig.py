"""IG: inverting gradients with cosine similarity (Geiping et al., arXiv 2003.14053)."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable

import torch

from gitbench.attacker.attack import Candidates, Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import (
    DISTANCES,
    Distance,
    Falling,
    Objective,
    check_choice,
    initial_images,
    total_variation,
)
from gitbench.core.progress import Progress, TimeUp


class IG(Refiner):
    """Adam on the cosine distance of gradients plus total variation, pixels kept in [0, 1].

    Of several restarts the one with the lowest *matching loss* is kept, victim by victim; when time is up, of those made.

    The ``paper`` settings are the reference code's: one cosine over all layers, signed steps that fall
    tenfold three times, 4,800 iterations, 32 restarts. The defaults are stronger at a small budget: each
    layer's cosine counts the same, and steps keep their size (docs/attacks.md has the figures).

    Args:
        iterations: gradient steps per restart.
        restarts: random starts; a start from a prior replaces the first.
        lr: first step size.
        start_lr: the same after a prior, whose image is worth keeping.
        tv: weight of total variation.
        start_tv: the same after a prior, which is smooth already.
        schedule: ``cosine``, or ``step``: tenfold down after 3/8, 5/8 and 7/8 of the iterations.
        distance: ``layerwise``, ``cosine`` or ``l2``.
        signed: use the sign of the gradient.
        labels: ``inferred`` from the update, or ``known`` where the threat model grants them.
        adapt: pass the attacker's own gradient through the defense's deterministic part.
    """

    name = "ig"
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense", "public"})  # public images for the labels of batches alone
    profiles = {
        "quick": {"iterations": 200},
        "paper": {"iterations": 4800, "restarts": 32, "schedule": "step", "distance": "cosine", "signed": True, "tv": 0.1},
    }

    def __init__(
        self,
        *,
        iterations: int = 2000,
        restarts: int = 1,
        lr: float = 0.1,
        start_lr: float = 0.01,
        tv: float = 0.1,
        start_tv: float = 1e-3,
        schedule: str = "cosine",
        distance: Distance = "layerwise",
        signed: bool = False,
        labels: str = "inferred",
        adapt: bool = True,
    ) -> None:
        check_choice("labels", labels, ("inferred", "known"))
        check_choice("schedule", schedule, ("cosine", "step"))
        check_choice("distance", distance, DISTANCES)
        if min(iterations, restarts) < 1 or not (lr > 0 and start_lr > 0 and min(tv, start_tv) >= 0):
            raise ValueError("expected iterations, restarts >= 1, lr, start_lr > 0 and tv, start_tv >= 0")
        self.iterations = iterations
        self.restarts = restarts
        self.lr = lr
        self.start_lr = start_lr
        self.tv = tv
        self.start_tv = start_tv
        self.schedule = schedule
        self.distance = distance
        self.signed = signed
        self.labels = labels
        self.adapt = adapt
        if labels == "known":
            self.requires = self.requires | {"labels"}

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        objective = Objective(observation, distance=self.distance)
        labels = observation.labels if self.labels == "known" else infer_labels(observation)
        shape = (len(labels), observation.batch_size, *observation.input_shape)
        best = best_loss = None
        for restart in range(self.restarts):
            if start is not None and restart == 0:
                first, lr, tv = start, self.start_lr, self.start_tv
            else:
                first, lr, tv = initial_images(shape, init="normal", generator=generator).to(observation.device), self.lr, self.tv

            def loss_of(inputs: torch.Tensor, tv: float = tv) -> torch.Tensor:
                return objective(inputs, labels) + tv * total_variation(inputs)

            done, total = restart * self.iterations, self.restarts * self.iterations
            falling = Falling(self.iterations)
            found, in_time = self._descend(loss_of, first, lr, functools.partial(_tell, progress, done, total), falling)
            with torch.no_grad():
                loss = objective(found, labels)
            if best is None or best_loss is None:
                best, best_loss = found, loss
            else:
                better = loss < best_loss
                best[better], best_loss[better] = found[better], loss[better]
            if not in_time:
                break
        assert best is not None
        return Candidates(best, still_improving=falling.still)

    def _descend(
        self,
        loss_of: Callable[[torch.Tensor], torch.Tensor],
        start: torch.Tensor,
        lr: float,
        tell: Callable[[int], None],
        falling: Falling,
    ) -> tuple[torch.Tensor, bool]:
        """The last point, and whether all iterations were made before time was up."""
        inputs = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([inputs], lr=lr)
        schedule = self._schedule(optimizer)
        in_time = False
        with contextlib.suppress(TimeUp):
            for iteration in range(self.iterations):
                losses = loss_of(inputs)
                falling.see(iteration, losses)
                (gradient,) = torch.autograd.grad(losses.sum(), inputs)
                inputs.grad = gradient.sign() if self.signed else gradient
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    inputs.clamp_(0, 1)
                tell(iteration + 1)
            in_time = True
        return inputs.detach().clamp(0, 1), in_time

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        if self.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.iterations)
        milestones = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def _tell(progress: Progress, before: int, total: int, step: int) -> None:
    progress("ig", before + step, total)
