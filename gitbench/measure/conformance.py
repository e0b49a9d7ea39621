"""Is a defense what it says it is? Asked in milliseconds, before any attack runs."""

from __future__ import annotations

import math

import torch
from torch import nn

from gitbench.clients.client import blaming, gradients, protect
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, fresh
from gitbench.clients.model import classes_of
from gitbench.clients.stochastic import drawing
from gitbench.clients.update import Batch, Update
from gitbench.core.errors import DefenseError
from gitbench.core.random import make_generator

_SEEDS = 16  # draws that must not all be the same for two victims: a fair coin is thrown, too
_MIXED = 3  # draws in which no victim's update may depend on the others: a random order may keep one in its place
_MANY, _FEW = 16, 4  # victims among which this is tried
_LARGE = 20_000_000  # parameters, times examples, above which a few are enough
_LOUDER = 3.0  # the others' updates, so that what is made of them all changes
_ROUNDING = 1e-4  # relative slack of a declared bound
_SIGMAS = 6.0  # of an estimate of the noise's deviation


def check_conformance(defense: Defense, model: nn.Module, public: Split, *, batch_size: int) -> bool:
    """Check a defense on three batches of public images, the first two of which are the same.

    Shapes, types and finiteness of what it returns; that it leaves its arguments as they were; that the same
    seed gives the same update, and two victims of the same batch get their own randomness; that what a victim
    sends does not depend on the others; that what it declares (:meth:`gitbench.Defense.declared`) is true.
    State does not carry over: each check has a copy.

    Args:
        defense: to check.
        model: that the server and the clients share.
        public: images to try it on.
        batch_size: of each victim.

    Returns:
        Whether the defense draws random numbers.

    Raises:
        DefenseError: naming the defense, what was expected, what was found and what to do.
    """
    check = _Check(defense, model, public, batch_size)
    first, again, other = check.sent(0), check.sent(0), check.sent(1)
    if not _same(first, again):
        raise check.error(
            "sent two different updates for the same seed, expected the same",
            "Draw all randomness from the generator it is given (gitbench.randn_like), and keep no state between calls.",
        )
    random = not _same(first, other)
    if random and all(_same(_row(sent, 0), _row(sent, 1)) for sent in (first, other, *(check.sent(seed) for seed in range(2, _SEEDS)))):
        raise check.error(
            "drew the same randomness for every victim, expected fresh randomness for each",
            "Draw tensors of the stacked shape (V, ...): who knows one victim's update would know everybody's noise.",
        )
    size = sum(tensor[0].numel() for tensor in first.tensors.values()) * batch_size
    for seed in range(_MIXED if random else 1):
        # What is drawn for the first victim is drawn first; for the last one, how much was drawn before may depend on the others.
        if check.mixed(seed, victims=_MANY if size * _MANY <= _LARGE else _FEW, rows=(0,) if random else (0, -1)):
            raise check.error(
                "made a victim's update depend on other victims, expected each to send what its own batch gives",
                "Victims are stacked along the first dimension, and are different clients: reduce over the others only, "
                "tensor.flatten(1).norm(dim=1), for example.",
            )
    check.declared(first, other)
    return random


class _Check:
    def __init__(self, defense: Defense, model: nn.Module, public: Split, batch_size: int) -> None:
        self._defense = defense
        self._model = model
        self._batch_size = batch_size
        self._public = public
        self._kept: dict[int | None, tuple[torch.Tensor, torch.Tensor, Update]] = {}
        rows = torch.arange(2 * batch_size).reshape(2, batch_size)[[0, 0, 1]] % len(public)
        self._inputs, self._labels = public.inputs[rows], public.labels[rows]
        self.raw: Update | None = None

    def sent(self, seed: int) -> Update:
        defense = fresh(self._defense)
        generator = make_generator(seed, "conformance")
        inputs, labels = self._inputs.clone(), self._labels.clone()
        with blaming(self._defense):
            batch = defense.prepare_batch(Batch(self._model, inputs, labels), public=self._public, generator=generator)
        prepared = self._prepared(batch)
        if not torch.equal(inputs, self._inputs) or not torch.equal(labels, self._labels):
            raise self.error("changed the batch that prepare() was given, expected it untouched", "Return new tensors.")
        local = drawing(self._model, generator)
        raw = gradients(local, *prepared, per_example=defense.needs_per_example).of(self._batch(local, *prepared))
        if local is self._model and all(torch.equal(part[0], part[1]) for part in prepared):
            raw = _twins(raw)  # the last bit may depend on the place in the stack
        before = raw.detach()
        found = protect(raw, defense=defense, generator=generator)
        if not _same(raw, before):
            raise self.error("changed the update that protect() was given, expected it untouched", "Return update.map(...) instead.")
        self.raw = before
        return found

    def mixed(self, seed: int, *, victims: int, rows: tuple[int, ...]) -> bool:
        """Whether one of some victims, each at a place of ``rows``, sends something else when all others do."""
        alone = self._among(seed, victims, None)
        for row in rows:
            among = self._among(seed, victims, row)
            if not torch.allclose(alone[row], among[row], rtol=_ROUNDING, atol=_ROUNDING * float(alone[row].abs().max())):
                return True
        return False

    def _among(self, seed: int, victims: int, kept: int | None) -> torch.Tensor:
        """What some victims send, ``(V, D)``; all but one with other images and longer updates, unless ``kept`` is None."""
        chosen = torch.arange(victims)
        if kept is not None:
            chosen = chosen + victims
            chosen[kept] -= victims
        rows = (chosen[:, None] * self._batch_size + torch.arange(self._batch_size)) % len(self._public)
        defense, generator = fresh(self._defense), make_generator(seed, "conformance")
        inputs, labels = self._public.inputs[rows], self._public.labels[rows]
        with blaming(self._defense):
            inputs, labels = defense.prepare_batch(Batch(self._model, inputs, labels), public=self._public, generator=generator)
        local = drawing(self._model, generator)
        raw = self._gradients(kept, local, inputs, labels, defense.needs_per_example)
        return protect(raw if kept is None else _louder(raw, kept), defense=defense, generator=generator).flatten()

    def _gradients(self, which: int | None, local: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, per_example: bool) -> Update:
        """Computed once for all draws, unless the defense makes other batches of them, or the model draws."""
        kept = self._kept.get(which)
        if kept is None or local is not self._model or not (torch.equal(kept[0], inputs) and torch.equal(kept[1], labels)):
            raw = gradients(local, inputs, labels, per_example=per_example).of(self._batch(local, inputs, labels))
            kept = self._kept[which] = inputs, labels, raw
        return kept[2]

    def _batch(self, local: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Batch | None:
        return Batch(local, inputs, labels) if self._defense.needs_batch else None

    def _prepared(self, batch: object) -> tuple[torch.Tensor, torch.Tensor]:
        found = batch if isinstance(batch, tuple) and len(batch) == 2 else None
        if found is None or not all(isinstance(part, torch.Tensor) for part in found):
            raise self.error(f"returned {type(batch).__name__} from prepare(), expected inputs and labels", "Return two tensors.")
        inputs, labels = found
        wanted = (len(self._inputs), *self._inputs.shape[2:])
        if inputs.ndim != self._inputs.ndim or (len(inputs), *inputs.shape[2:]) != wanted or labels.shape[:2] != inputs.shape[:2]:
            raise self.error(
                f"returned inputs {tuple(inputs.shape)} and labels {tuple(labels.shape)} from prepare(), expected "
                f"{tuple(self._inputs.shape)} and {tuple(self._labels.shape)}; only the batch's size may change",
                "Victims come first, then the batch.",
            )
        if inputs.dtype != self._inputs.dtype or inputs.device != self._inputs.device or not torch.isfinite(inputs).all():
            raise self.error(
                f"returned {inputs.dtype} inputs on {inputs.device} from prepare(), expected finite {self._inputs.dtype} on "
                f"{self._inputs.device}",
                "Keep type and device, and avoid NaN.",
            )
        self._check_labels(labels)
        return inputs, labels

    def _check_labels(self, labels: torch.Tensor) -> None:
        """Class indices ``(V, B)``, or probabilities ``(V, B, classes)``."""
        if not labels.is_floating_point():
            fit = labels.ndim == self._labels.ndim
        else:
            fit = labels.ndim == self._labels.ndim + 1 and labels.shape[-1] == classes_of(self._model) and float(labels.min()) >= 0
            fit = fit and float((labels.sum(-1) - 1).abs().max()) < _ROUNDING
        if not fit:
            raise self.error(
                f"returned {labels.dtype} labels {tuple(labels.shape)} from prepare(), expected class indices (V, B) or probabilities "
                "(V, B, classes), which add up to 1",
                "Return the labels as they came, or mix one_hot(labels, classes).float() with weights that add up to 1.",
            )

    def declared(self, first: Update, other: Update) -> None:
        promised = self._defense.declared(batch_size=self._batch_size)
        flat = first.flatten()
        if promised.max_norm is not None:
            norm = float(flat.norm(dim=1).max())
            if norm > promised.max_norm * (1 + _ROUNDING):
                raise self.error(f"declares updates no longer than {promised.max_norm:g}, sent one of {norm:.4g}", _DECLARATION)
        if promised.zeroed is not None:
            share = float((flat == 0).double().mean(1).min())
            slack = 0.5 * len(first.tensors) / flat.shape[1]  # each tensor rounds
            if share < promised.zeroed - slack - 1e-9:
                raise self.error(f"declares that it zeroes {promised.zeroed:.2%} of the entries, zeroed {share:.2%}", _DECLARATION)
        if promised.noise_std is not None:
            # The difference of two draws: what is not noise drops out.
            difference = (flat - other.flatten())[1:].flatten().double()
            found = float(difference.square().mean().sqrt()) / math.sqrt(2)
            slack = promised.noise_std * (_SIGMAS / math.sqrt(2 * difference.numel()) + _ROUNDING)
            if abs(found - promised.noise_std) > slack:
                raise self.error(f"declares noise of standard deviation {promised.noise_std:g}, adds {found:.4g}", _DECLARATION)
        if promised.hides and self.raw is not None and any(_same(_row(first, row), _row(self.raw, row)) for row in range(flat.shape[0])):
            raise self.error("declares that it never sends the raw gradient, and sent it", _DECLARATION)

    def error(self, found: str, to_do: str) -> DefenseError:
        return DefenseError(f"The defense {self._defense!r} {found}. {to_do}")


_DECLARATION = "Correct protect() or declared()."


def _same(one: Update, other: Update) -> bool:
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())


def _row(update: Update, row: int) -> Update:
    return update.map(lambda _, tensor: tensor[row])


def _twins(update: Update) -> Update:
    """With the first victim's update in the second's place."""
    return Update.cat([update[:1], update[:1], update[2:]])


def _louder(update: Update, kept: int) -> Update:
    """With the updates of all victims but one multiplied."""

    def scaled(tensor: torch.Tensor) -> torch.Tensor:
        louder = tensor * _LOUDER
        louder[kept] = tensor[kept]
        return louder

    return update.map_all(scaled)
