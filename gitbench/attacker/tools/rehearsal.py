"""What an attacker learns about a defense by applying it to its own gradients: the noise that it adds, and how it may mislead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.clients.client import blaming, own_update
from gitbench.clients.defense import Expectation
from gitbench.clients.model import classes_of
from gitbench.clients.task import own_targets, targets_for
from gitbench.clients.update import Update, per_victim
from gitbench.core.errors import ModelError
from gitbench.core.random import make_generator, randn_like

Scale = Literal["known", "update", "tensor"]

_EXAMPLES = 64
_CLEARER = 0.5  # of the squared departure: what is left at most where the scale is taken as unknown
_SLOPE = 1e-6  # of what scaling alone would have


@dataclass(frozen=True)
class Rehearsal:
    """How sent updates depart from what the attacker expects of its own gradient.

    Args:
        deviation: parameter name to the root mean square of the departure, per entry.
        sloped: whether gradients pass through the defense's deterministic part. Where they do not (it rounds, say), that
            part is not expected: the departure then holds what it changes.
        scale: ``known``, or unknown for each ``update`` or each ``tensor``.
        labels: share of the batches whose labels can be read off what is sent.
        raw_labels: the same of the raw gradients.
    """

    deviation: Mapping[str, float]
    sloped: bool = True
    scale: Scale = "known"
    labels: float = 1.0
    raw_labels: float = 1.0

    @property
    def flags(self) -> frozenset[str]:
        """Names in :data:`gitbench.judge.flags.FLAGS`: in which ways the defense misleads attacks without hiding anything."""
        found = {
            "no-slope": not self.sloped,
            "random-scale": self.scale != "known",
            "hides-labels": self.labels < self.raw_labels / 2,
        }
        return frozenset(name for name, raised in found.items() if raised)


def rehearse(observation: Observation, *, generator: torch.Generator) -> Rehearsal:
    """Play the client on public images (on noise where there are none) and look at what is sent.

    Args:
        observation: needs ``parameters``; without ``defense`` the updates' scale is taken as unknown.
        generator: for the choice of images and the defense's randomness.
    """
    expectation = observation.expectation
    if expectation is None:
        return Rehearsal(dict.fromkeys(observation.sent, 0.0), scale="update")
    inputs, labels, sent = _played(observation, max(8, _EXAMPLES // observation.batch_size), generator)
    own, expected = own_and_expected(observation, inputs, labels, sent=sent)
    sloped = _has_slope(expectation, own, sent)
    scale, deviation = _scale(sent, expected if sloped else own)
    if own_targets(observation.model) is not None:  # no attack reads labels that follow from the inputs
        return Rehearsal(deviation, sloped, scale)
    truth = labels.sort(dim=1).values
    # Together: what infers labels learns from public images first, the same for both.
    read, raw = _read(observation.with_update(Update.cat([sent, own])), truth.repeat(2, 1)).chunk(2)
    return Rehearsal(deviation, sloped, scale, float(read.float().mean()), float(raw.float().mean()))


def own_and_expected(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor, *, sent: Update) -> tuple[Update, Update]:
    """The gradients of known images, and what the defense is expected to make of them; the same where it is not granted.

    Args:
        observation: needs ``parameters``.
        inputs: ``(N, B, C, H, W)``.
        labels: ``(N, B)``.
        sent: what clients send for them.
    """
    own = _gradients(observation, inputs, labels).detach()
    if observation.expectation is None:
        return own, own
    with blaming(observation.expectation.defense):
        return own, observation.expectation(own, observed=sent).detach()


def sent_for(observation: Observation, inputs: torch.Tensor, *, generator: torch.Generator) -> tuple[torch.Tensor, Update]:
    """Random labels ``(N, B)``, sorted in each batch, for made up inputs ``(N, B, *shape)``, and what clients would send.

    Where labels follow from the inputs, those.
    """
    if own_targets(observation.model) is not None:
        labels = targets_for(observation.model, inputs)
        return labels, observation.protected(_gradients(observation, inputs, labels), generator=generator)
    labels = torch.randint(classes_of(observation.model), inputs.shape[:2], generator=generator).sort(dim=1).values.to(inputs.device)
    return labels, observation.protected(_gradients(observation, inputs, labels), generator=generator)


def departure(sent: Update, expected: Update) -> dict[str, float]:
    """How far what was sent is from what was expected: the root mean square of each tensor's difference."""
    return root_mean_squares(sent.map(lambda name, tensor: tensor - expected.tensors[name]))


def root_mean_squares(update: Update) -> dict[str, float]:
    """Of each tensor, over updates and entries."""
    return {name: float(tensor.double().square().mean().sqrt()) for name, tensor in update.tensors.items()}


def _read(observation: Observation, truth: torch.Tensor) -> torch.Tensor:
    """Of which batches the labels are read right, ``(N,)``; of none with a model whose last layer does not show them."""
    try:
        return (infer_labels(observation) == truth).all(1)
    except ModelError:
        return torch.zeros(len(truth), dtype=torch.bool)


def rescaled(update: Update, aim: Update, scale: Scale) -> Update:
    """``update`` at the scale that brings it nearest to ``aim``, where the scale is unknown. No gradient passes through the factors."""
    if scale == "known":
        return update
    dots = {name: (tensor.flatten(1) * aim.tensors[name].flatten(1)).sum(1).detach() for name, tensor in update.tensors.items()}
    squares = {name: tensor.flatten(1).square().sum(1).detach() for name, tensor in update.tensors.items()}
    if scale == "update":
        dots = dict.fromkeys(dots, torch.stack(list(dots.values())).sum(0))
        squares = dict.fromkeys(squares, torch.stack(list(squares.values())).sum(0))
    factors = {name: dots[name] / squares[name].clamp_min(1e-30) for name in dots}
    return update.map(lambda name, tensor: tensor * per_victim(factors[name], tensor))


def _played(observation: Observation, batches: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, Update]:
    """Batches ``(N, B, C, H, W)``, labels ``(N, B)`` and what clients would send."""
    if "public" in observation.granted:
        public = observation.public
        order = torch.randint(len(public), (batches, observation.batch_size), generator=generator)
        rows = order.to(public.inputs.device)
        return public.inputs[rows], public.labels[rows], observation.public_updates(order, generator=generator)
    shape = (batches, observation.batch_size, *observation.input_shape)
    inputs = observation.modality.noise(shape, generator=generator).to(observation.device)
    return inputs, *sent_for(observation, inputs, generator=generator)


def _gradients(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor) -> Update:
    expectation = observation.expectation
    defense = None if expectation is None else expectation.defense
    return own_update(observation.model, inputs, labels, client=observation.client, defense=defense)


def _scale(sent: Update, expected: Update) -> tuple[Scale, dict[str, float]]:
    """Whether the scale is known, and the departure: it is taken as unknown where that halves the squared departure."""
    chosen: Scale = "known"
    left = departure(sent, expected)
    free: tuple[Scale, ...] = ("update", "tensor")
    for scale in free:
        tried = departure(sent, rescaled(expected, sent, scale))
        if _total(sent, tried) < _CLEARER * _total(sent, left):
            chosen, left = scale, tried
    return chosen, left


def _total(sent: Update, deviation: Mapping[str, float]) -> float:
    return sum(deviation[name] ** 2 * tensor[0].numel() for name, tensor in sent.tensors.items())


def _has_slope(expectation: Expectation, own: Update, sent: Update) -> bool:
    """Whether the deterministic part of the defense changes with its argument; True where it returns zeros."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in own.tensors.items()}
    each = None if own.per_example is None else {name: tensor.clone().requires_grad_() for name, tensor in own.per_example.items()}
    with torch.enable_grad(), blaming(expectation.defense):
        expected = expectation(Update(leaves, each, own.batch), observed=sent)
        # Along a random direction: the length of a clipped update is constant, though the update is not.
        generator = make_generator(0, "slope")
        aim = torch.stack([(tensor * randn_like(tensor, generator)).sum() for tensor in expected.tensors.values()]).sum()
    known = math.sqrt(sum(float(tensor.detach().square().sum()) for tensor in expected.tensors.values()))
    if not known:
        return True
    if not aim.requires_grad:
        return False
    slopes = torch.autograd.grad(aim, [*leaves.values(), *(each or {}).values()], allow_unused=True)
    steepest = max((float(slope.abs().max()) for slope in slopes if slope is not None), default=0.0)
    longest = math.sqrt(sum(float(tensor.square().sum()) for tensor in own.tensors.values()))
    return steepest > _SLOPE * known / max(longest, 1e-30)
