"""One step down: the MAP estimate of a layer's input from its pre-activation and its gradient at once.

The input ``x`` solves two linear systems, the forward one ``W x = z - b`` and the gradient's ``Σ_p δ_p x_{p+k} = G_k``. Each is
ill conditioned where the other is not. With the variances of their right sides, the estimate is the solution of

``(Aᵀ R⁻¹ A + Wᵀ C⁻¹ W + Σ⁻¹) x = Aᵀ R⁻¹ G + Wᵀ C⁻¹ (z - b) + Σ⁻¹ μ``
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gitbench.attacker.attacks.recursion.through import covariance_through, kernel_pairs
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Layer
from gitbench.attacker.tools.priors import Gaussian
from gitbench.attacker.tools.rotations import Separable
from gitbench.core.random import make_generator

Apply = Callable[[torch.Tensor], torch.Tensor]

_DENSE = 1024  # unknowns up to which every victim has a dense system of its own
_SHARED = 4096  # unknowns up to which all victims share a dense preconditioner
_ROWS = 8
_STRIP = 192  # columns of a symmetric product that are computed at once
_SAMPLES = 16  # of a posterior, for its variances
_EXACT = 1e-20  # squared error at which an iteration ends, in units of the solution's square


@dataclass(frozen=True)
class Estimate:
    """Of ``V`` vectors: ``mean (V, n)`` and the variances of their entries' errors ``(V, n)``."""

    mean: torch.Tensor
    variance: torch.Tensor


@dataclass(frozen=True)
class System:
    """What is known of a layer's input, for ``V`` victims; everything in float64.

    Args:
        layer: the layer.
        weight: of it.
        forward: ``z - b`` and the variance of its error, ``(V, outputs)``; infinite where nothing is known.
        delta: ``(V, *output_shape)``.
        gradient: by the weight, ``(V, *weight.shape)``.
        deviation: of the error of each output unit's gradient, ``(V, outputs or channels)``.
        prior: of the input.
    """

    layer: Layer
    weight: torch.Tensor
    forward: Estimate
    delta: torch.Tensor
    gradient: torch.Tensor
    deviation: torch.Tensor
    prior: Gaussian

    def rows(self, index: slice) -> System:
        """Some of the victims."""
        forward = Estimate(self.forward.mean[index], self.forward.variance[index])
        return System(self.layer, self.weight, forward, self.delta[index], self.gradient[index], self.deviation[index], self.prior)


def solve(system: System, *, iterations: int) -> Estimate:
    """The input ``(V, n)`` and the variances of its entries.

    Up to 1,024 unknowns each victim's system is factored; a convolution of more inputs than outputs is solved block by block
    (the channels of its input share one system) with its forward equations as a correction; all else by conjugate gradients.

    Args:
        system: of all victims.
        iterations: of the conjugate gradients, at most.
    """
    unknowns = math.prod(system.layer.input_shape)
    chunks = [system.rows(slice(start, start + _ROWS)) for start in range(0, len(system.delta), _ROWS)]
    if unknowns <= _DENSE:
        weight, precision = matrix(system.layer, system.weight), system.prior.precision()
        found = [_dense(chunk, weight, precision) for chunk in chunks]
    elif not system.layer.is_conv:
        found = [_linear(chunk) for chunk in chunks]
    elif math.prod(system.layer.output_shape) < unknowns <= _SHARED:
        pairs, generator = kernel_pairs(system.weight), make_generator(0, "recursion")
        found = [_blocks(chunk, pairs, generator) for chunk in chunks]
    else:
        return _iterated(system, iterations)
    return Estimate(torch.cat([part.mean for part in found]), torch.cat([part.variance for part in found]))


def _scaled(system: System) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient and delta in deviations of the gradient's error."""
    deviation = system.deviation
    extra = (1,) * (system.gradient.ndim - 2)
    delta = system.delta / deviation.reshape(*deviation.shape, *(1,) * (system.delta.ndim - 2))
    return delta, system.gradient / deviation.reshape(*deviation.shape, *extra)


def _normal(system: System) -> tuple[torch.Tensor, torch.Tensor]:
    """Of the gradient: ``AᵀR⁻¹A (V, positions, positions)`` and ``AᵀR⁻¹G (V, channels, positions)``."""
    delta, gradient = _scaled(system)
    layer = system.layer
    if not layer.is_conv:
        seen = delta.square().sum(1)
        return seen[:, None, None], torch.einsum("vo,voi->vi", delta, gradient)[..., None]
    empty = delta.new_zeros(len(delta), layer.input_shape[0], math.prod(layer.input_shape[1:]))
    gram, back = operators.normal_equations(layer, delta, gradient, empty)
    return gram, back.transpose(1, 2)


def _transposed(system: System, outputs: torch.Tensor) -> torch.Tensor:
    return operators.backward(system.layer, system.weight, outputs).flatten(1)


def _forward(system: System, inputs: torch.Tensor) -> torch.Tensor:
    return operators.forward(system.layer, system.weight, None, inputs).flatten(1)


def matrix(layer: Layer, weight: torch.Tensor) -> torch.Tensor:
    """``W`` written out, ``(outputs, inputs)``."""
    if not layer.is_conv:
        return weight
    outputs = math.prod(layer.output_shape)
    unit = torch.eye(outputs, dtype=weight.dtype, device=weight.device).reshape(outputs, *layer.output_shape)
    return operators.backward(layer, weight, unit).flatten(1)


def _right_side(system: System, back: torch.Tensor) -> torch.Tensor:
    """``Aᵀ R⁻¹ G + Wᵀ C⁻¹ (z - b)``, ``(V, n)``."""
    return back.flatten(1) + _transposed(system, system.forward.mean / system.forward.variance)


def _dense(system: System, weight: torch.Tensor, prior: torch.Tensor) -> Estimate:
    gram, back = _normal(system)
    right = _right_side(system, back) + prior @ system.prior.mean
    means, variances = [], []
    for own, certainty, side in zip(gram, 1 / system.forward.variance, right, strict=True):
        whole = _lower(weight.T, (certainty[:, None] * weight).T) + prior
        channels = len(whole) // len(own)
        view = whole.view(channels, len(own), channels, len(own))
        for channel in range(channels):
            view[channel, :, channel] += own
        factor, failed = torch.linalg.cholesky_ex(whole)
        if int(failed):
            means.append(system.prior.mean)
            variances.append(system.prior.variance)
            continue
        means.append(torch.cholesky_solve(side[:, None], factor)[:, 0])
        variances.append(torch.cholesky_inverse(factor).diagonal())
    return Estimate(torch.stack(means), torch.stack(variances))


def _linear(system: System) -> Estimate:
    """A wide linear layer: its gradient ``δ aᵀ`` tells all entries equally well, so the prior's directions stay independent."""
    gram, back = _normal(system)
    prior, weight = system.prior, system.weight
    seen = gram[:, 0] + 1 / prior.spread  # (V, n)
    side = back[..., 0] - gram[:, 0] * prior.mean
    aim = system.forward.mean - weight @ prior.mean
    if prior.directions is not None:
        side, weight = prior.directions.coordinates(side), prior.directions.coordinates(weight)
    estimate = _with_forward(side / seen, 1 / seen, weight, aim, system.forward.variance)
    mean, variance = estimate.mean, estimate.variance
    if prior.directions is not None:
        mean, variance = prior.directions.rows(mean), prior.directions.squared().rows(variance)
    return Estimate(prior.mean + mean, variance)


def _with_forward(mean: torch.Tensor, spread: torch.Tensor, weight: torch.Tensor, aim: torch.Tensor, doubt: torch.Tensor) -> Estimate:
    """The forward equations as a correction of rank ``outputs`` to what is known of independent entries."""
    means, variances = [], []
    for own, each, target, error in zip(mean, spread, aim, doubt, strict=True):
        known = error.isfinite()
        cross = weight[known] * each
        factor, failed = torch.linalg.cholesky_ex(cross @ weight[known].T + torch.diag(error[known]))
        if int(failed) or not bool(known.any()):
            means.append(own)
            variances.append(each)
            continue
        means.append(own + cross.T @ torch.cholesky_solve((target[known] - weight[known] @ own)[:, None], factor)[:, 0])
        told = torch.linalg.solve_triangular(factor, cross, upper=False).square().sum(0)
        variances.append((each - told).clamp_min(1e-6 * each))
    return Estimate(torch.stack(means), torch.stack(variances))


def _blocks(system: System, pairs: torch.Tensor, generator: torch.Generator) -> Estimate:
    """Channels share the gradient's system; the forward equations are a correction of rank ``outputs``.

    The variances are estimated from samples of the posterior (Matheron's rule): exact ones would cost as much as all the rest.
    """
    gram, back = _normal(system)
    layer, prior = system.layer, system.prior
    channels, places, dtype = layer.input_shape[0], gram.shape[1], gram.dtype
    certainty = 1 / prior.variance.reshape(channels, places).mean(0)
    own = torch.linalg.cholesky(gram + torch.diag(certainty))
    side = back - (gram @ prior.mean.reshape(channels, places).T).transpose(1, 2)
    mean = torch.cholesky_solve(side.transpose(1, 2), own).transpose(1, 2).flatten(1)
    inverse = torch.cholesky_inverse(own)
    drawn = torch.randn(places, channels * _SAMPLES, generator=generator, dtype=dtype).to(gram.device)
    samples = torch.linalg.solve_triangular(own.mT, drawn.expand(len(own), -1, -1), upper=True)
    samples = samples.reshape(len(own), places, channels, _SAMPLES).permute(0, 3, 2, 1).flatten(2)  # (V, samples, n)
    aim = system.forward.mean - _forward(system, prior.mean[None])
    means, variances = [], []
    for start, spread, sample, target, error in zip(mean, inverse, samples, aim, system.forward.variance, strict=True):
        known = error.isfinite()
        inner = covariance_through(layer, pairs, spread)
        inner = inner if bool(known.all()) else inner[known][:, known]
        inner.diagonal().add_(error[known])
        factor, failed = torch.linalg.cholesky_ex(inner)
        if int(failed):
            means.append(start)
            variances.append(spread.diagonal().repeat(channels))
            continue
        doubt = error[known].sqrt() * torch.randn(_SAMPLES, len(inner), generator=generator, dtype=dtype).to(gram.device)
        seen = _forward(system, torch.cat([start[None], sample]))[:, known]
        missing = torch.cat([(target[known] - seen[0])[None], doubt - seen[1:]])
        told = missing.new_zeros(len(missing), len(error))
        told[:, known] = torch.cholesky_solve(missing.T, factor).T
        told = (_transposed(system, told).view(-1, places) @ spread).view(len(told), -1)
        means.append(start + told[0])
        variances.append((sample + told[1:]).square().mean(0))
    return Estimate(prior.mean + torch.stack(means), torch.stack(variances))


def _lower(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left rightᵀ``, which is symmetric, in its lower triangle: all that a Cholesky factorization reads. Above it stand zeros."""
    size = len(left)
    found = left.new_zeros(size, size)
    for start in range(0, size, _STRIP):
        stop = min(start + _STRIP, size)
        found[start:, start:stop] = left[start:] @ right[start:stop].T
    return found


def _iterated(system: System, iterations: int) -> Estimate:
    """Conjugate gradients on all victims at once; one factored matrix, of the forward equations, preconditions them all."""
    gram, back = _normal(system)
    layer, prior = system.layer, system.prior
    channels, places = (layer.input_shape[0], gram.shape[1]) if layer.is_conv else (math.prod(layer.input_shape), 1)
    certainty = 1 / system.forward.variance
    precision = prior.precision() if math.prod(layer.input_shape) <= _SHARED else None

    def weighted(vectors: torch.Tensor) -> torch.Tensor:
        # Written out, the matrix is the faster one of a dense rotation: one product, where the rotation needs two.
        return prior.weighted(vectors) if precision is None or isinstance(prior.directions, Separable) else vectors @ precision

    def apply(vectors: torch.Tensor) -> torch.Tensor:
        seen = (vectors.reshape(-1, channels, places) @ gram).flatten(1)
        return seen + _transposed(system, certainty * _forward(system, vectors)) + weighted(vectors)

    right = _right_side(system, back) + weighted(prior.mean[None])
    if precision is not None:
        typical = certainty.log().mean(0).exp() if bool((certainty > 0).all()) else certainty.mean(0)
        # Through the layer: the product of dense matrices would multiply zeros, of which a convolution's matrix is made.
        product = _transposed(system, (typical[:, None] * matrix(layer, system.weight)).T)
        factor = torch.linalg.cholesky(product.add_(precision))  # which reads the lower triangle alone

        def precondition(vectors: torch.Tensor) -> torch.Tensor:
            return torch.cholesky_solve(vectors.T, factor).T

        start = precondition(_transposed(system, typical * system.forward.mean) + weighted(prior.mean[None]))
    else:
        squares = operators.backward(layer, system.weight.square(), certainty).flatten(1)
        diagonal = squares + gram.diagonal(dim1=1, dim2=2).repeat(1, channels) + 1 / prior.spread

        def precondition(vectors: torch.Tensor) -> torch.Tensor:
            return vectors / diagonal

        start = prior.mean.expand_as(right)
    found = conjugate_gradients(apply, right, start, precondition, iterations=iterations)
    return Estimate(found, prior.variance.expand_as(found))


def conjugate_gradients(apply: Apply, right: torch.Tensor, start: torch.Tensor, precondition: Apply, *, iterations: int) -> torch.Tensor:
    """Solutions ``(V, n)`` of ``V`` symmetric positive systems side by side.

    Args:
        apply: the matrices, to rows ``(V, n)``.
        right: ``(V, n)``.
        start: ``(V, n)``.
        precondition: an approximate inverse.
        iterations: at most.
    """
    found = start
    residual = right - apply(found)
    step = precondition(residual)
    product = (residual * step).sum(1, keepdim=True)
    enough = _EXACT * (right * precondition(right)).sum(1, keepdim=True).abs()
    for _ in range(iterations):
        active = product > enough
        if not bool(active.any()):
            break
        pushed = apply(step)
        length = torch.where(active, product / (step * pushed).sum(1, keepdim=True).clamp_min(1e-300), 0)
        found = found + length * step
        residual = residual - length * pushed
        better = precondition(residual)
        after = (residual * better).sum(1, keepdim=True)
        step = better + torch.where(active, after / product.clamp_min(1e-300), 0) * step
        product = after
    return found
