"""The clients as an attacker plays them: it knows what they do, and not what they draw."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.clients.client import after_earlier_rounds, local_gradients, protect
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, fresh
from gitbench.clients.procedure import Client
from gitbench.clients.rounds import changes_before, combined, sent_rounds
from gitbench.clients.update import Update

_MANY = 64
_NEAR = 2**24  # entries: more take memory, and are no quicker
_FEW, _ROOM = 8, 2**26  # so many are quicker than one after the other, as long as they stay near 256 MiB


def at_once(entries: int) -> int:
    """How many updates to compute at once: 64 of a small model, of a larger one as many as take 64 MiB, and eight where there is room.

    Those of one lot share what is drawn before the gradient is taken, a drift of the parameters say: of few lots an attack would learn
    few such draws.

    Args:
        entries: of the raw gradients that one update is made of.
    """
    return max(1, min(_MANY, max(_NEAR // entries, min(_FEW, _ROOM // entries))))


@dataclass(frozen=True, kw_only=True)
class Players:
    """Clients that send updates of the attacker's own images, in gradients.

    Args:
        model: as they receive it.
        client: how they make their updates.
        defense: theirs; None where its definition is not known.
        public: what conditions train on, and what earlier rounds are about.
        batch_size: images of each victim.
        rounds: in how many they send an update of the same batches; what they sent is combined.
    """

    model: nn.Module
    client: Client
    defense: Defense | None
    public: Split | None
    batch_size: int
    rounds: int

    def gradients(self, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator) -> Update:
        """Of images ``(V, B, C, H, W)`` with labels ``(V, B)``, in one round and before the defense protects them."""
        return self._gradients(inputs, labels, self.defense, generator)

    def protected(self, raw: Update, *, generator: torch.Generator) -> Update:
        """The same gradients as they are sent, protected afresh in each round."""
        if self.defense is None:
            return raw
        if self.rounds == 1:
            defense = self.defense if self.defense.age == 1 else self._aged(raw.victims, generator)
            return protect(raw, client=self.client, defense=defense, generator=generator)
        return self._combined(functools.partial(_itself, raw), self._aged(raw.victims, generator), generator)

    def updates(self, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator) -> Update:
        """What is sent for images ``(V, B, C, H, W)`` with labels ``(V, B)``; whatever is random is drawn afresh in each round."""
        if self.rounds == 1:
            return self.protected(self.gradients(inputs, labels, generator=generator), generator=generator)
        defense = None if self.defense is None else self._aged(len(labels), generator)
        return self._combined(functools.partial(self._gradients, inputs, labels, defense, generator), defense, generator)

    def changing(self, inputs: torch.Tensor, labels: torch.Tensor) -> bool:
        """Whether the gradients of the same images may differ from round to round, asked on some."""
        if self.rounds == 1:
            return False
        if self.defense is not None and changes_before(self.defense):
            return True
        generator = torch.Generator().manual_seed(0)
        before = generator.get_state()
        self.gradients(inputs, labels, generator=generator)
        return not torch.equal(before, generator.get_state())

    def _gradients(self, inputs: torch.Tensor, labels: torch.Tensor, defense: Defense | None, generator: torch.Generator) -> Update:
        return local_gradients(self.model, inputs, labels, client=self.client, defense=defense, generator=generator, public=self.public)

    def _aged(self, victims: int, generator: torch.Generator) -> Defense:
        """A copy of the defense that has lived through the rounds before."""
        assert self.defense is not None
        if self.defense.age == 1:
            return fresh(self.defense)
        sizes = {"victims": victims, "batch_size": self.batch_size}
        return after_earlier_rounds(self.defense, self.model, client=self.client, generator=generator, public=self.public, **sizes)

    def _combined(self, raw: functools.partial[Update], defense: Defense | None, generator: torch.Generator) -> Update:
        sent = sent_rounds(raw, rounds=self.rounds, client=self.client, defense=defense, generator=generator)
        return combined(sent, defense=self.defense)


def _itself(update: Update) -> Update:
    return update
