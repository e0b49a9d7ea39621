"""Gradient matching: how far a candidate's update is from the observed one, per victim."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch.autograd import Function

from gitbench.attacker.observation import Observation
from gitbench.clients.client import expected_update, gradient_products
from gitbench.clients.differentiation import Aims, inner_products
from gitbench.clients.procedures.fedsgd import FedSgd
from gitbench.clients.task import targets_for
from gitbench.clients.update import Update

Distance = Literal["l2", "cosine", "layerwise", "weighted"]
DISTANCES: tuple[str, ...] = get_args(Distance)

_SCALE_WEIGHT = 0.03  # chosen on held-out public photos (benchmarks/held_out.py)
_SMALLEST = 1e-8  # squared norm of a layer, in units of the largest one's, below which it is divided by no less
_TINY = 1e-24
Init = Literal["normal", "grey"]
INITS: tuple[str, ...] = get_args(Init)


class Objective:
    """Distance between the observed update and that of candidate inputs.

    The attacker's own gradient passes through the deterministic part of the defense, where its definition is granted.

    Args:
        observation: needs ``parameters``.
        distance: ``l2`` is the summed squared difference (DLG), ``cosine`` is one minus the cosine
            over all layers side by side (IG), ``layerwise`` the mean over layers of one minus each
            layer's cosine plus 0.03 times the squared logarithm of its norm's ratio: no layer drowns
            the others, and the scale, which a cosine is blind to, counts a little. ``weighted`` is ``cosine`` with each layer's
            gradients divided by the fourth root of the norm of what was observed of it: large layers drown the others less.
    """

    def __init__(self, observation: Observation, *, distance: Distance) -> None:
        self._model = observation.model
        self._observed = observation.update
        # Of a parameter that candidates go past, nothing can be matched.
        past = observation.modality.bypassed(self._model)
        self._compared = {name: tensor for name, tensor in observation.update.tensors.items() if name not in past}
        self._aims = Aims(self._compared)
        _, self._squares = inner_products(self._compared, self._compared)
        self._expectation, self._client = observation.expectation, observation.client
        self._distance = distance

    @property
    def scale(self) -> torch.Tensor:
        """The squared length of what is compared, ``(V,)``."""
        return Update(self._compared).flatten().square().sum(1)

    @property
    def compared(self) -> list[torch.Tensor]:
        """What is compared, of each tensor ``(V, entries)``."""
        return [tensor.flatten(1) for tensor in self._compared.values()]

    def differences(self, inputs: torch.Tensor, labels: torch.Tensor | None) -> list[torch.Tensor]:
        """Of each tensor of :attr:`compared` how far the candidates' is from it, the same shapes; arguments as below."""
        labels = targets_for(self._model, inputs) if labels is None else labels
        mine = self._expected(inputs, labels)
        return [(mine[name] - tensor).flatten(1) for name, tensor in self._compared.items()]

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        """Distances ``(V,)`` of candidates in their continuous form ``(V, B, ...)``; differentiable.

        Args:
            inputs: of images the images.
            labels: as for :func:`gitbench.clients.client.gradients`; None where they follow from the inputs.
        """
        labels = targets_for(self._model, inputs) if labels is None else labels
        if self._distance == "l2":
            mine, theirs = self._expected(inputs, labels), self._compared
            return torch.stack([_Square.apply((mine[name] - tensor).flatten(1)) for name, tensor in theirs.items()]).sum(0)
        dots, squares = self._products(inputs, labels)
        if self._distance == "layerwise":
            ratio = squares.clamp_min(_TINY).log() - self._squares.clamp_min(_TINY).log()
            return (_cosine_distance(dots, squares, self._squares) + _SCALE_WEIGHT * (ratio / 2).square()).mean(0)
        weights = 1.0 if self._distance == "cosine" else self._levelling
        return _cosine_distance(*((weights * products).sum(0) for products in (dots, squares, self._squares)))

    @functools.cached_property
    def _levelling(self) -> torch.Tensor:
        """What ``weighted`` multiplies products of gradients with, ``(tensors, V)``; held-out images chose the root (docs/attacks.md)."""
        squares = self._squares.clamp_min(_TINY).maximum(_SMALLEST * self._squares.amax(0))
        return 1 / squares.sqrt().sqrt()  # roots round alike for any number of victims, which a power does not

    def _products(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inner products of the expected update with the observed one and with itself, each ``(tensors, V)``."""
        if type(self._client) is FedSgd and (self._expectation is None or self._expectation.plain):
            return gradient_products(self._model, inputs, labels, self._aims)
        return inner_products(self._expected(inputs, labels), self._compared)

    def _expected(self, inputs: torch.Tensor, labels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return expected_update(
            self._model, inputs, labels, expectation=self._expectation, observed=self._observed, client=self._client
        ).tensors


class _Square(Function):
    """The sum of squares of each row of a matrix ``(V, D)``; its slope is written in one pass instead of three."""

    @staticmethod
    def forward(ctx: Any, apart: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(apart)
        return apart.square().sum(1)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> torch.Tensor:
        (apart,) = ctx.saved_tensors
        found: torch.Tensor = apart * (2 * slopes[0])[:, None]
        return found


def _cosine_distance(dots: torch.Tensor, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """One minus the cosine, from dot products and squared norms; 1 where a gradient is zero."""
    return 1 - dots / (mine * theirs).clamp_min(_TINY).sqrt()


def total_variation(inputs: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels, down plus across: ``(V, B, C, H, W)`` to ``(V,)``."""
    down = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().mean(dim=(1, 2, 3, 4))
    across = (inputs[..., :, 1:] - inputs[..., :, :-1]).abs().mean(dim=(1, 2, 3, 4))
    return down + across
