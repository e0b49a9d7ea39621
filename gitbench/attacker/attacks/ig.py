"""IG: inverting gradients with cosine similarity (Geiping et al., arXiv 2003.14053)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import LabelOptions
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import DISTANCES, Distance, Objective, total_variation
from gitbench.attacker.tools.optimisation import SCHEDULES, AdamOptimisation, Best
from gitbench.core.progress import Progress


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
    class Options(LabelOptions):
        """Of :class:`IG`.

        Args:
            iterations: gradient steps per restart.
            restarts: random starts; a start from a prior replaces the first.
            lr: first step size.
            start_lr: the same after a prior, whose image is worth keeping.
            tv: weight of total variation.
            start_tv: the same after a prior, which is smooth already.
            schedule: ``cosine``; ``step``: tenfold down after 3/8, 5/8 and 7/8 of the iterations; ``ramp``: up, then down along a cosine.
            distance: ``layerwise``, ``weighted``, ``cosine`` or ``l2``: :class:`gitbench.attacker.tools.matching.Objective`.
            signed: use the sign of the gradient.
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

        def __post_init__(self) -> None:
            self.check_choice("labels", ("inferred", "known"))
            self.check_choice("schedule", SCHEDULES)
            self.check_choice("distance", DISTANCES)
            self.check_least(1, "iterations", "restarts")
            self.check_positive("lr", "start_lr")
            self.check_least(0, "tv", "start_tv")

    options: Options

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        search = _PixelSearch(observation, self.options, start, generator, progress)
        search.run()
        return Candidates(search.best.found[0], still_improving=search.falling.still)


class _PixelSearch(AdamOptimisation):
    """What is kept of a restart is where it ends, judged by the matching loss alone."""

    def __init__(
        self, observation: Observation, options: IG.Options, start: torch.Tensor | None, generator: torch.Generator, progress: Progress
    ) -> None:
        self._objective = Objective(observation, distance=options.distance)
        self._labels = observation.labels if options.labels == "known" else infer_labels(observation)
        self._options = options
        self._first = start
        self._generator = generator
        self._model, self._modality = observation.model, observation.modality
        self._shape = (*self._labels.shape, *observation.input_shape)
        self._device = observation.device
        best = Best(len(self._labels), self._device)
        super().__init__(
            "ig", best, iterations=options.iterations, restarts=options.restarts, schedule=options.schedule, progress=progress
        )  # fmt: skip

    def begin(self, restart: int) -> None:
        options = self._options
        if self._first is not None and restart == 0:
            self._tv = options.start_tv
            self.start(self._first, lr=options.start_lr)
        else:
            self._tv = options.tv
            drawn = self._modality.start(self._model, self._shape, init="normal", generator=self._generator)
            self.start(drawn.to(self._device), lr=options.lr)

    def images(self) -> torch.Tensor:
        return self.points[0]

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return self._objective(images, self._labels) + self._tv * total_variation(images)

    def keep(self, images: torch.Tensor, losses: torch.Tensor) -> None:
        """No iterate: :meth:`finish` keeps the last."""

    def followed(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient.sign() if self._options.signed else gradient

    def project(self) -> None:
        self.points[0].clamp_(0, 1)

    @torch.no_grad()
    def finish(self) -> None:
        found = self.points[0].detach().clamp(0, 1)
        self.best.offer(self._objective(found, self._labels), found)

    def interrupted(self) -> None:
        self.finish()
