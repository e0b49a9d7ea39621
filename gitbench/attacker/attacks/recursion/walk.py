"""The walk down a chain of layers with known parameters: from the last layer's gradient to the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attacks.recursion.departure import ROUNDING
from gitbench.attacker.attacks.recursion.step import Estimate, System, solve
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Layer
from gitbench.attacker.tools.priors import Gaussian

_EDGE = 1e-6  # outputs closer to an activation's bounds than this tell nothing of its input
_TINY = 1e-30
_GRID, _ZOOMS = 65, 9


@dataclass(frozen=True)
class KnownWalk:
    """The closed-form recursion.

    Args:
        chain: the model's layers.
        weights: ``{name.weight, name.bias}``, in float64.
        priors: of each layer's input, in the chain's order.
        iterations: of conjugate gradients, where a layer needs them.
    """

    chain: Chain
    weights: Mapping[str, torch.Tensor]
    priors: tuple[Gaussian, ...]
    iterations: int

    def __call__(self, update: Mapping[str, torch.Tensor], labels: torch.Tensor, *, noise: Mapping[str, float]) -> torch.Tensor:
        """The first layer's inputs ``(V, n)``.

        Args:
            update: ``{name: (V, *shape)}``, in float64, at its original scale.
            labels: ``(V,)``.
            noise: standard deviation of the error in each tensor, beyond rounding.
        """
        layers = self.chain.layers
        estimate, delta, doubt = self._top(update, labels, noise)
        for index in range(len(layers) - 2, -1, -1):
            layer = layers[index]
            above = operators.backward(layers[index + 1], self._weight(layers[index + 1]), delta).flatten(1)
            spread = operators.backward(layers[index + 1], self._weight(layers[index + 1]).square(), doubt).flatten(1)
            outputs, known = _inside(layer.activation, estimate.mean)
            slope = operators.derivative(layer.activation, outputs)
            error = torch.where(known, estimate.variance / slope.square().clamp_min(_TINY), math.inf)
            bend = _bend(layer.activation, outputs) / slope.clamp_min(_TINY)  # of the slope, per unit of the output
            delta = (above * slope).reshape(-1, *layer.output_shape)
            doubt = (spread * slope.square() + (above * bend).square() * estimate.variance).reshape(delta.shape)
            forward = Estimate(operators.inverse(layer.activation, outputs, edge=_EDGE) - self._bias(layer), error)
            gradient = update[f"{layer.name}.weight"]
            prior = self.priors[index]
            units = doubt.flatten(2).sum(2) if layer.is_conv else doubt
            size = float((prior.variance + prior.mean.square()).mean())
            variance = _variance(gradient, noise[f"{layer.name}.weight"])[:, None] + size * units
            system = System(layer, self._weight(layer), forward, delta, gradient, variance.sqrt(), prior)
            estimate = solve(system, iterations=self.iterations)
        return estimate.mean

    def _weight(self, layer: Layer) -> torch.Tensor:
        return self.weights[f"{layer.name}.weight"]

    def _bias(self, layer: Layer) -> torch.Tensor:
        if not layer.bias:
            return self._weight(layer).new_zeros(())
        return self.weights[f"{layer.name}.bias"].repeat_interleave(math.prod(layer.output_shape[1:]))

    def _top(
        self, update: Mapping[str, torch.Tensor], labels: torch.Tensor, noise: Mapping[str, float]
    ) -> tuple[Estimate, torch.Tensor, torch.Tensor]:
        """The last layer's input, its ``δ`` and the variance of that.

        ``δ`` is the bias's gradient, and it is softmax minus one-hot. Where there is noise, the second is computed from the
        estimated input, and the input is then estimated anew with it, three times.
        """
        last, prior = self.chain.layers[-1], self.priors[-1]
        gradient = update[f"{last.name}.weight"]
        variance = _variance(gradient, noise[f"{last.name}.weight"])
        one_hot = nn.functional.one_hot(labels, gradient.shape[1]).to(gradient.dtype)
        delta = update[f"{last.name}.bias"] if last.bias else self._without_bias(gradient, one_hot)
        noisy = noise[f"{last.name}.weight"] > 0
        feature = seen = delta
        for _ in range(3 if noisy else 1):
            seen = delta.square().sum(1, keepdim=True).clamp_min(_TINY) / variance[:, None]
            side = torch.einsum("vk,vkf->vf", delta, gradient) / variance[:, None] - seen * prior.mean
            if prior.directions is not None:
                feature = prior.directions.rows(prior.directions.coordinates(side) / (seen + 1 / prior.spread)) + prior.mean
            else:
                feature = side / (seen + 1 / prior.spread) + prior.mean
            if noisy:
                delta = torch.softmax(feature @ self._weight(last).T + self._bias(last), dim=1) - one_hot
        known = (seen + 1 / prior.spread).reciprocal()
        spread = prior.directions.squared().rows(known) if prior.directions is not None else known
        if last.bias and not noisy:
            error = _variance(update[f"{last.name}.bias"], noise[f"{last.name}.bias"])[:, None]
        else:
            error = (spread @ self._weight(last).square().T).amax(1, keepdim=True) * delta.abs().amax(1, keepdim=True).square()
        doubt = error.expand_as(delta)
        return Estimate(feature, spread), delta, doubt

    def _without_bias(self, gradient: torch.Tensor, one_hot: torch.Tensor) -> torch.Tensor:
        """``δ`` from ``G = δ aᵀ`` alone, which leaves one factor open: ``δ`` must be softmax minus one-hot of the input."""
        last = self.chain.layers[-1]
        left, size, right = torch.linalg.svd(gradient, full_matrices=False)
        direction = right[:, 0]  # of the input
        delta = left[:, :, 0] * size[:, :1]
        sign = torch.where((delta * one_hot).sum(1, keepdim=True) > 0, -1.0, 1.0).to(delta.dtype)
        logits = (direction * sign) @ self._weight(last).T
        delta = delta * sign
        low, high = torch.full_like(sign, math.log(1e-4)), torch.full_like(sign, math.log(1e5))
        length = torch.ones_like(sign)
        share = torch.linspace(0, 1, _GRID, dtype=sign.dtype, device=sign.device)
        for _ in range(_ZOOMS):
            tried = low + (high - low) * share  # (V, grid)
            own = torch.softmax(tried.exp()[..., None] * logits[:, None] + self._bias(last), dim=2) - one_hot[:, None]
            best = (own * tried.exp()[..., None] - delta[:, None]).square().sum(2).argmin(1, keepdim=True)
            centre, width = tried.gather(1, best), (high - low) / (_GRID - 1)
            low, high, length = centre - width, centre + width, centre.exp()
        found: torch.Tensor = delta / length
        return found


def _variance(gradient: torch.Tensor, noise: float) -> torch.Tensor:
    """Of the error of one entry, per victim ``(V,)``."""
    return noise**2 + ROUNDING**2 * gradient.flatten(1).square().mean(1) + _TINY


def _inside(activation: nn.Module | None, outputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs cut to those that the activation can have, and where they tell its input."""
    if isinstance(activation, nn.Sigmoid):
        found = outputs.clamp(_EDGE, 1 - _EDGE)
    elif isinstance(activation, nn.Tanh):
        found = outputs.clamp(-1 + _EDGE, 1 - _EDGE)
    elif isinstance(activation, nn.ReLU):
        found = outputs.clamp_min(0)
        return found, found > _EDGE
    else:
        found = outputs
    return found, torch.ones_like(found, dtype=torch.bool)


def _bend(activation: nn.Module | None, outputs: torch.Tensor) -> torch.Tensor:
    """``σ''(z)`` from ``σ(z)``."""
    if isinstance(activation, nn.Sigmoid):
        return outputs * (1 - outputs) * (1 - 2 * outputs)
    if isinstance(activation, nn.Tanh):
        return -2 * outputs * (1 - outputs.square())
    return torch.zeros_like(outputs)
