"""A search for continuous inputs, of text vectors, by Adam: what attacks that differ in their loss share."""

from __future__ import annotations

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.optimisation import AdamOptimisation, Best
from gitbench.clients.task import own_targets
from gitbench.core.progress import Progress


class EmbeddingSearch(AdamOptimisation):
    """Starts at random, or at inputs; a subclass says what is lowered.

    Args:
        what: it is called where progress is told.
        observation: needs ``parameters``.
        first: inputs to start at; None draws.
        iterations: of the search; steps fall to zero as a cosine.
        lr: first step, in units of the start's standard deviation.
        known: take the labels that are granted, where they do not follow from the inputs.
        generator: draws the start.
        progress: told after each iteration.
    """

    def __init__(
        self,
        what: str,
        observation: Observation,
        first: torch.Tensor | None,
        *,
        iterations: int,
        lr: float,
        known: bool,
        generator: torch.Generator,
        progress: Progress,
    ) -> None:
        self.observation, self.generator = observation, generator
        self.labels = None
        if own_targets(observation.model) is None:
            self.labels = observation.labels if known else infer_labels(observation)
        self._first, self._lr = first, lr
        super().__init__(what, Best(observation.victims, observation.device), iterations=iterations, schedule="cosine", progress=progress)

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
