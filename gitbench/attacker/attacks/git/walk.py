"""The walk from the logits back to the input: the recursion with solved weights. Each step is a MAP estimate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain
from gitbench.attacker.tools.regression import LinearMap

Tensors = dict[str, torch.Tensor]

_FEATURES = 2048  # at most: earlier features are kept beside a step's own as long as all of them are no more


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
    """Walks down the layers of a stack of updates. What it finds are features, from which a linear map reads the images.

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

    def features(self, update: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``(N, F)``."""
        delta, features = self.top(update)
        for step in range(len(self.chain.layers) - 1):
            if f"step{step}.outputs.weight" not in self.tensors:
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
        values = self.readable(step, solved).flatten(1)
        kept = features if features.shape[1] + values.shape[1] <= _FEATURES else features[:, :0]
        return torch.cat([values, kept], dim=1), delta

    def readable(self, step: int, solved: torch.Tensor) -> torch.Tensor:
        """Pre-activations, which are closer to linear in the pixels; outputs where there is noise, which the inverse would amplify."""
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
        return self.top(update)[0].argmin(1)

    def top(self, update: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The last layer's ``δ``, and the first features: its input before the activation, ``δ``'s direction, and what was sent."""
        last, below = self.chain.layers[-1], self.chain.layers[-2]
        mean, spread, noise = (self.tensors[f"top.{name}"] for name in ("mean", "spread", "noise"))
        weight, bias = update[f"{last.name}.weight"], update.get(f"{last.name}.bias")
        delta, feature, seen = read_top(weight, bias, mean=mean, spread=spread, noise=float(noise), sparse=self.sparse)
        direction = delta / delta.norm(dim=1, keepdim=True).clamp_min(1e-20)
        if not self.sparse:
            # An inverse activation would amplify noise.
            values = feature if float(noise) > 0 else operators.inverse(below.activation, feature)
            return delta, torch.cat([values, direction], dim=1)
        values = operators.inverse(below.activation, feature)
        completed = complete(values, seen, *(self.tensors[f"top.{name}"] for name in ("centre", "basis", "power", "rest")))
        return delta, torch.cat([completed, direction, seen.float()], dim=1)


def read_top(
    weight: torch.Tensor, bias: torch.Tensor | None, *, mean: torch.Tensor, spread: torch.Tensor, noise: float, sparse: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``δ``, the input, and which of its entries were sent, from the last layer's defended gradient.

    ``δ`` is read off the bias, and off the rows of the weight by a regression on the inputs' mean over public examples,
    which averages the noise of many entries. The two are weighted by their variances.

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
