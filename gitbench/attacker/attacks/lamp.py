"""LAMP: extracting text from gradients with language model priors (Balunovic et al., arXiv 2202.08827)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Refiner
from gitbench.attacker.observation import Observation
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.embedding_search import EmbeddingSearch, SearchOptions
from gitbench.attacker.tools.matching import Objective
from gitbench.attacker.tools.tokens import text_of
from gitbench.core.progress import Progress

_SMOOTH = 10.0  # occurrences that a token's successors are thought to have besides its own, as all tokens are


class LAMP(Refiner):
    """A search for vectors by the cosine of gradients, interrupted by moves of whole tokens that a language model scores.

    The distance is the mean over layers of one minus the cosine, with a little of the length (``layerwise`` of ``ig``); vectors are
    kept about as long as those of the table. Every so often tokens change places (two are exchanged, one moves, the sequence is
    turned), and of several such moves that is taken whose distance plus weighted perplexity (its logarithm, per token) is lowest.
    The language model is one of pairs of tokens, counted in the public text.
    """

    name = "lamp"
    modalities = ("text",)
    requires = frozenset({"architecture", "parameters", "public"})
    uses = frozenset({"defense"})
    profiles = {"quick": {"iterations": 250}, "paper": {"iterations": 2000, "moves": 200}}

    @dataclass(frozen=True, kw_only=True)
    class Options(SearchOptions):
        """Of :class:`LAMP`.

        Args:
            length: weight of the vectors' length.
            every: gradient steps between moves.
            moves: that are tried each time.
            perplexity: weight of the language model among moves.
        """

        lr: float = 0.8
        length: float = 0.1
        every: int = 50
        moves: int = 20
        perplexity: float = 0.02

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(1, "every", "moves")
            self.check_least(0, "length", "perplexity")

    options: Options

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        search = _LampSearch(observation, start, self.options, generator=generator, progress=progress)
        search.run()
        return Candidates(search.found, still_improving=search.falling.still)


class _LampSearch(EmbeddingSearch):
    def __init__(
        self, observation: Observation, start: torch.Tensor | None, options: LAMP.Options, *, generator: torch.Generator, progress: Progress
    ) -> None:
        super().__init__("lamp", observation, start, options, generator=generator, progress=progress)
        self._options = options
        self._objective = Objective(observation, distance="layerwise")
        text = text_of(observation)
        self._norm = text.table(observation.model)[1].weight.detach().norm(dim=1).mean()
        self._pairs = _pair_losses(observation.public.inputs, text.vocabulary)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        lengths = (images.norm(dim=-1) / self._norm).mean((1, 2))
        losses: torch.Tensor = self._objective(images, self.labels) + self._options.length * (lengths - 1).square()
        return losses

    def iterate(self, iteration: int) -> bool:
        if (iteration + 1) % self._options.every == 0:
            self._move()
        return super().iterate(iteration)

    @torch.no_grad()
    def _move(self) -> None:
        """Each victim takes the best of some moves, or stays."""
        (point,) = self.points
        best, score = point.detach().clone(), self._judged(point)
        for _ in range(self._options.moves):
            order = torch.stack([_moved(point.shape[2], self.generator) for _ in range(point.shape[0] * point.shape[1])])
            index = order.reshape(*point.shape[:3], 1).expand_as(point).to(point.device)
            tried = point.gather(2, index)
            judged = self._judged(tried)
            closer = judged < score
            best[closer], score[closer] = tried[closer], judged[closer]
        point.copy_(best)

    def _judged(self, points: torch.Tensor) -> torch.Tensor:
        tokens = self.observation.modality.leave(self.observation.model, points)
        perplexity = self._pairs[tokens[..., :-1], tokens[..., 1:]].mean((1, 2))
        return self.loss(points) + self._options.perplexity * perplexity


def _moved(length: int, generator: torch.Generator) -> torch.Tensor:
    """An order of ``length`` places: two exchanged, one moved elsewhere, or all turned."""
    order = torch.arange(length)
    kind, first, second = (int(torch.randint(most, (), generator=generator)) for most in (3, length, length))
    if kind == 0:
        order[[first, second]] = order[[second, first]]
    elif kind == 1:
        rest = torch.cat([order[:first], order[first + 1 :]])
        order = torch.cat([rest[:second], order[first : first + 1], rest[second:]])
    else:
        order = order.roll(first)
    return order


def _pair_losses(public: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Minus the logarithm of how likely one token follows another ``(vocabulary, vocabulary)``, smoothed by how often each is."""
    pairs = torch.zeros(vocabulary, vocabulary, device=public.device)
    first, second = public[:, :-1].flatten(), public[:, 1:].flatten()
    pairs.index_put_((first, second), torch.ones(len(first), device=public.device), accumulate=True)
    alone = (pairs.sum(0) + 1) / (pairs.sum() + vocabulary)
    likely: torch.Tensor = (pairs + _SMOOTH * alone) / (pairs.sum(1, keepdim=True) + _SMOOTH)
    return -likely.log()
