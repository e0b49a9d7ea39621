"""IG: inverting gradients with cosine similarity (Geiping et al., arXiv 2003.14053)."""

from __future__ import annotations

import torch

from gitbench.attack import Refiner
from gitbench.labels import infer_labels
from gitbench.matching import (
    DISTANCES,
    Distance,
    Objective,
    check_choice,
    initial_images,
    total_variation,
)
from gitbench.observation import Observation
from gitbench.progress import Progress


class IG(Refiner):
    """Adam on the cosine distance of gradients plus total variation, pixels kept in [0, 1].

    The step size falls tenfold after 3/8, 5/8 and 7/8 of the iterations. Of several restarts the one
    with the lowest *matching loss* is kept, victim by victim.

    The ``paper`` settings are the reference code's: one cosine over all layers, signed steps, 4,800
    iterations, 32 restarts. The defaults are stronger at a small budget: each
    layer's cosine counts the same, and steps keep their size (docs/attacks.md has the figures).

    Args:
        iterations: gradient steps per restart.
        restarts: random starts; a start from a prior replaces the first.
        lr: first step size.
        start_lr: first step size after a prior, whose image is worth keeping.
        tv: weight of total variation.
        distance: ``layerwise``, ``cosine`` or ``l2``.
        signed: use the sign of the gradient.
        labels: ``inferred`` from the update, or ``known`` where the threat model grants them.
        adapt: pass the attacker's own gradient through the defense's deterministic part.
    """

    name = "ig"
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense"})
    profiles = {
        "quick": {"iterations": 300},
        "paper": {"iterations": 4800, "restarts": 32, "distance": "cosine", "signed": True, "tv": 0.1},
    }

    def __init__(
        self,
        *,
        iterations: int = 2000,
        restarts: int = 1,
        lr: float = 0.1,
        start_lr: float = 0.01,
        tv: float = 0.1,
        distance: Distance = "layerwise",
        signed: bool = False,
        labels: str = "inferred",
        adapt: bool = True,
    ) -> None:
        check_choice("labels", labels, ("inferred", "known"))
        check_choice("distance", distance, DISTANCES)
        if min(iterations, restarts) < 1 or not (lr > 0 and start_lr > 0 and tv >= 0):
            raise ValueError("expected iterations, restarts >= 1, lr, start_lr > 0 and tv >= 0")
        self.iterations = iterations
        self.restarts = restarts
        self.lr = lr
        self.start_lr = start_lr
        self.tv = tv
        self.distance = distance
        self.signed = signed
        self.labels = labels
        self.adapt = adapt
        if labels == "known":
            self.requires = self.requires | {"labels"}

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor:
        objective = Objective(observation, distance=self.distance, adapt=self.adapt)
        labels = observation.labels if self.labels == "known" else infer_labels(observation)
        shape = (len(labels), observation.batch_size, *observation.input_shape)
        best = best_loss = None
        for restart in range(self.restarts):
            from_prior = start is not None and restart == 0
            first = start if from_prior else initial_images(shape, init="normal", generator=generator).to(observation.device)
            assert first is not None
            found, loss = self._descend(objective, first, labels, self.start_lr if from_prior else self.lr, restart, progress)
            if best is None or best_loss is None:
                best, best_loss = found, loss
            else:
                better = loss < best_loss
                best[better], best_loss[better] = found[better], loss[better]
        assert best is not None
        return best

    def _descend(
        self, objective: Objective, start: torch.Tensor, labels: torch.Tensor, lr: float, restart: int, progress: Progress
    ) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([inputs], lr=lr)
        milestones = [self.iterations * eighths // 8 for eighths in (3, 5, 7)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
        for iteration in range(self.iterations):
            loss = objective(inputs, labels) + self.tv * total_variation(inputs)
            (gradient,) = torch.autograd.grad(loss.sum(), inputs)
            inputs.grad = gradient.sign() if self.signed else gradient
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                inputs.clamp_(0, 1)
            progress("ig", restart * self.iterations + iteration + 1, self.restarts * self.iterations)
        final = inputs.detach()
        with torch.no_grad():
            return final, objective(final, labels) + self.tv * total_variation(final)
