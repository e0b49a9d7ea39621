"""DLG: deep leakage from gradients (Zhu et al., arXiv 1906.08935), and its labels from iDLG."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from gitbench.attacker.attack import Candidates, Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AdaptiveOptions
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.lbfgs import BatchedLbfgs
from gitbench.attacker.tools.matching import INITS, Init, Objective, initial_images
from gitbench.attacker.tools.optimisation import Best, Falling
from gitbench.clients.model import classes_of
from gitbench.core.progress import Progress, TimeUp
from gitbench.identity.threat import Knowledge

_PRECISION = 1e-10


class DLG(Refiner):
    """L-BFGS (step 1, no line search) on the squared distance of gradients.

    As published, inputs and label logits are optimised together, without regulariser or bounds; the
    300 outer steps of 20 iterations, started from N(0, 1), are the ``paper`` settings. Victims are
    independent: each has its own curvature. One that diverges or stalls starts again at random, within
    the same budget, and the iterate with the lowest *matching loss* is returned, also when time is up.
    """

    name = "dlg"
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense", "public"})  # public images for the labels of batches alone
    profiles = {
        "quick": {"iterations": 200, "labels": "idlg"},
        "paper": {"iterations": 6000, "init": "normal"},
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(AdaptiveOptions):
        """Of :class:`DLG`.

        Args:
            iterations: L-BFGS iterations, one gradient each.
            lr: step length.
            history: past steps that shape the curvature.
            labels: ``joint`` as published, ``idlg`` from the update, or ``known`` where they are granted.
            init: random start of the pixels, ``grey`` or ``normal``.
            patience: iterations without a better loss after which a victim starts again.
        """

        iterations: int = 1200
        lr: float = 1.0
        history: int = 100
        labels: str = "joint"
        init: Init = "grey"
        patience: int = 100

        def __post_init__(self) -> None:
            self.check_choice("labels", ("joint", "idlg", "known"))
            self.check_choice("init", INITS)
            self.check_least(1, "iterations", "history", "patience")
            self.check_positive("lr")

        @property
        def needs(self) -> frozenset[Knowledge]:
            return frozenset({"labels"}) if self.labels == "known" else frozenset()

    options: Options

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        objective = Objective(observation, distance="l2")
        problem = _Problem(observation, objective, self._fixed_labels(observation), self.options.init)
        points = problem.start(generator)
        if start is not None:
            points[:, : problem.pixels] = start.flatten(1)
        optimizer = BatchedLbfgs(points, lr=self.options.lr, history=self.options.history)
        best = Best(points.clone(), points.new_full((len(points),), math.inf))
        run_loss, since = best.losses.clone(), torch.zeros_like(best.losses)
        # Matched to float32's precision: the squared distance of the gradients against their square.
        matched = _PRECISION * observation.update.flatten().square().sum(1)
        falling = Falling(self.options.iterations)
        with contextlib.suppress(TimeUp):
            for iteration in range(self.options.iterations):
                active = best.losses > matched
                if not active.any():
                    break
                before = optimizer.points
                losses = optimizer.step(problem.closure, active=active)
                losses = torch.where(losses.isfinite(), losses, math.inf)
                best.offer(before, losses)
                falling.see(iteration, best.losses)
                since = torch.where(losses < run_loss, 0, since + 1)
                run_loss = torch.minimum(run_loss, losses)
                lost = active & ((since > self.options.patience) | ~losses.isfinite() | ~optimizer.points.isfinite().all(1))
                if lost.any():
                    optimizer.restart(lost, problem.start(generator))
                    run_loss[lost], since[lost] = math.inf, 0
                progress("dlg", iteration + 1, self.options.iterations)
        return Candidates(problem.images(best.candidates).clamp(0, 1), still_improving=falling.still)

    def _fixed_labels(self, observation: Observation) -> torch.Tensor | None:
        if self.options.labels == "joint":
            return None
        return observation.labels if self.options.labels == "known" else infer_labels(observation)


class _Problem:
    """Pixels, and label logits where labels are optimised too, as one flat point per victim."""

    def __init__(self, observation: Observation, objective: Objective, labels: torch.Tensor | None, init: Init) -> None:
        self._objective = objective
        self._init = init
        self._labels = labels
        self._shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        self._device = observation.device
        self._classes = classes_of(observation.architecture)
        self.pixels = math.prod(self._shape[1:])

    def start(self, generator: torch.Generator) -> torch.Tensor:
        pixels = initial_images((self._shape[0], self.pixels), init=self._init, generator=generator)
        free = self._shape[1] * self._classes if self._labels is None else 0
        logits = torch.randn(self._shape[0], free, generator=generator)
        return torch.cat([pixels, logits], dim=1).to(self._device)

    def images(self, points: torch.Tensor) -> torch.Tensor:
        return points[:, : self.pixels].reshape(self._shape)

    def closure(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = points.detach().requires_grad_(True)
        labels = self._labels
        if labels is None:
            logits = points[:, self.pixels :].reshape(*self._shape[:2], self._classes)
            labels = functional.softmax(logits, dim=-1)
        losses = self._objective(self.images(points), labels)
        (gradient,) = torch.autograd.grad(losses.sum(), points)
        return losses.detach(), gradient
