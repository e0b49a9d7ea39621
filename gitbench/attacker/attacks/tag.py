"""TAG: gradient attacks on transformers (Deng et al., arXiv 2103.06819)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Candidates, Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.embedding_search import EmbeddingSearch, SearchOptions
from gitbench.attacker.tools.matching import Objective
from gitbench.core.progress import Progress

_TINY = 1e-12


class TAG(Refiner):
    """Adam on the squared plus the absolute difference of gradients, over continuous inputs: embeddings of a text.

    The absolute difference makes up for the many small entries of a transformer's gradient. Both are taken in units of what was
    observed of each tensor, which is how tensors are weighted here: weights by the depth of a layer, as published, would have to be
    chosen for each model. What is kept of a search is where it matches best; of a text the nearest tokens are returned.
    """

    name = "tag"
    modalities = ("text",)
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"defense", "public"})  # public texts for the labels of batches alone
    profiles = {"quick": {"iterations": 250}, "paper": {"iterations": 2500}}

    @dataclass(frozen=True, kw_only=True)
    class Options(SearchOptions):
        """Of :class:`TAG`.

        Args:
            alpha: weight of the absolute difference.
        """

        alpha: float = 0.01

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(0, "alpha")

    options: Options

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        search = _TagSearch(observation, start, self.options, generator=generator, progress=progress)
        search.run()
        return Candidates(search.found, still_improving=search.falling.still)


class _TagSearch(EmbeddingSearch):
    def __init__(
        self, observation: Observation, start: torch.Tensor | None, options: TAG.Options, *, generator: torch.Generator, progress: Progress
    ) -> None:
        super().__init__("tag", observation, start, options, generator=generator, progress=progress)
        self._alpha = options.alpha
        self._objective = Objective(observation, distance="l2")

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        apart = self._objective.differences(images, self.labels)
        squared = [one.square().sum(1) / observed.square().sum(1).clamp_min(_TINY) for one, observed in apart]
        absolute = [one.abs().sum(1) / observed.abs().sum(1).clamp_min(_TINY) for one, observed in apart]
        return torch.stack(squared).sum(0) + self._alpha * torch.stack(absolute).sum(0)
