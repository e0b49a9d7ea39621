"""GradInversion: batches with BatchNorm statistics and several seeds that must agree (Yin et al., arXiv 2104.07586)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AdaptiveOptions
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.activations import activations_of
from gitbench.attacker.tools.assignment import aligned
from gitbench.attacker.tools.batchnorm_prior import STATISTICS, BatchNormPrior
from gitbench.attacker.tools.labels import infer_labels, restored_labels
from gitbench.attacker.tools.matching import DISTANCES, Distance, Objective, total_variation
from gitbench.attacker.tools.optimisation import SCHEDULES, AdamOptimisation, Best
from gitbench.attacker.tools.registration import REGISTRATIONS, consensus
from gitbench.clients.model import classes_of
from gitbench.core.progress import Progress
from gitbench.identity.threat import Knowledge

_LABELS = ("inferred", "restored", "drawn", "known")
_ROOM = 2**31  # bytes of the activations of candidates that are differentiated at once
_COPIES = 12  # of a layer's activations, when gradients are differentiated once more


class GradInversion(Refiner):
    """Adam on the distance of gradients with priors of an image, from several seeds that are drawn to what they agree on.

    The objective of a seed is the distance of gradients plus total variation, the images' distance from grey, the distance of
    their BatchNorm statistics from those that are known, and their distance from the consensus of all seeds: every so many steps
    the seeds' images are matched to each other within the batch, registered to their mean and averaged. Each step adds noise in
    proportion to its size. The seed with the lowest distance of gradients is returned, victim by victim.

    ``statistics`` says whose BatchNorm statistics are matched: ``running`` are the model's own, which a server has; ``private`` are
    those of the very batch, as the published figures have them, and need a threat model that grants them (``upper-bound``). A model
    that was never trained has no running statistics, and the term is left out.

    Where we differ from the paper: images are registered by phase correlation, for RANSAC-Flow needs weights; the distance of gradients and
    each layer's statistics are in units of what is observed, so that one weight serves all models; labels may repeat within a batch
    (``inferred``), where the published rule (``restored``) cannot say so.
    """

    name = "gradinversion"
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense", "public"})  # public images for the labels of batches alone
    profiles = {
        "quick": {"iterations": 150, "seeds": 1},
        "paper": {"iterations": 20_000, "seeds": 8, "distance": "l2", "labels": "restored", "noise": 0.2},
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(AdaptiveOptions):
        """Of :class:`GradInversion`.

        Args:
            iterations: gradient steps of each seed.
            seeds: random starts; a start from a prior replaces the first, and the others begin beside it.
            lr: first step size.
            start_lr: the same after a prior.
            distance: ``l2``: squared, in units of the squared norm of what was observed; the others as for ``ig``.
            tv: weight of total variation.
            norm: weight of the images' distance from grey.
            batchnorm: weight of the distance of BatchNorm statistics.
            statistics: ``running``, ``private`` or ``none``.
            group: weight of the distance from the consensus of the seeds; 0 has none.
            group_start: share of the iterations before the first consensus.
            group_every: iterations from one consensus to the next.
            registration: ``phase``, or ``none`` for the plain mean.
            noise: of a step, in units of its size.
            schedule: ``ramp``, ``cosine`` or ``step``.
            labels: ``inferred`` from the update; ``restored`` by the published rule, distinct ones; ``drawn`` without looking at the
                update; ``known`` where the threat model grants them.
        """

        iterations: int = 1000
        seeds: int = 2
        lr: float = 0.05
        start_lr: float = 0.01
        distance: Distance = "layerwise"
        tv: float = 0.1
        norm: float = 1e-3
        batchnorm: float = 0.1
        statistics: str = "running"
        group: float = 0.1
        group_start: float = 0.25
        group_every: int = 100
        registration: str = "phase"
        noise: float = 0.02
        schedule: str = "ramp"
        labels: str = "inferred"

        def __post_init__(self) -> None:
            self.check_choice("labels", _LABELS)
            self.check_choice("statistics", STATISTICS)
            self.check_choice("registration", REGISTRATIONS)
            self.check_choice("schedule", SCHEDULES)
            self.check_choice("distance", DISTANCES)
            self.check_least(1, "iterations", "seeds", "group_every")
            self.check_positive("lr", "start_lr")
            self.check_least(0, "tv", "norm", "batchnorm", "group", "group_start", "noise")

        @property
        def needs(self) -> frozenset[Knowledge]:
            named: dict[Knowledge, bool] = {"labels": self.labels == "known", "batchnorm_statistics": self.statistics == "private"}
            return frozenset(name for name, needed in named.items() if needed)

    options: Options

    def memory(self, observation: Observation) -> int:
        """Pixels of all seeds, a few gradients of each victim, and the activations of the candidates that are differentiated at once."""
        per_victim = _bytes_of_one(observation)
        pixels = observation.victims * self.options.seeds * observation.batch_size * math.prod(observation.input_shape)
        return 20 * pixels + 8 * observation.entries * observation.victims + max(per_victim, min(_ROOM, per_victim * observation.victims))

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        seed = int(torch.randint(2**31, (), generator=generator))
        search = _GroupSearch(observation, self.options, self._labels(observation, seed), start, seed, progress)
        search.run()
        return Candidates(search.best.found[0], still_improving=search.falling.still)

    def _labels(self, observation: Observation, seed: int) -> torch.Tensor:
        if self.options.labels == "known":
            return observation.labels
        if self.options.labels == "restored":
            return restored_labels(observation)
        if self.options.labels == "drawn":
            shape, classes = (observation.victims, observation.batch_size), classes_of(observation.architecture)
            drawn = torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))
            return drawn.to(observation.device)
        return infer_labels(observation)


class _GroupSearch(AdamOptimisation):
    """All seeds of all victims step together; candidates are differentiated a few victims at a time."""

    def __init__(
        self, observation: Observation, options: GradInversion.Options, labels: torch.Tensor, start: torch.Tensor | None, seed: int,
        progress: Progress,
    ) -> None:  # fmt: skip
        super().__init__(
            "gradinversion", Best(len(labels), observation.device), iterations=options.iterations, schedule=options.schedule,
            progress=progress,
        )  # fmt: skip
        self._options, self._labels, self._first = options, labels, start
        self._shape = (options.seeds, observation.batch_size, *observation.input_shape)
        # Each victim has a generator of its own: what it is given does not depend on how many others there are.
        self._generators = [torch.Generator().manual_seed(seed + victim) for victim in range(len(labels))]
        self._device = observation.device
        self._prior = BatchNormPrior.of(observation, options.statistics) if options.batchnorm else None
        together = max(1, _ROOM // max(1, _bytes_of_one(observation)))
        self._chunks = torch.arange(len(labels), device=self._device).split(together)
        self._observations = [observation.of_victims(rows, labels=labels[rows]) for rows in self._chunks]
        self._objectives = [Objective(some, distance=options.distance) for some in self._observations]
        squares = [tensor.flatten(1).square().sum(1) for tensor in observation.update.tensors.values()]
        self._unit = torch.stack(squares).sum(0).clamp_min(1e-24) if options.distance == "l2" else torch.ones_like(squares[0])
        self._target: torch.Tensor | None = None

    def begin(self, restart: int) -> None:
        if self._first is None:
            self.start(0.5 + 0.25 * self._drawn(), lr=self._options.lr)
            return
        beside = 0.1 * self._drawn()
        beside[:, 0] = 0
        self.start((self._first[:, None] + beside).clamp(0, 1), lr=self._options.start_lr)

    def images(self) -> torch.Tensor:
        return self.points[0]

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        """Distances ``(V, G)`` of gradients of all candidates ``(V, G, B, C, H, W)``."""
        found = images.new_zeros(images.shape[:2])
        for rows, objective in zip(self._chunks, self._objectives, strict=True):
            for seed in range(images.shape[1]):
                found[rows, seed] = objective(images[rows, seed], self._labels[rows]) / self._unit[rows]
        return found

    def iterate(self, iteration: int) -> bool:
        self._agree(iteration)
        (point,) = self.points
        gradient = torch.empty_like(point)
        losses = point.new_zeros(point.shape[:2])
        for rows, objective in zip(self._chunks, self._objectives, strict=True):
            for seed in range(point.shape[1]):
                images = point.detach()[rows, seed].requires_grad_()
                matching = objective(images, self._labels[rows]) / self._unit[rows]
                total = matching + self._penalty(images, rows, seed)
                (gradient[rows, seed],) = torch.autograd.grad(total.sum(), images)
                losses[rows, seed] = matching.detach()
        self.falling.see(iteration, losses.min(1).values)
        point.grad = gradient
        rate = self._adam.param_groups[0]["lr"]
        self._adam.step()
        self._schedule.step()
        with torch.no_grad():
            if self._options.noise:
                point.add_(self._drawn(), alpha=rate * self._options.noise)
            point.clamp_(0, 1)
        return True

    def _penalty(self, images: torch.Tensor, rows: torch.Tensor, seed: int) -> torch.Tensor:
        options = self._options
        found = options.tv * total_variation(images) + options.norm * _root(images - 0.5)
        if self._prior is not None:
            found = found + options.batchnorm * self._prior(images, rows)
        if self._target is not None:
            found = found + options.group * _root(images - self._target[rows, seed])
        return found

    @torch.no_grad()
    def _agree(self, iteration: int) -> None:
        """Every so often: what the seeds agree on, in the order of each seed's own batch, ``(V, G, B, C, H, W)``."""
        options, first = self._options, round(self._options.group_start * self.iterations)
        if options.group == 0 or options.seeds == 1 or iteration < first or (iteration - first) % options.group_every:
            return
        self._target = torch.stack([self._agreed(own, labels) for own, labels in zip(self.points[0], self._labels, strict=True)])

    def _agreed(self, candidates: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of one victim: candidates ``(G, B, C, H, W)`` and labels ``(B,)``."""
        orders = torch.stack([aligned(one, candidates[0], labels) for one in candidates])
        ordered = torch.stack([one[order] for one, order in zip(candidates, orders, strict=True)])
        agreed = torch.stack([consensus(ordered[:, image], registration=self._options.registration) for image in range(ordered.shape[1])])
        # Each seed's own place for each of these images.
        return torch.stack([agreed[order.argsort()] for order in orders])

    @torch.no_grad()
    def finish(self) -> None:
        found = self.points[0].detach()
        losses = self.loss(found)
        for seed in range(found.shape[1]):
            self.best.offer(losses[:, seed], found[:, seed])

    def interrupted(self) -> None:
        self.finish()

    def _drawn(self) -> torch.Tensor:
        return torch.stack([torch.randn(self._shape, generator=generator) for generator in self._generators]).to(self._device)


def _root(difference: torch.Tensor) -> torch.Tensor:
    """Root mean square of each victim's pixels, with a slope at zero."""
    return (difference.flatten(1).square().mean(1) + 1e-12).sqrt()


def _bytes_of_one(observation: Observation) -> int:
    """What differentiating the gradient of one victim's candidate takes."""
    shape = observation.input_shape
    return 4 * (_COPIES * observation.batch_size * activations_of(observation.architecture, shape) + 3 * observation.entries)
