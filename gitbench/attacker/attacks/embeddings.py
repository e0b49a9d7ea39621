"""Embeddings: the rows of the token embedding's gradient name the tokens of a batch. No search, no parameters."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AdaptiveOptions
from gitbench.attacker.tools.row_counts import likely_counts
from gitbench.attacker.tools.tokens import text_of, token_gradient
from gitbench.clients.modalities.text import PAD
from gitbench.clients.model import last_linear
from gitbench.clients.task import own_targets
from gitbench.core.progress import Progress

_THERE = 0.5  # of a count that is one and more: it is there
_ROUNDING = 1e-6  # of the largest weight: it is not there
_SUMS = 1e-3  # of the sum over positions: how far that over tokens may be from it


class Embeddings(Attack):
    """The closed form that no user expects: a row of the embedding's gradient is zero unless its token is in the batch.

    Which tokens there are is read off exactly where nothing blurs the gradient; the longest rows are taken otherwise. Where learned
    positions are added to the vectors, the gradient of a single sequence's position is that of the vector there, and a token's row is
    the sum over its places: a system of linear equations, whose solution is the sequence itself, in its order. How often a token is in
    a batch follows from its row, too, since those of one sequence are much alike
    (:func:`gitbench.attacker.tools.row_counts.likely_counts`); where all rows are blurred, the longest ones are taken.

    The head of a language model says that better, and does so where the embedding is frozen, too: the gradient of its bias is what is
    predicted minus how often each token is the next one (iDLG's observation). A classifier that hides its embedding leaves nothing to
    this attack, and it returns the most frequent public tokens.
    """

    name = "embeddings"
    modalities = ("text",)
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"defense"})

    @dataclass(frozen=True, kw_only=True)
    class Options(AdaptiveOptions):
        """Of :class:`Embeddings`."""

    options: Options

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        rows, (length,) = token_gradient(observation), observation.input_shape
        slots = observation.batch_size * length
        if rows is None:
            told = _from_the_head(observation, slots)
            if told is None:
                guess = observation.modality.blind(observation.public.inputs)
                return guess.expand(observation.victims, observation.batch_size, -1).clone()
            weights = told
        else:
            ordered = _in_order(observation, rows) if observation.batch_size == 1 else None
            if ordered is not None:
                return ordered
            told = _from_the_head(observation, slots)
            if told is None:
                return torch.stack([_counted(row, observation) for row in rows.double()])
            weights = told
        weights[:, PAD] = 0
        return torch.stack([_spread(row, slots) for row in weights]).reshape(-1, observation.batch_size, length)


def _in_order(observation: Observation, rows: torch.Tensor) -> torch.Tensor | None:
    """The sequences ``(V, 1, L)`` of single ones, from the gradient of their positions; None where none is sent."""
    (length,), total = observation.input_shape, rows.double().sum(1)
    others = {f"{name}.weight" for name, module in observation.architecture.named_modules() if isinstance(module, nn.Linear)}
    others.add(f"{text_of(observation).table(observation.architecture)[0]}.weight")
    best: tuple[float, torch.Tensor] | None = None
    for name, tensor in observation.update.tensors.items():
        if tensor.ndim != 3 or tensor.shape[2] != rows.shape[2] or name in others:
            continue
        # A start vector, or a mark at the end, has a position too: which are those of the tokens, the sums tell.
        for first in range(min(3, tensor.shape[1] - length + 1)):
            places = tensor[:, first : first + length].double()
            apart = float(((places.sum(1) - total).norm(dim=1) / total.norm(dim=1).clamp_min(1e-30)).median())
            if best is None or apart < best[0]:
                best = apart, places
    if best is None:
        return None
    apart, places = best
    if apart > _SUMS and observation.expectation is None:
        return None
    # rows = shares @ places, where a share is 1 at the places of its token.
    shares = rows.double() @ torch.linalg.pinv(places)
    if bool((observation.public.inputs != PAD).all()):
        shares[:, PAD] = 0
    tokens: torch.Tensor = shares.argmax(1)[:, None]
    return tokens


def _counted(rows: torch.Tensor, observation: Observation) -> torch.Tensor:
    """Tokens ``(B, L)`` of one victim, by the rows ``(vocabulary, d)`` of the embedding's gradient."""
    weights, batch, (length,) = rows.norm(dim=1), observation.batch_size, observation.input_shape
    weights[PAD] = 0
    there = (weights > _ROUNDING * weights.max()).nonzero()[:, 0]
    if batch <= len(there) <= batch * length:
        weights = torch.zeros_like(weights)
        weights[there] = likely_counts(rows[there], batch=batch, length=length).to(weights)
    return _spread(weights, batch * length).reshape(batch, length)


def _spread(weights: torch.Tensor, slots: int) -> torch.Tensor:
    """Tokens ``(slots,)`` of one victim, each as often as its weight asks for: at least once where it has any, as far as there is room."""
    there = weights > _ROUNDING * weights.max().clamp_min(1e-30)
    order = weights.argsort(descending=True)[: max(1, min(slots, int(there.sum())))]
    counts = torch.ones(len(order), dtype=torch.long)
    kept = weights[order].cpu()
    for _ in range(slots - len(order)):  # the next goes to whom most weight is left for each that it has
        counts[int((kept / (counts + 0.5)).argmax())] += 1
    return order.repeat_interleave(counts.to(order.device))


def _from_the_head(observation: Observation, slots: int) -> torch.Tensor | None:
    """How often each token is a next one ``(V, vocabulary)``, by the head's gradient; None of a model that predicts no tokens."""
    if own_targets(observation.architecture) is None:
        return None
    name, head = last_linear(observation.architecture)
    bias = observation.update.tensors.get(f"{name}.bias")
    if bias is None or head.out_features != text_of(observation).vocabulary:
        return None
    positions = slots + observation.batch_size  # and the end of each sequence
    often = (1 / head.out_features - bias.double()) * positions
    kept: torch.Tensor = torch.where(often > _THERE, often, 0.0)
    return kept
