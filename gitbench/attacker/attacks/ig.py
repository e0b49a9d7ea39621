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
    """

    name = "ig"
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense", "public"})  # public images for the labels of batches alone
    profiles = {
        "quick": {"iterations": 200},
        "paper": {"iterations": 4800, "restarts": 32, "schedule": "step", "distance": "cosine", "signed": True, "tv": 0.1},
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(AdaptiveOptions):
        """Of :class:`IG`.

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
        """

        iterations: int = 2000
        restarts: int = 1
        lr: float = 0.1
        start_lr: float = 0.01
        tv: float = 0.1
        start_tv: float = 1e-3
        schedule: str = "cosine"
        distance: Distance = "layerwise"
        signed: bool = False
        labels: str = "inferred"

        def __post_init__(self) -> None:
            self.check_choice("labels", ("inferred", "known"))
            self.check_choice("schedule", SCHEDULES)
            self.check_choice("distance", DISTANCES)
            self.check_least(1, "iterations", "restarts")
            self.check_positive("lr", "start_lr")
            self.check_least(0, "tv", "start_tv")

        @property
        def needs(self) -> frozenset[Knowledge]:
            return frozenset({"labels"}) if self.labels == "known" else frozenset()

    options: Options

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        objective = Objective(observation, distance=self.options.distance)
        labels = observation.labels if self.options.labels == "known" else infer_labels(observation)
        shape = (len(labels), observation.batch_size, *observation.input_shape)
        best = best_loss = None
        for restart in range(self.options.restarts):
            if start is not None and restart == 0:
                first, lr, tv = start, self.options.start_lr, self.options.start_tv
            else:
                first, lr, tv = initial_images(shape, init="normal", generator=generator).to(observation.device), self.options.lr, self.options.tv

            def loss_of(inputs: torch.Tensor, tv: float = tv) -> torch.Tensor:
                return objective(inputs, labels) + tv * total_variation(inputs)

            done, total = restart * self.options.iterations, self.options.restarts * self.options.iterations
            falling = Falling(self.options.iterations)
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
            for iteration in range(self.options.iterations):
                losses = loss_of(inputs)
                falling.see(iteration, losses)
                (gradient,) = torch.autograd.grad(losses.sum(), inputs)
                inputs.grad = gradient.sign() if self.options.signed else gradient
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    inputs.clamp_(0, 1)
                tell(iteration + 1)
            in_time = True
        return inputs.detach().clamp(0, 1), in_time

    def _schedule(self, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        if self.options.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.options.iterations)
        milestones = [self.options.iterations * eighths // 8 for eighths in (3, 5, 7)]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


def _tell(progress: Progress, before: int, total: int, step: int) -> None:
    progress("ig", before + step, total)
