"""What an attack gets to see: the update, and exactly the knowledge that the threat model grants."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import nn

from gitbench.attacker.contents import BatchNormStatistics, Contents, of_the_same_victims
from gitbench.attacker.granted import granted_or_raise
from gitbench.attacker.players import Players, at_once
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, Expectation, fresh, load_defense
from gitbench.clients.modalities.image import ImageData
from gitbench.clients.model import digest_of_values, without_values
from gitbench.clients.procedure import Client, load_client
from gitbench.clients.rounds import combined, for_each
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError, NotGrantedError
from gitbench.core.modality import Modality
from gitbench.identity.threat import Knowledge

_KEPT = 64
Learned = TypeVar("Learned")


class Observation:
    """Update plus knowledge. Reading what is not granted raises :class:`NotGrantedError`.

    Args:
        update: of ``V`` victims, as it was sent; or those of several rounds of the same batches and weights, oldest first.
        earlier: updates of the same victims from rounds before, of other weights say, oldest first.
        model: the attacker's copy of the model under attack (stale under parameter drift).
        input_shape: of one input; of an image ``(C, H, W)``.
        batch_size: inputs per victim, all its clients together; taken from ``labels`` when these are given.
        labels: ``(V, B)``, if granted.
        public: the attacker's own data, if granted.
        client: how the clients made it, which the server asked them to, or its SPEC; None is ``fedsgd``.
        defense: the defense's definition or its SPEC, if granted. It is copied: what a client keeps stays secret.
        batchnorm_statistics: of the private batches, if granted.
        parameters: False keeps the parameters secret: only the architecture is known then.
        modality: what kind of data an input is; None is an image.
    """

    __slots__ = ("_contents", "_update")

    def __init__(
        self,
        *,
        update: Update | Sequence[Update],
        earlier: Sequence[Update] = (),
        model: nn.Module,
        input_shape: tuple[int, ...],
        batch_size: int | None = None,
        labels: torch.Tensor | None = None,
        public: Split | None = None,
        client: Client | str | None = None,
        defense: Defense | str | None = None,
        batchnorm_statistics: BatchNormStatistics | None = None,
        parameters: bool = True,
        modality: Modality | None = None,
    ) -> None:
        client = load_client(client)
        sent = (update,) if isinstance(update, Update) else tuple(update)
        if not sent:
            raise AttackError("Expected the update of at least one round, got none.")
        self._contents = Contents(
            sent=for_each(client.in_gradients, of_the_same_victims(sent, sent[0])),
            # Of rounds in which nothing was drawn one says all.
            repeats=1 if all(one is sent[0] for one in sent) else len(sent),
            earlier=tuple(client.in_gradients(one) for one in of_the_same_victims(earlier, sent[0])),
            model=model,
            input_shape=input_shape,
            batch_size=batch_size or (labels.shape[1] if labels is not None else 1),
            labels=labels,
            public=public,
            client=client,
            expectation=None if defense is None else Expectation(fresh(load_defense(defense)), client),
            batchnorm_statistics=batchnorm_statistics,
            parameters=parameters,
            modality=modality or ImageData(),
        )
        self._combine()

    def _combine(self) -> None:
        """Make one update of what was sent: as the defense tells, where its definition is granted."""
        sent, expectation = self._contents.sent, self._contents.expectation
        self._update = combined(sent, defense=None if expectation is None else expectation.defense) if sent else None

    @property
    def granted(self) -> frozenset[Knowledge]:
        """The names of the knowledge that can be read."""
        contents = self._contents
        there: dict[Knowledge, bool] = {
            "architecture": contents.architecture,
            "parameters": contents.parameters,
            "labels": contents.labels is not None,
            "public": contents.public is not None,
            "defense": contents.expectation is not None,
            "batchnorm_statistics": contents.batchnorm_statistics is not None,
        }
        return frozenset(name for name, given in there.items() if given)

    @property
    def update(self) -> Update:
        """What the clients sent, in gradients (see :class:`gitbench.Client`): several rounds of the same batches and weights as one.

        Rounds are combined as :meth:`gitbench.Defense.combined` says where the defense is known, and averaged where it is not.
        Not there while an attack is fitted: fitting cannot depend on victims.
        """
        if self._update is None:
            raise NotGrantedError("An attack is fitted before it sees any update. Read observation.update in run().")
        return self._update

    @property
    def rounds(self) -> tuple[Update, ...]:
        """The updates of all rounds that the attacker saw, oldest first; of one round :attr:`update` is the last."""
        return (*self._contents.earlier, *(self._contents.sent or (self.update,)))

    @property
    def repeats(self) -> int:
        """How many rounds :attr:`update` is made of; 1 where all are alike."""
        return self._contents.repeats

    @property
    def victims(self) -> int:
        """How many; 0 while an attack is fitted."""
        return 0 if self._update is None else self._update.victims

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self._contents.input_shape

    @property
    def modality(self) -> Modality:
        """What kind of data an input is."""
        return self._contents.modality

    @property
    def batch_size(self) -> int:
        return self._contents.batch_size

    @property
    def device(self) -> torch.device:
        return next(self._contents.model.parameters()).device

    @property
    def chunk(self) -> int:
        """How many updates to ask for at once (:func:`at_once`). Where a defense needs the gradient of each example, these are counted."""
        expectation = self._contents.expectation
        return at_once(self.entries * (self.batch_size if expectation is not None and expectation.defense.needs_per_example else 1))

    @property
    def sent(self) -> Mapping[str, int]:
        """Names of the parameters that train, which are those of an update, and the entries of each."""
        return {name: parameter.numel() for name, parameter in trained_parameters(self._layers).items()}

    @property
    def entries(self) -> int:
        """Of one client's update."""
        return sum(self.sent.values())

    @property
    def architecture(self) -> nn.Module:
        """The model without any values (``meta`` device): its layers, names and shapes, and which layers share a parameter."""
        return without_values(self._layers)

    @property
    def model_digest(self) -> str:
        """Names the model's values, and which of them are frozen, without telling them."""
        return digest_of_values(self._layers)

    @property
    def _layers(self) -> nn.Module:
        return granted_or_raise("architecture", self._contents.model if self._contents.architecture else None)

    @property
    def model(self) -> nn.Module:
        """The attacker's copy of the model, with parameters."""
        return granted_or_raise("parameters", self._contents.model if self._contents.parameters else None)

    @property
    def labels(self) -> torch.Tensor:
        return granted_or_raise("labels", self._contents.labels)

    @property
    def public(self) -> Split:
        return granted_or_raise("public", self._contents.public)

    @property
    def defense(self) -> Defense:
        return granted_or_raise("defense", self._contents.expectation).defense

    @property
    def expectation(self) -> Expectation | None:
        """What the defense is expected to make of the attacker's own gradients; None where its definition is not granted."""
        return self._contents.expectation

    @property
    def client(self) -> Client:
        """How the clients made their updates."""
        return self._contents.client

    @property
    def batchnorm_statistics(self) -> BatchNormStatistics:
        return granted_or_raise("batchnorm_statistics", self._contents.batchnorm_statistics)

    def public_updates(self, indices: torch.Tensor, *, generator: torch.Generator, adapt: bool = True) -> Update:
        """Updates of public examples, as pairs to train on. Needs ``public``, not ``parameters``.

        The knowledge is that of GIT's setting: the attacker has seen clients send updates of data
        that it holds. It cannot ask for the update of an input of its own making. The defense is rehearsed where its
        definition is granted, and a drift of the parameters too, on samples of the attacker's own: where the client
        went stays unknown.

        Args:
            indices: ``(V, B)`` into the public split.
            generator: for the defense's randomness, drawn afresh at each call.
            adapt: False leaves the defense out.
        """
        if not adapt:
            return self.undefended().public_updates(indices, generator=generator)
        public = self.public
        index = indices.to(public.inputs.device)
        return self.players.updates(public.inputs[index], public.labels[index], generator=generator)

    def public_gradients(self, indices: torch.Tensor, *, generator: torch.Generator) -> Update:
        """The same before the defense protects them, so that one gradient can be protected many times."""
        public = self.public
        index = indices.to(public.inputs.device)
        return self.players.gradients(public.inputs[index], public.labels[index], generator=generator)

    def protected(self, raw: Update, *, generator: torch.Generator) -> Update:
        """Gradients as the defense would send them, in as many rounds; as they are where its definition is not granted."""
        return self.players.protected(raw, generator=generator)

    @property
    def players(self) -> Players:
        """The clients, played by the attacker."""
        contents = self._contents
        return Players(
            model=self._layers,
            client=contents.client,
            defense=None if contents.expectation is None else contents.expectation.defense,
            public=contents.public,
            batch_size=contents.batch_size,
            rounds=contents.repeats,
        )

    def restricted(self, knowledge: frozenset[Knowledge]) -> Observation:
        """The same observation with nothing granted beyond ``knowledge``."""
        contents = self._contents
        return self._replaced(
            labels=contents.labels if "labels" in knowledge else None,
            public=contents.public if "public" in knowledge else None,
            expectation=contents.expectation if "defense" in knowledge else None,
            batchnorm_statistics=contents.batchnorm_statistics if "batchnorm_statistics" in knowledge else None,
            parameters=contents.parameters and "parameters" in knowledge,
        )

    def without_model(self) -> Observation:
        """The same observation for who sees nothing of the model, not even its layers."""
        return self._replaced(architecture=False, parameters=False)

    def undefended(self) -> Observation:
        """The same observation for an attacker who does not know the defense, or does not want to rehearse it."""
        return self._replaced(expectation=None)

    def oblivious(self) -> Observation:
        """The same for an attacker who takes what was sent for the plain gradient of a batch."""
        return self._replaced(expectation=None, client=load_client(None), repeats=1)

    def without_update(self) -> Observation:
        """The knowledge alone, for fitting, without the public examples of :attr:`kept`."""
        public = self._contents.public
        if public is not None:
            mask = torch.ones(len(public), dtype=torch.bool)
            mask[self.kept] = False
            mask = mask.to(public.inputs.device)
            public = Split(public.inputs[mask], public.labels[mask])
        return self._replaced(sent=(), earlier=(), labels=None, batchnorm_statistics=None, public=public)

    @property
    def kept(self) -> torch.Tensor:
        """Indices of public examples that no attack is fitted on, evenly spaced: victims that an attacker may try itself on."""
        size = len(self.public)
        count = min(_KEPT, size // 8)
        return torch.arange(count) * size // max(1, count)

    def with_update(
        self, update: Update, *, labels: torch.Tensor | None = None, batchnorm_statistics: BatchNormStatistics | None = None
    ) -> Observation:
        """The same knowledge about another update, one that the attacker made: to try itself on.

        Args:
            update: of ``N`` victims, combined where there are several rounds.
            labels: theirs ``(N, B)``, where labels are granted; None keeps them secret.
            batchnorm_statistics: of their batches, likewise.
        """
        return self._replaced(sent=(update,), earlier=(), labels=labels, batchnorm_statistics=batchnorm_statistics)

    def of_victims(self, rows: torch.Tensor, *, labels: torch.Tensor) -> Observation:
        """Some of the victims only, with the attacker's own guess of their labels as if they were granted.

        Args:
            rows: ``(N,)`` which.
            labels: ``(N, B)``, or probabilities ``(N, B, classes)``, which not every attack can do with.
        """
        contents = self._contents
        statistics = contents.batchnorm_statistics
        return self._replaced(
            sent=for_each(lambda update: update[rows], contents.sent),
            earlier=tuple(update[rows] for update in contents.earlier),
            labels=labels,
            batchnorm_statistics=None
            if statistics is None
            else {name: (mean[rows], var[rows]) for name, (mean, var) in statistics.items()},
        )

    def of_model(self, model: nn.Module, *, update: Update | None = None, labels: torch.Tensor | None = None) -> Observation:
        """The same knowledge about plain gradients of another model; without an update, to fit an attack."""
        sent, client = () if update is None else (update,), load_client(None)
        plain = Expectation(load_defense("none"), client)
        return self._replaced(sent=sent, earlier=(), repeats=1, model=model, labels=labels, client=client, expectation=plain)

    def learned(self, name: str, learn: Callable[[], Learned]) -> Learned:
        """What an attacker learns of public data once, and uses again for other victims' updates.

        Args:
            name: of what is learned; the same name stands for the same thing.
            learn: must depend neither on the updates nor on what is granted of the victims.
        """
        found = self._contents.learned
        if name not in found:
            found[name] = learn()
        return cast("Learned", found[name])

    def remembering(self, learned: dict[str, object]) -> Observation:
        """The same, which takes what others :meth:`learned` of the same model, clients, defense and public data, and adds to it."""
        return self._replaced(learned=learned)

    def _replaced(self, **changes: object) -> Observation:
        other = object.__new__(Observation)
        other._contents = self._contents.replaced(**changes)
        other._combine()
        return other
