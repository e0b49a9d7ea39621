"""Tokens put into sequences, of a batch of which the tokens at each position are known: by attention that looks in both directions too."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from scipy.optimize import nnls
from torch import nn

from gitbench.attacker.tools.tokens import attention_gradient, layer_inputs, layers_between

_SILENT = 3e-7  # of the largest singular value of the key gradient: what is below is rounding (1e-8), what is above says something (1e-4)
_NOTHING = 1e-7  # of the same: rounding, where the gradient is no difference of much larger numbers
_SAME = 1e-4  # of a vector's length, by which what is constant in a sequence may vary
_STEP = 1e-6  # of a share, for a slope
_STEPS, _STILL = 12, 1e-3  # of the search, and how far it moves where it is at its end
_RIDGE, _TIED = 1e-3, 1e4  # in units of the mean square: of a step's length, and of that shares add up to one
_TRIED = 256  # sequences that are passed through the model at once
FOUND = 3e-3
"""How far all vectors of a sequence together may be from their spans: 1e-4 to 2e-3 were seen, of wrong sequences 4e-3 and more."""


def constant_directions(key: torch.Tensor, span: torch.Tensor) -> torch.Tensor:
    """Directions ``(d, K)`` in which all that the first key layer reads of a sequence is the same; ``K`` is 0 where there are none.

    The slopes of a softmax add up to zero. So do, over the keys of a sequence, the slopes ``e`` by its keys, each of them a sum over
    the queries of such a slope times the query. The gradient of the key layer is the sum of ``e xᵀ`` over all that it reads: where the
    ``x`` are linearly independent and it is silent (``G u = 0``), the numbers ``x u`` solve ``sum of e (x u) = 0``, whose solutions
    are constant in each sequence. Sequences with the same token at the same position share an ``x``, and so that number: they cannot be
    told apart by it.

    Args:
        key: its weight's gradient ``(outputs, d)``.
        span: an orthonormal basis ``(r, d)`` of what is read.
    """
    _, sizes, rows = torch.linalg.svd(key.double() @ span.T, full_matrices=True)
    heard = int((sizes > _SILENT * sizes[0]).sum())
    found: torch.Tensor = span.T @ rows[heard:].T
    return found


def grouped(choices: Sequence[torch.Tensor], vectors: Sequence[torch.Tensor], directions: torch.Tensor) -> list[list[torch.Tensor]]:
    """Tokens by position, for each group of sequences that :func:`constant_directions` tells apart; all in one where it tells none.

    Args:
        choices: tokens at each position, among which may be some of no sequence.
        vectors: what the key layer reads of each of them, ``(tokens, d)``.
        directions: ``(d, K)``.
    """
    if not directions.shape[1]:
        return [list(choices)]
    values = [some @ directions for some in vectors]
    close = _SAME * float(torch.cat(list(vectors)).norm(dim=1).mean())
    first = min(range(len(choices)), key=lambda place: len(choices[place]))
    groups, seen = list[list[torch.Tensor]](), list[torch.Tensor]()
    for value in values[first]:
        near = [(some - value).norm(dim=1) < close for some in values]
        if all(bool(one.any()) for one in near) and not any(float((value - other).norm()) < close for other in seen):
            seen.append(value)
            groups.append([tokens[one] for tokens, one in zip(choices, near, strict=True)])
    return groups or [list(choices)]


class SequenceSearch:
    """Looks for the sequences whose vectors lie in the spans of what the layers after the first attention read.

    Tokens are relaxed to shares of a position's choices. The distance from the spans is nearly linear in the shares, because attention
    averages, so that a few steps of Gauss and Newton go from equal shares to a sequence. One token is fixed for each of them: a
    sequence that has it is what is looked for.

    Args:
        model: with parameters.
        query_layers: names of the first query layers, one or two: layers are read from the first to the second, or to the end.
        table: the token embedding.
        sample: some tokens ``(1, L)``.
    """

    def __init__(self, model: nn.Module, query_layers: Sequence[str], table: nn.Embedding, sample: torch.Tensor) -> None:
        self._names = layers_between(model, query_layers, sample)
        self._model = copy.deepcopy(model).double()
        self._vectors = table.weight.detach().double()
        self._spans: dict[str, torch.Tensor] = {}

    def look_at(self, update: Mapping[str, torch.Tensor], *, batch: int, positions: int) -> None:
        """Turn to a victim.

        Args:
            update: its tensors.
            batch: sequences that it has.
            positions: that the model has of each.
        """
        self._spans, slots = {}, batch * positions
        for name in self._names:
            gradient = attention_gradient(update, name)
            if gradient is not None and slots <= len(gradient) and slots < gradient.shape[1]:
                _, sizes, rows = torch.linalg.svd(gradient.double(), full_matrices=False)
                # Of less than all that was read it is no span: a classifier may look at one position alone.
                if float(sizes[slots - 1]) > _NOTHING * float(sizes[0]):
                    self._spans[name] = rows[:slots]

    def sequences(self, choices: Sequence[torch.Tensor], *, wanted: int, tries: int) -> dict[tuple[int, ...], float]:
        """As many as are wanted, or fewer, or more that are none; of each how far it is from the spans (:data:`FOUND`).

        Args:
            choices: tokens at each position.
            wanted: how many sequences they are of.
            tries: searches, for each of them.
        """
        found: dict[tuple[int, ...], float] = {}
        good, tried = list[tuple[int, ...]](), set[tuple[int, int]]()
        for _ in range(tries * wanted if self._spans else 0):  # without spans everything lies in them
            left = _left(choices, good, wanted)
            places = sorted(range(len(left)), key=lambda place: (len(choices[place]) > wanted, -len(choices[place])))
            anchors = ((place, token) for place in places for token in left[place].tolist())
            fresh = ((place, token) for place, token in anchors if (place, token) not in tried and all(one[place] != token for one in good))
            anchor = next(fresh, None)
            if anchor is None:
                break
            tried.add(anchor)
            for some in (left, choices):  # where a token of no sequence is among the choices, too few are left
                fixed = [tokens.new_tensor([anchor[1]]) if place == anchor[0] else tokens for place, tokens in enumerate(some)]
                one, apart = self._nearest(fixed)
                found[one] = min(apart, found.get(one, apart))
                if apart < FOUND and one not in good:
                    good.append(one)
                    tried.clear()  # fewer tokens are left, so that the others are found more easily
                if apart < FOUND or not good:
                    break
            if len(good) == wanted:
                break
        return found

    def _nearest(self, choices: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], float]:
        """The sequence that is nearest to the spans, of those that were passed, and how far it is."""
        sizes = torch.tensor([len(tokens) for tokens in choices], device=choices[0].device)
        places = torch.arange(len(choices), device=sizes.device).repeat_interleave(sizes)
        members = nn.functional.one_hot(places, len(choices)).double()  # (choices, L)
        tokens = torch.cat(list(choices))
        shares = 1 / sizes.double()[places]
        one = torch.eye(len(tokens), dtype=shares.dtype, device=shares.device)
        best: tuple[tuple[int, ...], float] = ((), torch.inf)
        for _ in range(_STEPS):
            largest = torch.stack([some[int(part.argmax())] for some, part in zip(choices, shares.split(sizes.tolist()), strict=True)])
            rows = torch.cat([self._vectors[largest][None], self._mixed(tokens, members, torch.cat([shares[None], shares + _STEP * one]))])
            apart = self._apart(rows)
            if float(apart[0].norm()) < best[1]:
                best = tuple(largest.tolist()), float(apart[0].norm())
            if best[1] < FOUND or len(tokens) == len(choices):
                break
            stepped = _step(shares, apart[1], (apart[2:] - apart[1]) / _STEP, members)
            moved, shares = float((stepped - shares).abs().max()), stepped
            if moved < _STILL:
                break
        return best

    def _mixed(self, tokens: torch.Tensor, members: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """The vectors ``(N, L, d)`` of shares ``(N, choices)``."""
        return torch.einsum("nc,cl,cd->nld", shares, members, self._vectors[tokens])

    def _apart(self, vectors: torch.Tensor) -> torch.Tensor:
        """What of the layers' inputs is outside of their spans, as shares of their lengths ``(N, all of it)``."""
        parts = []
        for some in vectors.split(_TRIED):
            rest = []
            for read, span in zip(layer_inputs(self._model, [*self._spans], some), self._spans.values(), strict=True):
                outside = read - (read @ span.T) @ span
                rest.append((outside / read.norm(dim=-1, keepdim=True).clamp_min(1e-30)).flatten(1))
            parts.append(torch.cat(rest, dim=1))
        return torch.cat(parts)


def _left(choices: Sequence[torch.Tensor], good: Sequence[tuple[int, ...]], wanted: int) -> list[torch.Tensor]:
    """What is left of the choices for other sequences: where there are as many tokens as sequences, each has its own."""
    found = []
    for place, tokens in enumerate(choices):
        used = tokens.new_tensor([one[place] for one in good])
        rest = tokens[~torch.isin(tokens, used)]
        found.append(rest if len(tokens) == wanted and len(rest) else tokens)
    return found


def _step(shares: torch.Tensor, apart: torch.Tensor, slopes: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """The shares ``(N,)``, not negative, that bring what is linear in them closest to zero; those of a position add up to one.

    Args:
        shares: where the slopes are taken.
        apart: ``(M,)``, what should be zero.
        slopes: of that, ``(N, M)``.
        members: which shares are of which position, ``(N, L)``.
    """
    squares = slopes @ slopes.T
    ridge, aim = _RIDGE * squares.diagonal().mean().clamp_min(1e-30), slopes @ (shares @ slopes - apart)
    tied = _TIED * squares.diagonal().mean() * (members @ members.T)
    system = squares + tied + ridge * torch.eye(len(shares), dtype=shares.dtype, device=shares.device)
    root = torch.linalg.cholesky(system)
    wanted = aim + ridge * shares + tied.sum(1) / (members @ members.sum(0))
    right = torch.linalg.solve_triangular(root, wanted[:, None], upper=False)[:, 0]
    found = torch.as_tensor(nnls(root.T.cpu().numpy(), right.cpu().numpy())[0]).to(shares)
    stepped: torch.Tensor = found / (members @ (members.T @ found)).clamp_min(1e-30)
    return stepped
