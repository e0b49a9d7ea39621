"""A chain run with given weights: forwards through its layers, and backwards to the update that it would give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Layer


def activated(layer: Layer, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """``σ(W a + b)``: ``(N, *output_shape)``."""
    weight, bias = weights[f"{layer.name}.weight"].to(inputs.dtype), weights.get(f"{layer.name}.bias")
    outputs = operators.forward(layer, weight, None if bias is None else bias.to(inputs.dtype), inputs)
    found: torch.Tensor = outputs if layer.activation is None else layer.activation(outputs)
    return found


def activations(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> list[torch.Tensor]:
    """The inputs of all layers, and the logits."""
    found = [inputs]
    for layer in chain.layers:
        found.append(activated(layer, weights, found[-1]))
    return found


def gradients_of(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor, delta: torch.Tensor) -> dict[str, torch.Tensor]:
    """The update that inputs ``(N, C, H, W)`` and the last layer's ``δ`` would give. Needs every layer's weights."""
    return _backpropagated(chain, weights, activations(chain, weights, inputs), delta)


def simulate(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The update that inputs ``(N, C, H, W)`` and labels ``(N,)`` would give under cross-entropy; differentiable."""
    found = activations(chain, weights, inputs)
    delta = found[-1].softmax(1) - nn.functional.one_hot(labels, found[-1].shape[1]).to(found[-1].dtype)
    return _backpropagated(chain, weights, found, delta)


def _backpropagated(
    chain: Chain, weights: Mapping[str, torch.Tensor], layer_inputs: list[torch.Tensor], delta: torch.Tensor
) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for index in range(len(chain.layers) - 1, -1, -1):
        layer = chain.layers[index]
        if index < len(chain.layers) - 1:
            delta = delta.reshape(-1, *layer.output_shape) * operators.derivative(layer.activation, layer_inputs[index + 1])
        weight, bias = operators.gradient(layer, layer_inputs[index], delta)
        found[f"{layer.name}.weight"] = weight
        if layer.bias:
            found[f"{layer.name}.bias"] = bias
        if index > 0:
            delta = operators.backward(layer, weights[f"{layer.name}.weight"].to(delta.dtype), delta)
    return found
