"""DLG: deep leakage from gradients (Zhu et al., arXiv 1906.08935), and its labels from iDLG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from gitbench.attacker.attack import Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import LabelOptions
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.lbfgs import BatchedLbfgs
from gitbench.attacker.tools.matching import INITS, Init, Objective
from gitbench.attacker.tools.optimisation import Best, Optimisation
from gitbench.clients.model import classes_of
from gitbench.clients.task import own_targets
from gitbench.core.progress import Progress

_PRECISION = 1e-10


class DLG(Refiner):
    """L-BFGS (step 1, no line search) on the squared distance of gradients.

    It searches for inputs in their continuous form: pixels of an image, embeddings of a text, whose nearest tokens are then returned.
    As published, inputs and label logits are optimised together, without regulariser or bounds; the
    300 outer steps of 20 iterations, started from N(0, 1), are the ``paper`` settings. Victims are
    independent: each has its own curvature. One that diverges or stalls starts again at random, within
    the same budget, and the iterate with the lowest *matching loss* is returned, also when time is up.
    """

    name = "dlg"
    modalities = None  # it searches whatever is continuous
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense", "public"})  # public images for the labels of batches alone
    profiles = {
        "quick": {"iterations": 200, "labels": "idlg"},
        "paper": {"iterations": 6000, "init": "normal"},
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(LabelOptions):
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

    options: Options

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        search = _JointSearch(observation, self.options, start, generator, progress)
        search.run()
        found = observation.modality.leave(observation.model, search.images(search.best.found[0]))
        return Candidates(found, still_improving=search.falling.still)


class _JointSearch(Optimisation):
    """Over continuous inputs, and label logits where labels are optimised too, as one flat point per victim."""

    def __init__(
        self, observation: Observation, options: DLG.Options, start: torch.Tensor | None, generator: torch.Generator, progress: Progress
    ) -> None:
        self._objective = Objective(observation, distance="l2")
        self._options = options
        self._labels: torch.Tensor | None = None
        self._follow = own_targets(observation.model) is not None
        if options.labels != "joint" and not self._follow:
            self._labels = observation.labels if options.labels == "known" else infer_labels(observation)
        self._model, self._modality = observation.model, observation.modality
        self._start = None if start is None else self._modality.enter(self._model, start).detach()
        self._generator = generator
        inner = self._modality.inner_shape(self._model, observation.input_shape)
        self._shape = (observation.update.victims, observation.batch_size, *inner)
        self._device = observation.device
        self._classes = classes_of(observation.architecture)
        self._pixels = math.prod(self._shape[1:])
        # Matched to float32's precision: the squared distance of the gradients against their square.
        self._matched = _PRECISION * self._objective.scale
        super().__init__("dlg", Best(self._shape[0], self._device), iterations=options.iterations, progress=progress)

    def begin(self, restart: int) -> None:
        points = self._drawn()
        if self._start is not None:
            points[:, : self._pixels] = self._start.flatten(1)
        self._lbfgs = BatchedLbfgs(points, lr=self._options.lr, history=self._options.history)
        self._lowest = torch.full_like(self.best.losses, math.inf)  # since a victim's last start
        self._since = torch.zeros_like(self._lowest)
        self.best.offer(self._lowest, points)

    def iterate(self, iteration: int) -> bool:
        active = self.best.losses > self._matched
        if not active.any():
            return False
        before = self._lbfgs.points
        losses = self._lbfgs.step(self._closure, active=active)
        losses = torch.where(losses.isfinite(), losses, math.inf)
        self.best.offer(losses, before)
        self.falling.see(iteration, self.best.losses)
        self._since = torch.where(losses < self._lowest, 0, self._since + 1)
        self._lowest = torch.minimum(self._lowest, losses)
        lost = active & ((self._since > self._options.patience) | ~losses.isfinite() | ~self._lbfgs.points.isfinite().all(1))
        if lost.any():
            self._lbfgs.restart(lost, self._drawn())
            self._lowest[lost], self._since[lost] = math.inf, 0
        return True

    def finish(self) -> None:
        """The last points are not judged: that would take another gradient."""

    def images(self, points: torch.Tensor) -> torch.Tensor:
        """Of flat points: ``(V, B, ...)``, of images ``(V, B, C, H, W)``."""
        return points[:, : self._pixels].reshape(self._shape)

    def _drawn(self) -> torch.Tensor:
        pixels = self._modality.start(self._model, self._shape, init=self._options.init, generator=self._generator).flatten(1)
        free = self._shape[1] * self._classes if self._labels is None and not self._follow else 0
        logits = torch.randn(self._shape[0], free, generator=self._generator)
        return torch.cat([pixels, logits], dim=1).to(self._device)

    def _closure(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = points.detach().requires_grad_(True)
        labels = self._labels
        if labels is None and not self._follow:
            logits = points[:, self._pixels :].reshape(*self._shape[:2], self._classes)
            labels = functional.softmax(logits, dim=-1)
        losses = self._objective(self.images(points), labels)
        (gradient,) = torch.autograd.grad(losses.sum(), points)
        return losses.detach(), gradient
