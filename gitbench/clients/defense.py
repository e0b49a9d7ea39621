"""The defense: what a client does to batch, model or update before it sends."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gitbench.clients.data import Split
from gitbench.clients.procedure import Client
from gitbench.clients.update import Batch, Update
from gitbench.core.component import Component
from gitbench.core.errors import DefenseError
from gitbench.core.random import make_generator
from gitbench.identity.loading import build_part, checked_spec

_COPIES, _FEW_COPIES = 64, 4  # of an update that is_random() looks at; few of a large one
_ENTRIES = 2**20  # that make an update large, all copies together
_DRAWS = 4


@dataclass(frozen=True)
class Declared:
    """What a defense promises of every update that it sends. :mod:`gitbench.measure.conformance` checks it.

    Args:
        max_norm: no victim's update is longer (L2, over all tensors).
        zeroed: at least this share of each victim's entries is zero.
        noise_std: standard deviation of the noise on each entry.
        hides: the raw gradient is never sent.
    """

    max_norm: float | None = None
    zeroed: float | None = None
    noise_std: float | None = None
    hides: bool = False


class Defense(Component):
    """Base of all defenses. Most need :meth:`protect` only.

    Example::

        class Shrink(gitbench.Defense):
            def __init__(self, *, scale: float = 0.1):
                self.scale = scale

            def protect(self, update, *, generator):
                return update.map(lambda name, tensor: tensor * self.scale)

    All randomness comes from ``generator``, which lives on the CPU (see :func:`gitbench.randn_like`).
    """

    modalities: tuple[str, ...] | None = None
    """Names of the kinds of data that it can protect; None for all, which is right where it works on gradients."""
    needs_per_example: bool = False
    """True when :meth:`protect` reads ``update.per_example``."""
    needs_batch: bool = False
    """True when :meth:`protect` reads ``update.batch``: the model, the images and the labels of the client."""
    age: int = 1
    """How many rounds the clients have taken part in when their update leaks, this one included; the first that leaks of several.

    More than 1 for a defense that keeps something from round to round, in attributes of its own: a copy of
    it lives through all rounds with the same victims, and the attacker sees nothing of those before.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "rounds" in vars(cls):
            cls.age = vars(cls)["rounds"]
            del cls.rounds

    @property
    def rounds(self) -> int:
        """The name of :attr:`age` in 0.1, which still counts in a class and in an instance."""
        return self.age

    @rounds.setter
    def rounds(self, value: int) -> None:
        self.age = value

    def modify_model(self, model: nn.Module) -> nn.Module:
        """The model that server and client share under this defense. Public."""
        return model

    def local_model(self, model: nn.Module, *, public: Split | None, generator: torch.Generator) -> nn.Module:
        """The client's own copy, where it differs from what the attacker knows. Must not change ``model``."""
        return model

    def prepare(self, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The batch that is differentiated: inputs ``(V, B, C, H, W)`` and labels, made of inputs and class indices ``(V, B)``.

        The labels that are returned are class indices ``(V, B)``, or probabilities ``(V, B, classes)``.
        """
        return inputs, labels

    def prepare_batch(self, batch: Batch, *, public: Split | None, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for a defense that must know more than the batch: override it in place of :meth:`prepare`, which it calls.

        Args:
            batch: the model that the client will differentiate, and its images and labels; labels that a defense to the left has
                mixed are probabilities.
            public: the stand-in for the client's other data; None where there is none.
            generator: for what is drawn.
        """
        return self.prepare(batch.inputs, batch.labels, generator=generator)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        """The update that is sent, for all victims at once. Must not change its argument."""
        return update

    def expected(self, update: Update, *, observed: Update) -> Update:
        """The defense's deterministic part, differentiable: how an adaptive attacker sees its own gradient.

        By default :meth:`protect` itself where it is deterministic (see :func:`is_random`) and can be
        differentiated, and the identity where it is not. Override it where more is known.

        Args:
            update: the attacker's gradient; ``per_example`` and ``batch`` are there when the defense needs them, of its candidates.
            observed: what the client sent, for what it reveals (which entries were pruned, say).
        """
        return update if is_random(self, update) else _through(self, update)

    def combined(self, updates: Iterable[Update]) -> Update:
        """Several rounds of the same batches and weights as one update: what an adaptive attacker makes of what it saw.

        By default the mean: noise that is drawn afresh in each round averages out. Override it where more is known: of a mask that is
        drawn afresh ``gitbench.Update.mean(updates, skip_zeros=True)`` shows every entry that was ever sent. Must not change what
        it is given.

        Args:
            updates: of the same victims, as they were sent, oldest first; at least one. They may be made as they are asked for.
        """
        return Update.mean(updates)

    def declared(self, *, batch_size: int) -> Declared:
        """What this defense promises; checked before any attack runs. Nothing by default."""
        return Declared()

    def privacy_spent(self, *, sample_rate: float, steps: int, delta: float) -> float | None:
        """ε that a training run spends of one example (add or remove one); None, the default, of a defense that promises none.

        Args:
            sample_rate: share of the clients' examples that are in a step, drawn at random.
            steps: of the run, all of whose updates are seen.
            delta: the δ at which ε is reported.
        """
        return None

    def __or__(self, other: Defense) -> Composition:
        """This defense, then ``other``: what ``|`` is in a SPEC."""
        if not isinstance(other, Defense):
            return NotImplemented
        return Composition(defenses=[part for one in (self, other) for part in (one.defenses if isinstance(one, Composition) else (one,))])


def parts_of(defense: Defense) -> Sequence[Defense]:
    """The defenses that one is composed of, from left to right; itself where it is none of several."""
    return defense.defenses if type(defense) is Composition else (defense,)


def check_fits(defense: Defense, modality: str) -> None:
    """Refuse a defense that is one on other kinds of data.

    Raises:
        DefenseError: naming the part that is.
    """
    for part in parts_of(defense):
        if part.modalities is not None and modality not in part.modalities:
            raise DefenseError(f"The defense {part!r} is one on {' and '.join(part.modalities)} data, and this is {modality} data.")


def changes_batch(defense: Defense) -> bool:
    """Whether a defense has a say in which images are differentiated, with which labels."""
    overridden = ((type(part).prepare, type(part).prepare_batch) for part in parts_of(defense))
    return any(hooks != (Defense.prepare, Defense.prepare_batch) for hooks in overridden)


def is_random(defense: Defense, update: Update) -> bool:
    """Whether a defense's :meth:`~Defense.protect` depends on its generator, asked on many copies of some victims' updates.

    Many, because two draws may agree by chance where there is little to draw: a coin for each victim, say.

    Args:
        defense: it is left as it is.
        update: of at least one victim.
    """
    copies = max(_FEW_COPIES, min(_COPIES, _ENTRIES // sum(tensor[0].numel() for tensor in update.tensors.values())))
    some = update[torch.arange(copies) % len(update)].detach()
    sent = (_anew(defense).protect(some, generator=make_generator(seed)).flatten() for seed in range(_DRAWS))
    first = next(sent)
    return any(not torch.equal(first, other) for other in sent)


class Expectation:
    """What an adaptive attacker expects a defense to make of its own gradients: :meth:`Defense.expected`, for many calls.

    It remembers beside the defense which parts of it are random: that is asked once.

    Args:
        defense: a copy that is the attacker's own.
        client: whose updates it protects, where a client does more than to send its gradient.
    """

    def __init__(self, defense: Defense, client: Client | None = None) -> None:
        self.defense = defense
        self._client = client
        self._random: dict[int, bool] = {}

    def __call__(self, update: Update, *, observed: Update) -> Update:
        """The update that is expected to be sent, differentiable.

        Args:
            update: the attacker's gradient; ``per_example`` is there when the defense needs it.
            observed: what the client sent, in gradients.
        """
        if self._client is None:
            return self._expected(update, observed)
        return self._client.together(self._expected(self._client.each(update), self._client.each(observed)))

    @property
    def plain(self) -> bool:
        """Whether every update is expected as it is. What is random is known to be so once an update was seen."""
        return all(
            type(part).expected is Defense.expected and (type(part).protect is Defense.protect or self._random.get(index, False))
            for index, part in enumerate(self._parts)
        )

    @property
    def _parts(self) -> Sequence[Defense]:
        return parts_of(self.defense)

    def _expected(self, update: Update, observed: Update) -> Update:
        """Of what each client sends."""
        batch = update.batch
        for index, part in enumerate(self._parts):
            update = update if batch is None else update.of(batch)
            if type(part).expected is not Defense.expected:
                update = part.expected(update, observed=observed)
                continue
            if index not in self._random:
                self._random[index] = is_random(part, update)
            if not self._random[index]:
                update = _through(part, update)
        return update


def _through(defense: Defense, update: Update) -> Update:
    """An update through a deterministic defense; as it is where its slope would be lost."""
    protected = _anew(defense).protect(update, generator=make_generator(0))
    return update if _differentiable(update) and not _differentiable(protected) else protected


def _anew(defense: Defense) -> Defense:
    """A defense as a client's first round finds it: what it keeps is never the attacker's own gradient."""
    return defense if defense.age == 1 else fresh(defense)


def _differentiable(update: Update) -> bool:
    return any(tensor.requires_grad for tensor in update.tensors.values())


class Composition(Defense):
    """Several defenses, applied from left to right."""

    def __init__(self, *, defenses: Sequence[Defense]) -> None:
        self.defenses = tuple(defenses)
        self.needs_per_example = any(defense.needs_per_example for defense in defenses)
        self.needs_batch = any(defense.needs_batch for defense in defenses)
        self.age = max(defense.age for defense in defenses)

    def __repr__(self) -> str:
        return " | ".join(repr(defense) for defense in self.defenses)

    def modify_model(self, model: nn.Module) -> nn.Module:
        for defense in self.defenses:
            model = defense.modify_model(model)
        return model

    def local_model(self, model: nn.Module, *, public: Split | None, generator: torch.Generator) -> nn.Module:
        for defense in self.defenses:
            model = defense.local_model(model, public=public, generator=generator)
        return model

    def prepare(self, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        for defense in self.defenses:
            inputs, labels = defense.prepare(inputs, labels, generator=generator)
        return inputs, labels

    def prepare_batch(self, batch: Batch, *, public: Split | None, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        for defense in self.defenses:
            batch = Batch(batch.model, *defense.prepare_batch(batch, public=public, generator=generator))
        return batch.inputs, batch.labels

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        batch = update.batch
        for defense in self.defenses:
            update = defense.protect(update if batch is None else update.of(batch), generator=generator)
        return update

    def expected(self, update: Update, *, observed: Update) -> Update:
        batch = update.batch
        for defense in self.defenses:
            update = defense.expected(update if batch is None else update.of(batch), observed=observed)
        return update

    def combined(self, updates: Iterable[Update]) -> Update:
        # The last that knows of a better way than the mean: what it made is what is seen.
        own = [defense for defense in self.defenses if type(defense).combined is not Defense.combined]
        return own[-1].combined(updates) if own else Update.mean(updates)

    def privacy_spent(self, *, sample_rate: float, steps: int, delta: float) -> float | None:
        found = (defense.privacy_spent(sample_rate=sample_rate, steps=steps, delta=delta) for defense in self.defenses)
        return next((epsilon for epsilon in found if epsilon is not None), None)  # what follows works on what is private already

    def declared(self, *, batch_size: int) -> Declared:
        return self.defenses[-1].declared(batch_size=batch_size)  # what came before it may be undone


def load_defense(defense: str | Defense) -> Defense:
    """Build a defense from its SPEC; ``|`` composes. An instance is returned as it is.

    Raises:
        SpecError: unknown name or option, or a value that the defense refuses.
    """
    if isinstance(defense, Defense):
        return defense
    parts: list[Defense] = [build_part("defense", part, Defense) for part in checked_spec("defense", defense).parts]
    return parts[0] if len(parts) == 1 else Composition(defenses=parts)


def fresh(defense: Defense) -> Defense:
    """A copy of a defense, so that what a measurement leaves in it stays there.

    Raises:
        DefenseError: it cannot be copied.
    """
    try:
        return copy.deepcopy(defense)
    except Exception as error:
        raise DefenseError(
            f"The defense {defense!r} cannot be copied ({type(error).__name__}: {error}), and every measurement starts from a copy. "
            "Open files, locks and the like where they are needed, not in __init__."
        ) from error
