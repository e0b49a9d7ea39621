"""The recursion of Exact-GIT as it was published: its weights are parameters, trained on the input's squared error."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from gitbench.attacker.attacks.git.weights import exact_top
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Weights
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress
from gitbench.core.random import randn_like

_STEPS = 400
_BATCH = 64
_LR = 0.02


class TrainedRecursion(nn.Module):
    """From the gradients of a chain of linear layers to its input, without any bias's gradient but the last.

    ``δ_i = (W_{i+1}ᵀ δ_{i+1}) ⊙ σ'(σ⁻¹(a_i))`` and ``a_{i-1} = δ_i⁺ G_i``, where ``δ⁺ = δᵀ / |δ|²`` of one example.

    Args:
        chain: linear layers only.
        weights: of every layer but the first: ``{name.weight: (outputs, inputs)}``.

    Raises:
        AttackError: a convolution is in the chain.
    """

    def __init__(self, chain: Chain, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        other = next((layer.name for layer in chain.layers if layer.is_conv), None)
        if other is not None:
            raise AttackError(
                f"Trained weights need a chain of linear layers, and {other!r} is a convolution. Use git(weights='solved'), the default."
            )
        self._chain = chain
        self.weights = nn.ParameterList([nn.Parameter(weights[f"{layer.name}.weight"].clone()) for layer in chain.layers[1:]])

    def forward(self, update: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``(N, F)``, the input of the first layer, from undefended gradients ``(N, *shape)``."""
        return operators.least_squares_input(self.first_delta(update), update[f"{self._chain.layers[0].name}.weight"])

    def first_delta(self, update: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """``δ_1 (N, units)``: the walk down to the first layer."""
        layers = self._chain.layers
        delta, outputs = exact_top(layers[-1], update)
        for index in range(len(layers) - 2, -1, -1):
            delta = (delta @ self.weights[index]) * operators.derivative(layers[index].activation, outputs)
            if index:
                outputs = operators.least_squares_input(delta, update[f"{layers[index].name}.weight"])
        return delta

    def named_weights(self) -> Weights:
        """``{name.weight}`` of every layer but the first."""
        return {f"{layer.name}.weight": weight.detach().clone() for layer, weight in zip(self._chain.layers[1:], self.weights, strict=True)}


def train_weights(
    chain: Chain,
    raw: Update,
    inputs: torch.Tensor,
    *,
    generator: torch.Generator,
    progress: Progress,
    steps: int = _STEPS,
    watch: Callable[[int, float, Weights], None] | None = None,
) -> Weights:
    """Train the recursion's weights from small random ones, with Adam on the squared error of the input.

    ``δ⁺ G`` averages what every unit of the first layer says of the input, ``G_h / δ_h``, with weights
    ``δ_h²``. The error of the average alone is one number per example: it vanishes long before the weights
    are right (docs/attacks.md has the curve). So the error of every unit's own estimate is trained, with the
    same weights: ``|G_h - δ_h x|²``.

    The last layer's rows are found up to a common row, which ``Wᵀ δ`` does not see, because ``δ`` sums to zero.

    Args:
        chain: linear layers only.
        raw: undefended updates of ``N`` public examples.
        inputs: the examples as the first layer sees them ``(N, C, H, W)``.
        generator: for the start and the batches.
        progress: told of the steps.
        steps: how many.
        watch: called now and then with the step, the input's mean squared error and the weights: the curve in docs/attacks.md.
    """
    shapes = {f"{layer.name}.weight": (layer.output_shape[0], layer.input_shape[0]) for layer in chain.layers[1:]}
    start = {name: 0.1 * randn_like(torch.zeros(shape, device=inputs.device), generator) for name, shape in shapes.items()}
    recursion = TrainedRecursion(chain, start).to(inputs.device)
    optimizer = torch.optim.Adam(recursion.parameters(), lr=_LR)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    targets = inputs.flatten(1)
    for step in range(steps):
        rows = torch.randint(len(targets), (_BATCH,), generator=generator).to(targets.device)
        part = raw[rows].tensors
        gradient = part[f"{chain.layers[0].name}.weight"]
        delta = recursion.first_delta(part)
        loss = (gradient - delta[:, :, None] * targets[rows][:, None]).square().sum() / gradient.square().sum()
        if watch is not None and (step % 20 == 0 or step == steps - 1):
            wrong = (operators.least_squares_input(delta.detach(), gradient) - targets[rows]).square().mean()
            watch(step, float(wrong), recursion.named_weights())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        progress("git: training the recursion", step + 1, steps)
    return recursion.named_weights()
