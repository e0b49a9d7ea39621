"""A search for continuous inputs, of text vectors, by Adam: what attacks that differ in their loss share."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.options import LabelOptions
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.optimisation import AdamOptimisation, Best
from gitbench.clients.task import own_targets
from gitbench.core.progress import Progress


@dataclass(frozen=True, kw_only=True)
class SearchOptions(LabelOptions):
    """Of an attack that is such a search.

    Args:
        iterations: gradient steps.
        lr: first step, in units of the start's standard deviation; steps fall to zero as a cosine.
    """

    iterations: int = 1000
    lr: float = 0.2

    def __post_init__(self) -> None:
        self.check_choice("labels", ("inferred", "known"))
        self.check_least(1, "iterations")
        self.check_positive("lr")


class EmbeddingSearch(AdamOptimisation):
    """Starts at random, or at inputs; a subclass says what is lowered.

    Args:
        what: it is called where progress is told.
        observation: needs ``parameters``.
        first: inputs to start at; None draws.
        options: of the attack.
        generator: draws the start.
        progress: told after each iteration.
    """

    def __init__(
        self,
        what: str,
        observation: Observation,
        first: torch.Tensor | None,
        options: SearchOptions,
        *,
        generator: torch.Generator,
        progress: Progress,
    ) -> None:
        self.observation, self.generator = observation, generator
        self.labels = None
        if own_targets(observation.model) is None:
            self.labels = observation.labels if options.labels == "known" else infer_labels(observation)
        self._first, self._lr = first, options.lr
        best = Best(observation.victims, observation.device)
        super().__init__(what, best, iterations=options.iterations, schedule="cosine", progress=progress)

    def begin(self, restart: int) -> None:
        modality, model = self.observation.modality, self.observation.model
        inner = modality.inner_shape(model, self.observation.input_shape)
        shape = (self.observation.victims, self.observation.batch_size, *inner)
        drawn = modality.start(model, shape, init="normal", generator=self.generator).to(self.observation.device)
        self.start(drawn if self._first is None else modality.enter(model, self._first), lr=self._lr * float(drawn.std()))

    def images(self) -> torch.Tensor:
        return self.points[0]

    @property
    def found(self) -> torch.Tensor:
        """The inputs nearest to the best that was found."""
        return self.observation.modality.leave(self.observation.model, self.best.found[0])
