"""Does an update determine the images that explain it? What is counted and what is tried before a certificate is given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gitbench.attacker.observation import Observation
from gitbench.clients.client import expected_update, own_update
from gitbench.clients.update import Update
from gitbench.core.random import make_generator, randn_like

_STEPS = 32  # of conjugate gradients
_FOUND = 0.1  # of a random change's length: what is left of it at most where the update tells (nearly) all of it
_WRONG = 10 ** (-30 / 20)  # root mean square of a change that leaves 30 dB
# Of a tensor's norm. A change that makes less of it than the first is not seen. Where the steps did not come to an end, the second is
# asked for: more steps find weaker directions still (of lenet's 3072: 2.8e-2 after 32 steps, 1.5e-3 the weakest of all; measured).
_PRECISION = 1e-3
_TOLD = 1e-2


def determined(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor, *, compared: frozenset[str]) -> bool:
    """Whether images that explain what one victim sent are the only ones near by, as far as can be told.

    Two conditions. More numbers were sent than there are pixels (:func:`equations`). And no direction is found in which the images can
    go wrong unseen: from a random change of the images up to 32 steps of conjugate gradients take what the update tells of it. At a
    length of 30 dB, what is left must still change the update by more than the precision of a certificate; by ten times as much, unless
    it is less than a tenth of the whole by then. Behind ReLUs in convolutions nearly half of all directions may be unseen, though twice
    as many numbers are sent as there are pixels.

    Neither is a proof. Numbers may depend on each other; a few unseen directions among thousands are not found; and images that are far
    from these may explain the update as well.

    Args:
        observation: with ``parameters``, of that one victim.
        inputs: ``(1, B, C, H, W)``.
        labels: ``(1, B)``.
        compared: names of the tensors that say something, as opposed to zero.
    """
    pruned = _prunes(observation, inputs, labels)
    sent = equations(observation.model, Update({name: observation.update.tensors[name] for name in compared}), inputs, pruned=pruned)
    return int(sent) > inputs.numel() and not _unseen_direction(observation, inputs, labels, compared)


def equations(model: nn.Module, observed: Update, inputs: torch.Tensor, *, pruned: bool) -> torch.Tensor:
    """How many numbers of each victim's update are free to say something of the images, ``(V,)``.

    The gradient of a linear layer's or a convolution's weight has at most the rank of the rows that the layer was given: of ``m`` times
    ``n`` entries ``r (m + n - r)`` are free. So the gradient of a wide last layer, of one image, says what its input was, and no more.
    An output that is off sends zeros, which are not counted; nor is any zero where the defense makes zeros.

    Args:
        model: that made the update.
        observed: of ``V`` victims.
        inputs: ``(V, B, C, H, W)``; only their shape matters.
        pruned: whether the defense makes zeros.
    """
    rows = _rows(model, inputs[0])
    total = torch.zeros(len(observed), device=inputs.device, dtype=torch.long)
    for name, tensor in observed.tensors.items():
        matrix = (tensor != 0).flatten(2) if tensor.ndim > 2 else (tensor != 0).reshape(len(tensor), -1, 1)
        high = matrix.any(2).sum(1)
        wide = matrix.any(1).sum(1) if pruned else torch.full_like(high, matrix.shape[2])
        count = matrix.flatten(1).sum(1) if pruned else high * wide
        if name in rows:
            rank = torch.minimum(high, wide).clamp_max(rows[name])
            count = torch.minimum(count, rank * (high + wide - rank))
        total += count
    return total


def _rows(model: nn.Module, images: torch.Tensor) -> Mapping[str, int]:
    """How many rows each linear layer and convolution multiplies by its weight, of one batch ``(B, C, H, W)``, by the weight's name."""
    found: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _arguments: object, output: torch.Tensor) -> None:
            places = output.numel() // output.shape[-1 if isinstance(module, nn.Linear) else 1]
            found[name] = found.get(name, 0) + places * getattr(module, "groups", 1)

        return hook

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    handles = [module.register_forward_hook(watch(f"{name}.weight" if name else "weight")) for name, module in layers.items()]
    was = {module: module.training for module in model.modules()}
    try:
        model.eval()  # BatchNorm must not learn from a candidate
        with torch.no_grad():
            model(images)
    finally:
        for module, training in was.items():
            module.training = training
        for handle in handles:
            handle.remove()
    return found


def _prunes(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether the defense makes zeros: tried on noise, whose gradient has none of its own but where an output is off."""
    if observation.expectation is None:
        return False
    noise = observation.modality.noise(tuple(inputs.shape), generator=make_generator(0, "noise")).to(inputs)
    defense = observation.expectation.defense
    raw = own_update(observation.model, noise, labels, client=observation.client, defense=defense)
    sent = _expected(observation, noise, labels)
    return any(bool(((tensor != 0) & (sent.tensors[name] == 0)).any()) for name, tensor in raw.tensors.items())


def _unseen_direction(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor, compared: frozenset[str]) -> bool:
    """Whether a change of the images is found that the update hardly tells.

    Conjugate gradients on the least squares ``|J z - J r|²`` for a random ``r``: what is left, ``r - z``, is first of all what ``J``
    makes little of. ``J`` is the Jacobian of the update, each tensor in units of its norm; it is never written out.
    """
    with torch.enable_grad():
        images = inputs.detach().clone().requires_grad_()
        tensors = [tensor for name, tensor in _expected(observation, images, labels).tensors.items() if name in compared]
        flat = torch.cat([(tensor / tensor.detach().norm()).flatten() for tensor in tensors])
        weights = torch.zeros_like(flat, requires_grad=True)
        (pulled,) = torch.autograd.grad(flat, images, weights, create_graph=True)
    sizes = [tensor.numel() for tensor in tensors]

    def back(change: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(flat, images, change, retain_graph=True)[0]

    def forth(change: torch.Tensor) -> torch.Tensor:
        # What is pulled back is linear in the weights: its slope is the other direction.
        return torch.autograd.grad(pulled, weights, change, retain_graph=True)[0]

    left = randn_like(inputs, make_generator(0, "certificate"))
    left = left / left.norm()
    seen = forth(left)
    slope = back(seen)
    step, square = slope, slope.square().sum()
    wrong, told = _WRONG * math.sqrt(inputs.numel()), 0.0
    for _ in range(_STEPS):
        pushed = forth(step)
        length = square / pushed.square().sum().clamp_min(1e-30)
        left, seen = left - length * step, seen - length * pushed
        size = left.norm()
        if size < _FOUND:
            return False
        told = float(torch.stack([part.norm() for part in seen.split(sizes)]).max() / size) * wrong
        if not told > _PRECISION:
            return True
        slope, before = back(seen), square
        square = slope.square().sum()
        step = slope + square / before.clamp_min(1e-30) * step
    return told <= _TOLD


def _expected(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor) -> Update:
    return expected_update(
        observation.model, inputs, labels, expectation=observation.expectation, observed=observation.update, client=observation.client
    )
