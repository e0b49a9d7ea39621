"""Gradient matching: how far a candidate's update is from the observed one, per victim."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch

from gitbench.attacker.observation import Observation
from gitbench.clients.client import expected_update, gradient_products
from gitbench.clients.differentiation import Aims, inner_products
from gitbench.clients.procedures.fedsgd import FedSgd

Distance = Literal["l2", "cosine", "layerwise"]
DISTANCES: tuple[str, ...] = get_args(Distance)

_SCALE_WEIGHT = 0.03  # chosen on held-out public photos (benchmarks/held_out.py)
_TINY = 1e-24
Init = Literal["normal", "grey"]
INITS: tuple[str, ...] = get_args(Init)


def initial_images(shape: Sequence[int], *, init: Init, generator: torch.Generator) -> torch.Tensor:
    """Random starts: ``normal`` is N(0, 1) as DLG and IG were published, ``grey`` is N(0.5, 0.1²).

    Grey starts inside the pixels' range and nearly flat, where a sigmoid network is not saturated
    (docs/attacks.md has the figures).
    """
    drawn = torch.randn(tuple(shape), generator=generator)
    return 0.5 + 0.1 * drawn if init == "grey" else drawn


class Objective:
    """Distance between the observed update and that of candidate inputs.

    The attacker's own gradient passes through the deterministic part of the defense, where its definition is granted.

    Args:
        observation: needs ``parameters``.
        distance: ``l2`` is the summed squared difference (DLG), ``cosine`` is one minus the cosine
            over all layers side by side (IG), ``layerwise`` the mean over layers of one minus each
            layer's cosine plus 0.03 times the squared logarithm of its norm's ratio: no layer drowns
            the others, and the scale, which a cosine is blind to, counts a little.
    """

    def __init__(self, observation: Observation, *, distance: Distance) -> None:
        self._model = observation.model
        self._observed = observation.update
        self._aims = Aims(observation.update.tensors)
        _, self._squares = inner_products(observation.update.tensors, observation.update.tensors)
        self._expectation, self._client = observation.expectation, observation.client
        self._distance = distance

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Distances ``(V,)`` of candidates ``(V, B, C, H, W)``; differentiable."""
        if self._distance == "l2":
            mine, theirs = self._expected(inputs, labels), self._observed.tensors
            return torch.stack([(mine[name] - tensor).flatten(1).square().sum(1) for name, tensor in theirs.items()]).sum(0)
        dots, squares = self._products(inputs, labels)
        if self._distance == "cosine":
            return _cosine_distance(dots.sum(0), squares.sum(0), self._squares.sum(0))
        ratio = squares.clamp_min(_TINY).log() - self._squares.clamp_min(_TINY).log()
        return (_cosine_distance(dots, squares, self._squares) + _SCALE_WEIGHT * (ratio / 2).square()).mean(0)

    def _products(self, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inner products of the expected update with the observed one and with itself, each ``(tensors, V)``."""
        if type(self._client) is FedSgd and (self._expectation is None or self._expectation.plain):
            return gradient_products(self._model, inputs, labels, self._aims)
        return inner_products(self._expected(inputs, labels), self._observed.tensors)

    def _expected(self, inputs: torch.Tensor, labels: torch.Tensor) -> Mapping[str, torch.Tensor]:
        return expected_update(
            self._model, inputs, labels, expectation=self._expectation, observed=self._observed, client=self._client
        ).tensors


def _cosine_distance(dots: torch.Tensor, mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """One minus the cosine, from dot products and squared norms; 1 where a gradient is zero."""
    return 1 - dots / (mine * theirs).clamp_min(_TINY).sqrt()


def total_variation(inputs: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring pixels, down plus across: ``(V, B, C, H, W)`` to ``(V,)``."""
    down = (inputs[..., 1:, :] - inputs[..., :-1, :]).abs().mean(dim=(1, 2, 3, 4))
    across = (inputs[..., :, 1:] - inputs[..., :, :-1]).abs().mean(dim=(1, 2, 3, 4))
    return down + across
