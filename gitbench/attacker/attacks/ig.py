"""IG: inverting gradients with cosine similarity (Geiping et al., arXiv 2003.14053)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Candidates, Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AdaptiveOptions
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import DISTANCES, Distance, Objective, initial_images, total_variation
from gitbench.attacker.tools.optimisation import SCHEDULES, Best, Falling, adam
from gitbench.core.progress import Progress
from gitbench.identity.threat import Knowledge

Watch = tuple[Falling, Iterator[int]]


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
        options, objective = self.options, Objective(observation, distance=self.options.distance)
        labels = observation.labels if options.labels == "known" else infer_labels(observation)
        shape = (len(labels), observation.batch_size, *observation.input_shape)
        best = Best()
        for restart in range(options.restarts):
            if start is not None and restart == 0:
                inputs, lr, tv = start.clone(), options.start_lr, options.start_tv
            else:
                inputs = initial_images(shape, init="normal", generator=generator).to(observation.device)
                lr, tv = options.lr, options.tv
            falling, steps = Falling(options.iterations), itertools.count()

            def losses_of(inputs: torch.Tensor = inputs, tv: float = tv, watch: Watch = (falling, steps)) -> torch.Tensor:
                losses = objective(inputs, labels) + tv * total_variation(inputs)
                watch[0].see(next(watch[1]), losses)
                return losses

            tell = functools.partial(_tell, progress, restart * options.iterations, options.restarts * options.iterations)
            in_time = adam(
                (inputs,), losses_of, iterations=options.iterations, lr=lr, schedule=options.schedule, tell=tell,
                signed=options.signed, bounded=True,
            )  # fmt: skip
            found = inputs.detach().clamp(0, 1)
            with torch.no_grad():
                best.offer(found, objective(found, labels))
            if not in_time:
                break
        return Candidates(best.candidates, still_improving=falling.still)


def _tell(progress: Progress, before: int, total: int, step: int) -> None:
    progress("ig", before + step, total)
