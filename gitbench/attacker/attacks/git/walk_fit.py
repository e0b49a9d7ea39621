"""Fits the walk of Exact-GIT on public images: each step's linear maps, and how far it trusts the gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gitbench.attacker.attacks.git.walk import SolvedWalk, StepNoise
from gitbench.attacker.attacks.git.weights import exact_top
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Layer
from gitbench.attacker.layers.passes import activated
from gitbench.attacker.tools.regression import fit_linear
from gitbench.core.progress import Progress

Tensors = dict[str, torch.Tensor]

_POSITIONS = 1024  # a convolution whose input has more is not solved: one matrix of that size per victim
_RANK = 128
_FLOOR = 1e-9
_TRUST = (1.0, 30.0, 1e3, 1e5)  # factors on the gradient's noise, the best chosen on held-out rows
_HELD = 256  # rows that choose it


def fit_walk(
    chain: Chain,
    weights: Mapping[str, torch.Tensor],
    noise: StepNoise,
    *,
    raw: Mapping[str, torch.Tensor],
    updates: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    held: torch.Tensor,
    progress: Progress,
) -> tuple[SolvedWalk, torch.Tensor]:
    """Fit every step's linear maps, on the activations that the solved weights give to public images.

    Returned are the walk and its features ``(N, F)`` of ``updates``.

    Args:
        chain: the model's layers.
        weights: from :func:`gitbench.attacker.attacks.git.weights.solve_weights`.
        noise: what the defense does.
        raw: undefended gradients of ``N`` public examples, those of :func:`names_for_activations` at least.
        updates: the same, defended.
        inputs: the examples as the first layer sees them, ``(N, C, H, W)``.
        held: ``(N,)`` bool: rows that choose penalties.
        progress: told which layer is being fitted.
    """
    exact = _activations(chain, weights, raw, inputs)
    tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    walk = SolvedWalk(chain, {**tensors, **_top(chain, noise, exact[-1].flatten(1)[~held])})
    delta, features = walk.top(updates)
    for step in range(len(chain.layers) - 1):
        layer = chain.layers[-2 - step]
        if not _is_solvable(layer, noise) or (layer.is_conv and layer is chain.layers[0]):
            break
        progress(f"git: fitting layer {layer.name}", step, len(chain.layers))
        fit = _StepFit(walk, step, noise, updates, features, delta, held)
        fit.outputs(exact[-1 - step].flatten(1))
        fit.bias_share()
        fit.solver(exact[-2 - step].flatten(1))
        features, delta = walk.step(step, updates, features, delta)
    return walk, features


def _top(chain: Chain, noise: StepNoise, inputs: torch.Tensor) -> Tensors:
    """Moments of the last layer's inputs ``(N, F)``, and their principal directions behind the inverse activation."""
    values = operators.inverse(chain.layers[-2].activation, inputs)
    power, basis = torch.linalg.eigh(torch.cov(values.T).double())
    power, basis = power[-_RANK:].float().clamp_min(1e-8), basis[:, -_RANK:].float()
    return {
        "sparse": torch.tensor(noise.sparse),
        "top.mean": inputs.mean(0),
        "top.spread": inputs.std(0),
        "top.noise": torch.tensor(noise.variance[f"{chain.layers[-1].name}.weight"]),
        "top.centre": values.mean(0),
        "top.basis": basis.contiguous(),
        "top.power": power,
        "top.rest": (values.var(0) - (basis.square() * power).sum(1)).clamp_min(1e-6),
    }


def _is_solvable(layer: Layer, noise: StepNoise) -> bool:
    """Whether a layer's input can be solved from its gradient: few positions, and more than half of the gradient sent."""
    positions = layer.input_shape[1] * layer.input_shape[2] if layer.is_conv else 0
    return positions <= _POSITIONS and noise.sent[f"{layer.name}.weight"] >= 0.5


@dataclass(frozen=True)
class _StepFit:
    """Fits one step of a walk, and writes into its tensors: from the features and the ``δ`` of the layers above."""

    walk: SolvedWalk
    step: int
    noise: StepNoise
    updates: Mapping[str, torch.Tensor]
    features: torch.Tensor
    above: torch.Tensor
    held: torch.Tensor

    @property
    def layer(self) -> Layer:
        return self.walk.chain.layers[-2 - self.step]

    def outputs(self, target: torch.Tensor) -> None:
        """The map to the layer's outputs ``(N, units)``."""
        self.walk.tensors.update(fit_linear(self.features, target, held=self.held).tensors(f"step{self.step}.outputs"))

    def bias_share(self) -> None:
        """How far a linear layer's ``δ`` is read off its own bias rather than off the recursion."""
        if self.layer.is_conv or not self.layer.bias:
            return
        recursed = self.walk.delta(self.step, self.updates, self.features, self.above)
        bias, variance = self.updates[f"{self.layer.name}.bias"], self.noise.variance[f"{self.layer.name}.bias"]
        there = (bias != 0) if self.walk.sparse else torch.ones_like(bias, dtype=torch.bool)
        wrong = (((bias - recursed).square() * there).sum() / there.sum().clamp_min(1) - variance).clamp_min(0)
        self.walk.tensors[f"step{self.step}.bias_share"] = wrong / (wrong + variance + 1e-20)

    def solver(self, target: torch.Tensor) -> None:
        """The prior of the layer's input ``(N, inputs)``, its precision, and how far to trust the gradient beside it."""
        prior = fit_linear(self.features, target, held=self.held)
        self.walk.tensors.update(prior.tensors(f"step{self.step}.prior"))
        errors = (target - prior(self.features))[~self.held]
        self.walk.tensors[f"step{self.step}.precision"] = _precision(self.layer, errors)
        some = self.held.nonzero().flatten()[:_HELD]
        part = {key: tensor[some] for key, tensor in self.updates.items()}
        aim = self.walk.readable(self.step, target[some])
        weight = f"{self.layer.name}.weight"
        base = self.noise.variance[weight] + _FLOOR * float(part[weight].square().mean())
        found = {}
        for factor in _TRUST:
            self.walk.tensors[f"step{self.step}.variance"] = torch.tensor(base * factor)
            stepped, _ = self.walk.step(self.step, part, self.features[some], self.above[some])
            error = float((stepped[:, : target.shape[1]] - aim).square().mean())
            found[base * factor] = error if math.isfinite(error) else math.inf
        self.walk.tensors[f"step{self.step}.variance"] = torch.tensor(min(found, key=lambda key: found[key]))


def _precision(layer: Layer, errors: torch.Tensor) -> torch.Tensor:
    """Inverse covariance of a prior's errors ``(N, inputs)``: of a convolution's positions, or of each entry alone."""
    if not layer.is_conv:
        return 1 / (errors.square().mean(0) + 1e-10)
    spread = errors.reshape(-1, layer.input_shape[1] * layer.input_shape[2]).double()
    covariance = spread.T @ spread / len(spread)
    floor = 1e-3 * covariance.diagonal().mean() + 1e-12
    inverse: torch.Tensor = torch.linalg.inv(covariance + floor * torch.eye(len(covariance), device=floor.device))
    return ((inverse + inverse.T) / 2).float()


def names_for_activations(chain: Chain, weights: Mapping[str, torch.Tensor]) -> list[str]:
    """The tensors of an undefended gradient that tell what no weight tells: the outputs of a first linear layer."""
    if f"{chain.layers[0].name}.weight" in weights:
        return []
    told = chain.layers[1:2] if chain.layers[1].bias else chain.layers[1:]
    return [f"{layer.name}.{kind}" for layer in told for kind in ("weight", "bias")[: 2 if layer.bias else 1]]


def _activations(
    chain: Chain, weights: Mapping[str, torch.Tensor], raw: Mapping[str, torch.Tensor], inputs: torch.Tensor
) -> list[torch.Tensor]:
    """The input of every layer: forwards where the weights are known, from its own undefended gradient where not."""
    found = [inputs]
    for layer in chain.layers[:-1]:
        if f"{layer.name}.weight" in weights:
            chunks = found[-1].split(512)
            found.append(torch.cat([activated(layer, weights, chunk) for chunk in chunks]))
        else:
            found.append(_second_input(chain, weights, raw))
    return found


def _second_input(chain: Chain, weights: Mapping[str, torch.Tensor], raw: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the second of several linear layers reads ``(N, inputs)``: its bias gradient tells, and the recursion where it has none."""
    second, last = chain.layers[1], chain.layers[-1]
    if second.bias:
        return operators.least_squares_input(raw[f"{second.name}.bias"], raw[f"{second.name}.weight"])
    delta, found = exact_top(last, raw)
    for upper, layer in zip(chain.layers[:1:-1], chain.layers[-2:0:-1], strict=True):
        delta = operators.backward(upper, weights[f"{upper.name}.weight"], delta) * operators.derivative(layer.activation, found)
        found = operators.least_squares_input(raw.get(f"{layer.name}.bias", delta), raw[f"{layer.name}.weight"])
    return found
