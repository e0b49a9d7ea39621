"""DAGER: exact text from the span of the first layers' query gradients (Petrov et al., arXiv 2405.15586)."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AdaptiveOptions
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.sequences import FOUND, SequenceSearch, constant_directions, grouped
from gitbench.attacker.tools.tokens import attention_gradient, beside, layer_inputs, query_layers, text_of
from gitbench.clients.modalities.text import PAD
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress

_ZERO = 1e-6  # of the largest singular value: what is below is rounding
_MOST = 64  # tokens of a position; where tokens come again, the span has others of the batch there too
_PREFIXES = 8  # that are kept for each sequence, where they lie in the span
_TRIES = 6  # searches for each sequence that is not told apart in closed form
_TRIED = 256  # sequences that are passed through the model at once


class Dager(Attack):
    """Tests which vectors lie in the span of what a query layer read.

    The gradient of a linear layer's weight is a sum of outer products with the vectors that the layer read: its rows span these, as
    long as there are fewer of them than the layer is wide. What the first query layer reads at a position depends on the token there
    alone, so that each of the vocabulary is tested at each position. The tokens that pass are put together token by token in a causal
    model, by the second query layer, whose vectors depend on the tokens before.

    Where attention looks in both directions, the sequences of a batch are told apart in closed form, by the gradient of the first key
    layer (:func:`gitbench.attacker.tools.sequences.constant_directions`). Of those that have the same token at the same position the
    layers that follow the first attention say which tokens belong together (:class:`gitbench.attacker.tools.sequences.SequenceSearch`);
    the flag ``sequences-not-told-apart`` says that they did not find as many sequences as there are. Single sequences need none of this.

    Where a batch has as many tokens as these vectors have dimensions (one less than the layer is wide where a LayerNorm makes their
    mean zero), everything lies in the span: the attack returns the most frequent public
    tokens, with the flag ``beyond-rank-limit``. Under noise the main directions are taken, as many as there are tokens, and the
    nearest tokens.
    """

    name = "dager"
    modalities = ("text",)
    requires = frozenset({"architecture", "parameters", "public"})
    uses = frozenset({"defense"})

    @dataclass(frozen=True, kw_only=True)
    class Options(AdaptiveOptions):
        """Of :class:`Dager`.

        Args:
            tolerance: distance from the span, as a share of the vector's length, below which a token passes the first layer.
        """

        tolerance: float = 1e-3

        def __post_init__(self) -> None:
            self.check_positive("tolerance")

    options: Options

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor | Candidates:
        names = query_layers(observation.model)
        if not names or attention_gradient(observation.update.tensors, names[0]) is None:
            raise AttackError(
                f"The attack {self!r} reads the gradient of the first query layer (a torch.nn.Linear called query, q_proj or q_lin), "
                f"and there is none in the update of {type(observation.model).__name__}. Use dlg or tag."
            )
        slots = observation.batch_size * observation.input_shape[0]
        search = _SpanSearch(observation, names[:2], slots, self.options.tolerance)
        if slots >= search.dimensions:
            guess = observation.modality.blind(observation.public.inputs)
            return Candidates(guess.expand(observation.victims, observation.batch_size, -1).clone(), flags=frozenset({"beyond-rank-limit"}))
        found = []
        for victim in range(observation.victims):
            found.append(search.of_victim(victim))
            progress("dager", victim + 1, observation.victims)
        return Candidates(torch.stack(found), flags=frozenset(search.flags))


class _SpanSearch:
    """Of the victims of an observation, one after the other.

    Args:
        observation: with parameters.
        names: of the first query layers, one or two; keys and values read the same, and their gradients are taken together.
        slots: tokens of a batch.
        tolerance: as in the options.
    """

    def __init__(self, observation: Observation, names: list[str], slots: int, tolerance: float) -> None:
        self._model, self._names, self._slots, self._tolerance = observation.model, names, slots, tolerance
        self._batch, (self._length,) = observation.batch_size, observation.input_shape
        vocabulary, self._embedding = text_of(observation).vocabulary, text_of(observation).table(observation.model)[1]
        self._padded = bool((observation.public.inputs == PAD).any())
        same = torch.arange(vocabulary, device=observation.device)[:, None].expand(-1, self._length)
        self._some = same[:1]
        (first,) = layer_inputs(self._model, names[:1], same)
        self._offset = first.shape[1] - self._length  # a start vector comes before the tokens
        self._gradients = [self._gradient(observation.update.tensors, name) for name in names]
        self._table = first[:, self._offset :].double()  # (vocabulary, L, d): of each token at each position
        self.dimensions = int(torch.linalg.matrix_rank(self._table.flatten(0, 1), rtol=_ZERO))
        self._causal = self._is_causal(same[:2])
        self._update, keys = observation.update.tensors, beside(names[0])[:1]
        self._key = self._update.get(f"{keys[0]}.weight") if keys else None
        self._positions = first.shape[1]
        self.flags = set[str]()

    def _gradient(self, update: Mapping[str, torch.Tensor], name: str) -> torch.Tensor | None:
        """Of a query layer alone where a start vector comes first: it has no slope by queries, and would be one more in the span."""
        own = update.get(f"{name}.weight")
        return own if self._offset and own is not None else attention_gradient(update, name)

    def of_victim(self, victim: int) -> torch.Tensor:
        """Its sequences ``(B, L)``."""
        spans = [None if one is None else _span(one[victim], self._slots) for one in self._gradients]
        assert spans[0] is not None
        apart = _distances(self._table, spans[0])  # (vocabulary, L)
        if not self._padded:
            apart[PAD] = torch.inf
        nearest = apart.argsort(0)[: max(2 * self._batch, _MOST)]
        passed = apart.gather(0, nearest) < self._tolerance
        passed[: self._batch] = True  # as many as there are sequences, whether they pass or not; fewer may be there
        exact = apart.gather(0, nearest)[: self._batch] < self._tolerance
        # Where any token passes, those that do not are no tokens of the batch: sequences share one there.
        passed[: self._batch] &= exact | ~exact.any(0)
        choices = [nearest[passed[:, place], place] for place in range(self._length)]
        if all(len(tokens) == 1 for tokens in choices):
            return self._any_of(choices)
        if self._causal and spans[1] is not None:
            return self._token_by_token(choices, spans[1])
        return self._put_together(victim, choices, spans[0], exact=bool(exact.any(0).all()))

    @functools.cached_property
    def _search(self) -> SequenceSearch:
        return SequenceSearch(self._model, self._names, self._embedding, self._some)

    def _second(self, sequences: torch.Tensor) -> torch.Tensor:
        """How far what the second layer reads of sequences ``(N, L)`` is from a span, by position ``(N, L, d)``."""
        parts = [layer_inputs(self._model, self._names[1:], some)[0][:, self._offset :] for some in sequences.split(_TRIED)]
        return torch.cat(parts).double()

    def _is_causal(self, pair: torch.Tensor) -> bool:
        if len(self._names) < 2:
            return False
        other = pair.clone()
        other[:, -1] = (other[:, -1] + 1) % len(self._table)
        return torch.allclose(self._second(pair)[:, 0], self._second(other)[:, 0], atol=1e-6)

    def _token_by_token(self, choices: list[torch.Tensor], span: torch.Tensor) -> torch.Tensor:
        """Prefixes grow by the tokens that keep the second layer's vector in its span."""
        kept = choices[0][:, None]
        for place in range(self._length):
            if place:
                kept = torch.cat([kept.repeat_interleave(len(choices[place]), 0), choices[place].repeat(len(kept))[:, None]], dim=1)
            rest = kept.new_full((len(kept), self._length - kept.shape[1]), PAD)
            apart = _distances(self._second(torch.cat([kept, rest], dim=1))[:, place], span)
            order = apart.argsort()[: _PREFIXES * self._batch]
            exact = order[apart[order] < self._tolerance]
            kept = kept[exact if len(exact) else order[: self._batch]]
        return self._of_most_tokens(kept)

    def _of_most_tokens(self, sequences: torch.Tensor) -> torch.Tensor:
        """As many of some sequences as the batch has, nearest first, which together have the most tokens.

        Where positions are told to the attention alone (rotary ones), a sequence of one token again and again lies in the span too.
        """
        chosen, left = list[int](), [set(row) for row in sequences.tolist()]
        for _ in range(min(self._batch, len(sequences))):
            best = max((row for row in range(len(sequences)) if row not in chosen), key=lambda row: len(left[row]))
            chosen.append(best)
            left = [tokens - left[best] for tokens in left]
        whole: torch.Tensor = sequences[[chosen[row % len(chosen)] for row in range(self._batch)]]
        return whole

    def _put_together(self, victim: int, choices: list[torch.Tensor], span: torch.Tensor, *, exact: bool) -> torch.Tensor:
        """By what is constant in a sequence as far as that goes, and by the layers up to the second query layer."""
        groups = [choices]
        if self._key is not None:
            vectors = [self._table[tokens, place] for place, tokens in enumerate(choices)]
            groups = grouped(choices, vectors, constant_directions(self._key[victim], span))
        self._search.look_at({name: tensor[victim] for name, tensor in self._update.items()}, batch=self._batch, positions=self._positions)
        found: dict[tuple[int, ...], float] = {}
        for group in groups:
            if all(len(tokens) == 1 for tokens in group):
                found[tuple(int(tokens) for tokens in group)] = 0.0
            else:
                tries = _TRIES if exact else 1  # where noise blurs the spans, more find nothing
                found |= self._search.sequences(group, wanted=self._batch - len(groups) + 1, tries=tries)
        if sum(apart < FOUND for apart in found.values()) < self._batch:
            self.flags.add("sequences-not-told-apart")
        nearest = sorted(found, key=lambda one: found[one])
        good = [one for one in nearest if found[one] < FOUND][: self._batch]
        while nearest and len(good) < self._batch:  # beside those that were found the ones that have most of the other tokens
            used = [set(some) for some in zip(*good, strict=True)] or [set[int]()] * self._length
            good.append(max(nearest, key=lambda one: sum(token not in some for token, some in zip(one, used, strict=True))))
        return torch.tensor(good, device=span.device) if good else self._any_of(choices)

    def _any_of(self, choices: list[torch.Tensor]) -> torch.Tensor:
        """Sequences of these tokens, as they come."""
        return torch.stack([tokens[torch.arange(self._batch, device=tokens.device) % len(tokens)] for tokens in choices], dim=1)


def _span(gradient: torch.Tensor, slots: int) -> torch.Tensor:
    """An orthonormal basis ``(r, d)`` of the rows of a weight's gradient: at most as many as there are tokens, besides the start."""
    _, sizes, rows = torch.linalg.svd(gradient.double(), full_matrices=False)
    span: torch.Tensor = rows[: min(slots, int((sizes > _ZERO * sizes[0]).sum()))]
    return span


def _distances(vectors: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """How far vectors ``(..., d)`` are from a span, as a share of their lengths."""
    left = vectors - (vectors @ span.T) @ span
    apart: torch.Tensor = left.norm(dim=-1) / vectors.norm(dim=-1).clamp_min(1e-30)
    return apart
