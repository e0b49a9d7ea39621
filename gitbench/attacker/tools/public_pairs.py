"""Public pairs to train on: updates of the attacker's own images, protected afresh each time they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Iterator

import torch

from gitbench.attacker.observation import Observation
from gitbench.clients.client import blaming
from gitbench.clients.defense import is_random
from gitbench.clients.update import Batch, Update, joined
from gitbench.core.memory import give_back_freed_memory
from gitbench.core.progress import Progress

KEPT = 3 * 2**30
"""Bytes of public gradients that are kept rather than computed again."""

_PIECE = 2**22  # entries that are protected at once: small temporaries are used again, large ones come fresh from the system
_LARGE = 2**28  # bytes that fit into no hole which smaller tensors left
_FEW = 4  # batches on which a defense shows whether it draws anything


def public_batches(observation: Observation, limit: int, *, generator: torch.Generator) -> torch.Tensor:
    """Random batches of public images, ``(N, B)`` indices, sorted by class in each batch, as inferred labels are.

    Args:
        observation: needs ``public``.
        limit: at most so many images.
        generator: for the choice.
    """
    public, batch = observation.public, observation.batch_size
    count = min(limit, len(public)) // batch
    order = torch.randperm(len(public), generator=generator)[: count * batch].reshape(count, batch).to(public.labels.device)
    return order.gather(1, public.labels[order].argsort(dim=1, stable=True))


class PublicPairs:
    """Updates of public batches, and the images behind them.

    The gradients are computed once and kept while they take up no more than ``budget`` bytes; beyond it
    they are computed again at each request. Protection is drawn afresh at each request either way. What a
    defense does before the gradient is taken (its batches, a drift of the parameters) is drawn once; where it is drawn in each of
    several rounds, so is the protection.

    Args:
        observation: needs ``public``.
        order: ``(N, B)`` indices into the public split.
        generator: for what the defense draws before the gradient is taken.
        progress: told of the gradients.
        what: who is asking, for ``progress``.
        budget: bytes of gradients to keep.
        names: of the tensors that are asked for, where it is not all of them and nothing is protected: only they are kept.
    """

    def __init__(
        self,
        observation: Observation,
        order: torch.Tensor,
        *,
        generator: torch.Generator,
        progress: Progress,
        what: str,
        budget: int = KEPT,
        names: Collection[str] | None = None,
    ) -> None:
        self._observation = observation
        self._seed = int(torch.randint(2**62, (), generator=generator))
        public = observation.public
        self.order = order.to(public.inputs.device)
        self._kept: Update | None = None
        self._sent: Update | None = None
        self._names = names
        self._piece = max(1, _PIECE // observation.entries)
        if pairs_memory(observation, len(order), names) <= budget:
            self._kept = _stacked(self._all_computed(progress, f"{what}: public gradients"), len(order))

    def __len__(self) -> int:
        return len(self.order)

    @property
    def inputs(self) -> torch.Tensor:
        """``(N, B, C, H, W)``."""
        return self._observation.public.inputs[self.order]

    @property
    def labels(self) -> torch.Tensor:
        """``(N, B)``."""
        return self._observation.public.labels[self.order]

    @functools.cached_property
    def random(self) -> bool:
        """Whether protecting the same gradients again would give other updates."""
        expectation = self._observation.expectation
        if expectation is None:
            return False
        defense = expectation.defense
        # What comes before the last round is drawn afresh for every request.
        with blaming(defense):
            return not self.changing and (defense.age > 1 or is_random(defense, self.gradients(torch.arange(min(_FEW, len(self))))))

    @functools.cached_property
    def changing(self) -> bool:
        """Whether the gradients of the same images differ between the rounds that an update is made of."""
        return self._observation.players.changing(self.inputs[:1], self.labels[:1])

    def gradients(self, rows: torch.Tensor, names: Collection[str] | None = None) -> Update:
        """Unprotected gradients of some rows, of the tensors with these names where it is not all of them."""
        if self._kept is None:
            return _stacked((_of_names(part, names) for part in self._again(rows)), len(rows))
        return _of_names(self._taken(self._kept, rows), names)

    def updates(self, rows: torch.Tensor, *, generator: torch.Generator) -> Update:
        """The updates of some rows ``(n,)``, protected with fresh randomness."""
        if self.changing:
            return self._drawn_once(rows)
        if self._observation.expectation is None:
            return self.gradients(rows)
        pieces = self._again(rows) if self._kept is None else (self._taken(self._kept, part) for part in rows.split(self._piece))
        sent = (self._observation.protected(piece, generator=generator) for piece in pieces)
        return _stacked((Update(piece.tensors) for piece in sent), len(rows))

    def _again(self, rows: torch.Tensor) -> Iterator[Update]:
        """The gradients of some rows, computed again in parts that are protected at once."""
        return (self._computed(part) for part in rows.split(min(self._piece, self._observation.chunk)))

    def _drawn_once(self, rows: torch.Tensor) -> Update:
        chunk = self._observation.chunk
        if self._kept is None:
            return Update.cat([self._played(part) for part in rows.split(chunk)])
        if self._sent is None:
            self._sent = _stacked((self._played(part) for part in torch.arange(len(self)).split(chunk)), len(self))
        return self._taken(self._sent, rows)

    def _taken(self, kept: Update, rows: torch.Tensor) -> Update:
        first, count = int(rows[0]), len(rows)
        consecutive = torch.equal(rows.cpu(), torch.arange(first, first + count))
        index = slice(first, first + count) if consecutive else rows.to(self.order.device)  # a slice is no copy
        return kept[index]

    def _all_computed(self, progress: Progress, what: str) -> Iterator[Update]:
        chunks = torch.arange(len(self.order)).split(self._observation.chunk)
        for done, rows in enumerate(chunks):
            yield self._computed(rows)
            progress(what, done + 1, len(chunks))

    def _computed(self, rows: torch.Tensor) -> Update:
        found = self._observation.public_gradients(self.order[rows.to(self.order.device)], generator=self._generator(rows))
        return _of_names(found, self._names)

    def _played(self, rows: torch.Tensor) -> Update:
        """What is sent in all rounds, combined."""
        update = self._observation.public_updates(self.order[rows.to(self.order.device)], generator=self._generator(rows))
        return Update(update.tensors)

    def _generator(self, rows: torch.Tensor) -> torch.Generator:
        """Seeded by the rows, so that what is computed again is the same."""
        return torch.Generator().manual_seed((self._seed + int(rows[0])) % 2**62)


def _stacked(pieces: Iterable[Update], count: int) -> Update:
    """Pieces of ``count`` updates as one, each written into its place: joining them at the end would take their memory twice."""
    whole, done, batches = Update({}), 0, list[Batch]()
    for piece in pieces:
        batches += [] if piece.batch is None else [piece.batch]
        if not done:
            each = piece.per_example
            one = each is not None and all(tensor.shape[1] == 1 for tensor in each.values())  # the average is a view of the only example
            if 4 * count * sum(tensor[0].numel() for tensor in (each or piece.tensors).values()) > _LARGE:
                give_back_freed_memory()
            whole = (Update({}, each) if one else piece).map_all(lambda tensor: tensor.new_empty(count, *tensor.shape[1:]))
            if one and whole.per_example:
                whole = Update({name: tensor[:, 0] for name, tensor in whole.per_example.items()}, whole.per_example)
        for target, part in ((whole.tensors, piece.tensors), (whole.per_example or {}, piece.per_example or {})):
            for name, tensor in part.items():
                target[name][done : done + len(piece)] = tensor
        done += len(piece)
    return whole.of(joined(batches) if batches else None)


def _of_names(update: Update, names: Collection[str] | None) -> Update:
    if names is None:
        return update
    every = None if update.per_example is None else {name: update.per_example[name] for name in names}
    return Update({name: update.tensors[name] for name in names}, every, update.batch)


def pairs_memory(observation: Observation, count: int, names: Collection[str] | None = None) -> int:
    """Bytes that the gradients of ``count`` public batches take up, of all tensors or of those with these names."""
    sizes = observation.sent
    return 4 * count * sum(sizes[name] for name in (sizes if names is None else names))
