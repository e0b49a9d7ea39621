"""Top-k sparsification, with what was left out sent later."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.largest import largest
from gitbench.clients.update import Update


class TopK(Defense):
    """Sends the largest entries of each victim's update, and adds what it leaves out to the next round's.

    With gradient ``g`` and what was left out before, ``e``, a client sends the ``k`` entries of ``p = g + e`` that are largest in absolute
    value, over all tensors, and keeps ``e = p - sent`` (error feedback: Stich et al., arXiv 1809.07599; Lin et al., Deep Gradient
    Compression, arXiv 1712.01887, whose momentum correction, clipping and warm-up are not here). Without error feedback it is
    ``pruning(rate=1 - rate)``.

    It promises no privacy: nothing is lost, only late. Of R rounds of one batch the updates that are sent add up to R gradients plus what
    was left out before, minus what still is; :meth:`combined` has what an attacker makes of that.

    Args:
        rate: share of the entries that is sent, in (0, 1]; at least one entry is.
        error_feedback: whether what is left out is sent later.
        age: in which round a client is when its update leaks, >= 2 with error feedback: in the first one nothing was left out yet, which
            is ``error_feedback=False``.
    """

    name = "topk"

    def __init__(self, *, rate: float, error_feedback: bool = True, age: int = 2) -> None:
        if not 0 < rate <= 1:
            raise ValueError(f"expected rate in (0, 1], got {rate}")
        if not isinstance(age, int) or (error_feedback and age < 2):
            raise ValueError(f"expected age >= 2 (the first round has nothing to add: take error_feedback=False), got {age!r}")
        self.rate = rate
        self.error_feedback = error_feedback
        self.age = age if error_feedback else 1
        self.residual: torch.Tensor | None = None

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(zeroed=1 - self.rate)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        flat = update.flatten()
        if self.residual is not None:
            flat = flat + self.residual
        kept = max(1, round(self.rate * flat.shape[1]))
        sent = flat * largest(flat.abs(), kept)
        if self.error_feedback:
            self.residual = (flat - sent).detach()
        return update.like(sent)

    def expected(self, update: Update, *, observed: Update) -> Update:
        # Which entries were sent is visible. What a client had left out of other batches is not known, and is zero on average.
        return update.map(lambda name, tensor: tensor * (observed.tensors[name] != 0))

    def combined(self, updates: Iterable[Update]) -> Update:
        """What the rounds say of one gradient: their mean, and more of what was sent more than once.

        An entry that is sent starts again from nothing: sent next ``m`` rounds later, it is ``m`` times the gradient. So all that was
        sent of it after the first time, over the rounds that this took, is the gradient, exactly, where neither noise nor another
        client is in it. What was sent once has in it what had been left out of other batches, and its mean over all rounds is nearest.
        """
        if not self.error_feedback:
            return Update.mean(updates)
        one_by_one = iter(updates)
        start = next(one_by_one)
        found = {name: _Entries(tensor) for name, tensor in start.tensors.items()}
        rounds = 1
        for rounds, update in enumerate(one_by_one, start=2):
            for name, tensor in update.tensors.items():
                found[name].add(tensor, rounds)
        return start if rounds == 1 else start.map(lambda name, _: found[name].gradient(rounds))


class _Entries:
    """What was sent of each entry of a tensor."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._total = self._once = tensor
        self._first = self._last = (tensor != 0).to(tensor.dtype)  # rounds; 0 of what was not sent yet

    def add(self, tensor: torch.Tensor, number: int) -> None:
        sent = tensor != 0
        new = sent & (self._first == 0)
        self._total = self._total + tensor
        self._once = torch.where(new, tensor, self._once)
        self._first = torch.where(new, number, self._first)
        self._last = torch.where(sent, number, self._last)

    def gradient(self, rounds: int) -> torch.Tensor:
        took = self._last - self._first
        return torch.where(took > 0, (self._total - self._once) / took.clamp_min(1), self._total / rounds)
