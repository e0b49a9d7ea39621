"""The walk from the logits back to the input: the recursion with solved weights, each step a MAP estimate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain
from gitbench.attacker.layers.passes import activated
from gitbench.attacker.tools.regression import LinearMap, fit_linear

Tensors = dict[str, torch.Tensor]

_POSITIONS = 1024  # a convolution whose input has more is not solved: one matrix of that size per victim
_FEATURES = 2048  # earlier features are kept beside a step's own up to here
_RANK = 128
_FLOOR = 1e-9
_TRUST = (1.0, 30.0, 1e3, 1e5)  # factors on the gradient's noise, the best chosen on held-out rows


@dataclass(frozen=True)
class StepNoise:
    """What a defense does to the gradient's entries, seen on public pairs.

    Args:
        variance: of the randomness in each layer's weight gradient, by the weight's name.
        sent: share of each layer's entries that are not zeroed, by the weight's name.
    """

    variance: Mapping[str, float]
    sent: Mapping[str, float]

    @property
    def sparse(self) -> bool:
        return min(self.sent.values()) < 0.999


class SolvedWalk:
    """Features of a stack of updates, from which a linear map reads the images.

    Args:
        chain: the model's layers.
        tensors: what :func:`fit_walk` found.
    """

    def __init__(self, chain: Chain, tensors: Tensors) -> None:
        self.chain = chain
        self.tensors = tensors
        self.sparse = bool(tensors["sparse"])

    @property
    def reaches_input(self) -> bool:
        """Whether the last step estimates the input itself: the features then begin with it."""
        return f"step{len(self.chain.layers) - 2}.variance" in self.tensors

    def features(self, update: Mapping[str, torch.Tensor], *, depth: int | None = None) -> torch.Tensor:
        """``(N, F)``. ``depth`` stops after so many layers, for fitting."""
        delta, found, extra = self._top(update)
        features = torch.cat([found, extra], dim=1)
        layers = self.chain.layers
        for step in range(len(layers) - 1):
            name = f"step{step}"
            if (depth is not None and step >= depth) or f"{name}.outputs.weight" not in self.tensors:
                break
            features, delta = self.step(step, update, features, delta)
        return features

    def step(
        self, step: int, update: Mapping[str, torch.Tensor], features: torch.Tensor, delta: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One layer down: ``features`` with what this layer's gradient tells, and its ``δ``."""
        layer = self.chain.layers[-2 - step]
        name = f"step{step}"
        delta = self.delta(step, update, features, delta)
        prior = LinearMap.stored(self.tensors, f"{name}.prior")(features).reshape(-1, *layer.input_shape)
        variance = float(self.tensors[f"{name}.variance"])
        solved = operators.solve(
            layer,
            delta.reshape(-1, *layer.output_shape),
            update[f"{layer.name}.weight"],
            prior=prior,
            precision=self.tensors[f"{name}.precision"],
            variance=variance,
            sparse=self.sparse,
        )
        values = self._readable(step, solved).flatten(1)
        kept = features if features.shape[1] + values.shape[1] <= _FEATURES else features[:, :0]
        return torch.cat([values, kept], dim=1), delta

    def _readable(self, step: int, solved: torch.Tensor) -> torch.Tensor:
        """Pre-activations are closer to linear in the pixels; where there is noise, the inverse would tear it apart."""
        if step >= len(self.chain.layers) - 2 or float(self.tensors["top.noise"]) > 0:
            return solved
        return operators.inverse(self.chain.layers[-3 - step].activation, solved)

    def delta(self, step: int, update: Mapping[str, torch.Tensor], features: torch.Tensor, above: torch.Tensor) -> torch.Tensor:
        """``δ`` of a layer's output from the ``δ`` above: ``(Wᵀ δ) ⊙ σ'(σ⁻¹(â))``, and its bias's gradient where it is linear."""
        layer, upper = self.chain.layers[-2 - step], self.chain.layers[-1 - step]
        name = f"step{step}"
        outputs = LinearMap.stored(self.tensors, f"{name}.outputs")(features).reshape(-1, *layer.output_shape)
        found = operators.backward(upper, self.tensors[f"weights.{upper.name}.weight"], above).reshape(outputs.shape)
        found = found * operators.derivative(layer.activation, outputs)
        share = self.tensors.get(f"{name}.bias_share")
        if share is None:
            return found
        bias = update[f"{layer.name}.bias"]
        told = share * (bias != 0) if self.sparse else share
        return found + told * (bias - found)

    def labels(self, update: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``(N,)``: the one class whose logit the gradient raises."""
        return self._top(update)[0].argmin(1)

    def _top(self, update: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The last layer: its ``δ``, its input behind the inverse activation, and what else is told of the victim."""
        last, below = self.chain.layers[-1], self.chain.layers[-2]
        weight = update[f"{last.name}.weight"]
        bias = update.get(f"{last.name}.bias")
        mean, spread, noise = (self.tensors[f"top.{name}"] for name in ("mean", "spread", "noise"))
        delta, feature, seen = read_top(weight, bias, mean=mean, spread=spread, noise=float(noise), sparse=self.sparse)
        direction = delta / delta.norm(dim=1, keepdim=True).clamp_min(1e-20)
        if not self.sparse:
            if float(noise) > 0:  # an inverse activation would tear the noise apart
                return delta, feature, direction
            return delta, operators.inverse(below.activation, feature), direction
        values = operators.inverse(below.activation, feature)
        completed = complete(values, seen, *(self.tensors[f"top.{name}"] for name in ("centre", "basis", "power", "rest")))
        return delta, completed, torch.cat([direction, seen.float()], dim=1)


def read_top(
    weight: torch.Tensor, bias: torch.Tensor | None, *, mean: torch.Tensor, spread: torch.Tensor, noise: float, sparse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``δ``, the input, and which of its entries were sent, from the last layer's defended gradient.

    ``δ`` is read off the bias and off the rows of the weight, whose average over the inputs' known mean
    carries far less noise; the two are weighted by their variances.

    Args:
        weight: ``(N, K, F)``.
        bias: ``(N, K)``, or None.
        mean: of the input over public examples ``(F,)``.
        spread: its standard deviation ``(F,)``.
        noise: variance of the noise on each entry.
        sparse: zeros mean that nothing was sent.
    """
    there = (weight != 0).to(weight.dtype) if sparse else torch.ones_like(weight)
    power = (there * mean.square()).sum(2)
    rows = (weight * mean).sum(2) / power.clamp_min(1e-12)
    doubt = noise / power.clamp_min(1e-12) + rows.square() * (there * (mean * spread).square()).sum(2) / power.square().clamp_min(1e-24)
    known = power > 1e-9
    trust = torch.where(known, 1 / (doubt + 1e-12), 0)
    if bias is not None:
        bias_trust = ((bias != 0) if sparse else torch.ones_like(bias)) / (noise + 1e-12)
        delta = (trust * rows + bias_trust * bias) / (trust + bias_trust).clamp_min(1e-12)
    else:
        delta = torch.where(known, rows, 0)
    if noise > 0 and not sparse:
        delta = delta - delta.mean(1, keepdim=True)  # softmax minus one-hot sums to zero
    told = (there * delta.square()[:, :, None]).sum(1)
    feature = torch.einsum("nk,nkf->nf", delta, weight) / told.clamp_min(1e-20)
    seen = told > 1e-9 * delta.square().sum(1, keepdim=True).clamp_min(1e-20)
    return delta, torch.where(seen, feature, 0), seen


def complete(
    values: torch.Tensor, seen: torch.Tensor, centre: torch.Tensor, basis: torch.Tensor, power: torch.Tensor, rest: torch.Tensor
) -> torch.Tensor:
    """Missing entries by their Gaussian expectation given the others: ``(N, F)``.

    Args:
        values: ``(N, F)``.
        seen: ``(N, F)`` bool.
        centre: their mean ``(F,)``.
        basis: principal directions ``(F, R)``.
        power: their variances ``(R,)``.
        rest: variance of each entry outside of them ``(F,)``.
    """
    found = []
    for chunk, there in zip(values.split(256), seen.split(256), strict=True):
        weighted = basis[None] * (there / rest)[:, :, None]
        normal = basis.T @ weighted + torch.diag(1 / power)
        right = weighted.transpose(1, 2) @ ((chunk - centre) * there)[:, :, None]
        scores = torch.cholesky_solve(right, torch.linalg.cholesky(normal))[:, :, 0]
        found.append(torch.where(there, chunk, centre + scores @ basis.T))
    return torch.cat(found)


def fit_walk(
    chain: Chain,
    weights: Mapping[str, torch.Tensor],
    noise: StepNoise,
    *,
    raw: Mapping[str, torch.Tensor],
    updates: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    held: torch.Tensor,
    tell: Callable[[str], None],
) -> SolvedWalk:
    """Fit every step's linear maps, on the activations that the solved weights give to public images.

    Args:
        chain: the model's layers.
        weights: from :func:`gitbench.attacker.attacks.git.weights.solve_weights`.
        noise: what the defense does.
        raw: undefended gradients of ``N`` public examples, for the activations that no weight tells.
        updates: the same, defended.
        inputs: the examples as the first layer sees them, ``(N, C, H, W)``.
        held: ``(N,)`` bool: rows that choose penalties.
        tell: told which step is being fitted.
    """
    exact = _activations(chain, weights, raw, inputs)
    last = chain.layers[-1]
    top = exact[-1].flatten(1)
    train = top[~held]
    values = operators.inverse(chain.layers[-2].activation, train)
    centre = values.mean(0)
    power, basis = torch.linalg.eigh(torch.cov(values.T).double())
    power, basis = power[-_RANK:].float().clamp_min(1e-8), basis[:, -_RANK:].float()
    rest = (values.var(0) - (basis.square() * power).sum(1)).clamp_min(1e-6)
    tensors: Tensors = {f"weights.{name}": tensor for name, tensor in weights.items()}
    tensors |= {"sparse": torch.tensor(noise.sparse), "top.mean": train.mean(0), "top.spread": train.std(0)}
    tensors |= {"top.noise": torch.tensor(noise.variance[f"{last.name}.weight"])}
    tensors |= {"top.centre": centre, "top.basis": basis.contiguous(), "top.power": power, "top.rest": rest}
    walk = SolvedWalk(chain, tensors)
    delta, found, extra = walk._top(updates)
    features = torch.cat([found, extra], dim=1)
    for step in range(len(chain.layers) - 1):
        layer = chain.layers[-2 - step]
        weight = f"{layer.name}.weight"
        positions = layer.input_shape[1] * layer.input_shape[2] if layer.is_conv else 0
        if positions > _POSITIONS or (step == len(chain.layers) - 2 and layer.is_conv) or noise.sent[weight] < 0.5:
            break
        tell(f"layer {layer.name}")
        name = f"step{step}"
        outputs = exact[-1 - step].flatten(1)
        tensors |= fit_linear(features, outputs, held=held).tensors(f"{name}.outputs")
        _fit_bias_share(walk, step, noise, updates, features, delta)
        target = exact[-2 - step].flatten(1)
        prior = fit_linear(features, target, held=held)
        tensors |= prior.tensors(f"{name}.prior")
        _fit_solver(walk, step, noise, updates, features, delta, target - prior(features), target, held)
        features, delta = walk.step(step, updates, features, delta)
    return walk


def _fit_bias_share(
    walk: SolvedWalk, step: int, noise: StepNoise, updates: Mapping[str, torch.Tensor], features: torch.Tensor, above: torch.Tensor
) -> None:
    """How far a linear layer's ``δ`` is read off its own bias rather than off the recursion."""
    layer = walk.chain.layers[-2 - step]
    if layer.is_conv or not layer.bias:
        return
    recursed = walk.delta(step, updates, features, above)
    bias = updates[f"{layer.name}.bias"]
    there = (bias != 0) if walk.sparse else torch.ones_like(bias, dtype=torch.bool)
    variance = noise.variance[f"{layer.name}.bias"]
    wrong = (((bias - recursed).square() * there).sum() / there.sum().clamp_min(1) - variance).clamp_min(0)
    walk.tensors[f"step{step}.bias_share"] = wrong / (wrong + variance + 1e-20)


def _fit_solver(
    walk: SolvedWalk,
    step: int,
    noise: StepNoise,
    updates: Mapping[str, torch.Tensor],
    features: torch.Tensor,
    above: torch.Tensor,
    residual: torch.Tensor,
    target: torch.Tensor,
    held: torch.Tensor,
) -> None:
    """The prior's precision from its error on training rows, and how far to trust the gradient."""
    layer = walk.chain.layers[-2 - step]
    name = f"step{step}"
    errors = residual[~held]
    if layer.is_conv:
        spread = errors.reshape(-1, layer.input_shape[1] * layer.input_shape[2]).double()
        covariance = spread.T @ spread / len(spread)
        floor = 1e-3 * covariance.diagonal().mean() + 1e-12
        inverse = torch.linalg.inv(covariance + floor * torch.eye(len(covariance), device=floor.device))
        walk.tensors[f"{name}.precision"] = ((inverse + inverse.T) / 2).float()
    else:
        walk.tensors[f"{name}.precision"] = 1 / (errors.square().mean(0) + 1e-10)
    weight = f"{layer.name}.weight"
    some = held.nonzero().flatten()[:256]
    part = {key: tensor[some] for key, tensor in updates.items()}
    size = float(part[weight].square().mean())
    base = noise.variance[weight] + _FLOOR * size
    found = {}
    for factor in _TRUST:
        walk.tensors[f"{name}.variance"] = torch.tensor(base * factor)
        stepped, _ = walk.step(step, part, features[some], above[some])
        aim = walk._readable(step, target[some])
        error = float((stepped[:, : target.shape[1]] - aim).square().mean())
        found[base * factor] = error if math.isfinite(error) else math.inf
    walk.tensors[f"{name}.variance"] = torch.tensor(min(found, key=lambda key: found[key]))


def _activations(
    chain: Chain, weights: Mapping[str, torch.Tensor], raw: Mapping[str, torch.Tensor], inputs: torch.Tensor
) -> list[torch.Tensor]:
    """The input of every layer: forwards where the weights are known, from its own undefended gradient where not."""
    found = [inputs]
    for index, layer in enumerate(chain.layers[:-1]):
        if f"{layer.name}.weight" in weights:
            chunks = found[-1].split(512)
            found.append(torch.cat([activated(layer, weights, chunk) for chunk in chunks]))
            continue
        upper = chain.layers[index + 1]
        delta, weight = raw[f"{upper.name}.bias"], raw[f"{upper.name}.weight"]
        found.append(torch.einsum("no,noi->ni", delta, weight) / delta.square().sum(1, keepdim=True).clamp_min(1e-30))
    return found
