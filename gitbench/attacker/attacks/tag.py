"""TAG: gradient attacks on transformers (Deng et al., arXiv 2103.06819)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function

from gitbench.attacker.attack import Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.reconstruction import Candidates
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
            units: in which differences are taken: ``tensor``, of what was observed of each tensor; ``update``, of all of it.
        """

        alpha: float = 0.01
        units: str = "tensor"

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(0, "alpha")
            self.check_choice("units", ("tensor", "update"))

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
        self._alpha, self._together = options.alpha, options.units == "update"
        self._objective = Objective(observation, distance="l2")
        self._observed = _sizes(self._objective.compared)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        found = _sizes(self._objective.differences(images, self.labels))
        squares, sums = (self._in_units(*both) for both in zip(found, self._observed, strict=True))
        return squares + self._alpha * sums

    def _in_units(self, found: torch.Tensor, observed: torch.Tensor) -> torch.Tensor:
        """Sizes of differences ``(tensors, V)`` in units of those of what was observed, together ``(V,)``."""
        if self._together:
            return found.sum(0) / observed.sum(0).clamp_min(_TINY)
        shares: torch.Tensor = (found / observed.clamp_min(_TINY)).sum(0)
        return shares


class _Sizes(Function):
    """Of the rows of a matrix ``(V, D)`` the sum of squares, and that of absolute values, in one pass over it each."""

    @staticmethod
    def forward(ctx: Any, apart: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(apart)
        return torch.linalg.vecdot(apart, apart), torch.linalg.vector_norm(apart, 1, dim=1)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> torch.Tensor:
        (apart,), (of_squares, of_sums) = ctx.saved_tensors, slopes
        found: torch.Tensor = apart.sgn().mul_(of_sums[:, None]).addcmul_(apart, 2 * of_squares[:, None])
        return found


def _sizes(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of tensors ``(V, entries)`` the sums of squares and of absolute values, each ``(tensors, V)``; differentiable."""
    squares, sums = zip(*(_Sizes.apply(tensor) for tensor in tensors), strict=True)
    return torch.stack(squares), torch.stack(sums)
