"""The posterior of the images given all layers' gradients at once, for any model that can be differentiated twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.client import expected_update
from gitbench.clients.update import Update
from gitbench.core.random import randn_like

_HISTORY = 20
_GROWTH = 3.0  # of a batch's steps: on `lenet` seven in eight led nowhere, when each began with a whole one again
_PROBES = 64  # directions in the gradients' space that show the curvature, all victims together
_SMOOTH = 9  # neighbouring directions of the prior whose curvatures are averaged
_TINY = 1e-30


@dataclass(frozen=True)
class Fit:
    """Images ``(V, B, C, H, W)``, not cut to [0, 1], and the negative logarithm of their posterior, ``(V,)``."""

    images: torch.Tensor
    values: torch.Tensor


class Posterior:
    """``Σ_l |G_l(x) - Ĝ_l|² / 2σ_l² + (x - μ)ᵀ Σ⁻¹ (x - μ) / 2``, with the gradients as the defense would send them.

    Args:
        observation: needs ``parameters``.
        labels: ``(V, B)``, or probabilities ``(V, B, classes)``.
        prior: of one image.
        deviation: ``{name: (V,)}`` of the error of one entry of the update.
    """

    def __init__(self, observation: Observation, labels: torch.Tensor, prior: Gaussian, deviation: Mapping[str, torch.Tensor]) -> None:
        self._model = observation.model
        self._observed = observation.update
        self._expectation, self._client = observation.expectation, observation.client
        self._labels = labels
        self._shape = (*labels.shape[:2], *observation.input_shape)
        self._prior = Whitened(prior)
        self._deviation = deviation
        self._aim = self._flat(self._observed.tensors)

    def value(self, images: torch.Tensor) -> torch.Tensor:
        """Of images ``(V, B, C, H, W)``: ``(V,)``."""
        return self._objective(self._prior.coordinates(images))[0]

    def misfit(self, images: torch.Tensor) -> torch.Tensor:
        """Largest relative error of a tensor of the update that these images give, ``(V,)``."""
        with torch.no_grad():
            sent = self._sent(images).tensors
        parts = []
        for name, tensor in self._observed.tensors.items():
            size = tensor.flatten(1).norm(dim=1)
            parts.append(torch.where(size > 0, (sent[name] - tensor).flatten(1).norm(dim=1) / size.clamp_min(_TINY), 0))
        return torch.stack(parts).amax(0)

    def minimised(self, start: torch.Tensor, *, iterations: int, generator: torch.Generator, tell: Callable[[int], None]) -> Fit:
        """Where preconditioned L-BFGS ends; never worse than the start.

        Args:
            start: ``(V, B, C, H, W)``.
            iterations: one gradient of the posterior each.
            generator: for the directions that show the curvature.
            tell: told how many iterations are done.
        """
        points = self._prior.coordinates(start)
        inverse = self._curvature(start, generator)
        growth = _GROWTH if self._shape[1] > 1 else math.inf
        found = descend(
            points, self._objective, lambda vectors: vectors * inverse, iterations, history=_HISTORY, growth=growth, tell=tell
        )  # fmt: skip
        return Fit(self._prior.images(found, self._shape), self._objective(found)[0])

    def _curvature(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Inverse of the diagonal of ``JᵀJ + 1``, averaged over victims and random directions: ``(n,)``."""
        total = torch.zeros(math.prod(self._shape[2:]), device=images.device)
        rounds = max(1, _PROBES // len(images))
        for _ in range(rounds):
            inputs = images.detach().requires_grad_()
            flat = self._flat(self._sent(inputs).tensors)
            (slope,) = torch.autograd.grad((flat * randn_like(flat, generator)).sum(), inputs)
            total += self._prior.slope(slope).square().reshape(-1, len(total)).mean(0)
        padded = torch.nn.functional.pad(total[None, None] / rounds, (_SMOOTH // 2, _SMOOTH // 2), mode="replicate")
        smooth = torch.nn.functional.avg_pool1d(padded, _SMOOTH, stride=1)[0, 0] if self._prior.rotated else total / rounds
        return (1 / (1 + smooth)).repeat(self._shape[1])

    def _objective(self, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = self._prior.images(points, self._shape).detach().requires_grad_()
        with torch.enable_grad():
            values = (self._flat(self._sent(images).tensors) - self._aim).square().sum(1) / 2
            (slope,) = torch.autograd.grad(values.sum(), images)
        found = values.detach() + points.square().sum(1) / 2
        gradient = self._prior.slope(slope) + points
        return torch.where(found.isfinite(), found, math.inf), torch.where(gradient.isfinite(), gradient, 0)

    def _sent(self, images: torch.Tensor) -> Update:
        return expected_update(
            self._model, images, self._labels, expectation=self._expectation, observed=self._observed, client=self._client
        )

    def _flat(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([tensors[name].flatten(1) / deviation[:, None] for name, deviation in self._deviation.items()], dim=1)
