"""A chain run with given weights: forwards through its layers, and backwards to the update that it would give."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Layer


def activated(layer: Layer, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """``σ(W a + b)``: ``(N, *output_shape)``."""
    weight, bias = (weights[f"{layer.name}.{kind}"].to(inputs.dtype) for kind in ("weight", "bias"))
    outputs = operators.forward(layer, weight, bias, inputs)
    found: torch.Tensor = outputs if layer.activation is None else layer.activation(outputs)
    return found


def gradients_of(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor, delta: torch.Tensor) -> dict[str, torch.Tensor]:
    """The update that inputs ``(N, C, H, W)`` and the last layer's ``δ`` would give. Needs every layer's weights."""
    return _backpropagated(chain, weights, _layer_inputs(chain, weights, inputs), delta)


def simulate(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The update that inputs ``(N, C, H, W)`` and labels ``(N,)`` would give under cross-entropy; differentiable."""
    found = _layer_inputs(chain, weights, inputs)
    last = chain.layers[-1]
    logits = operators.forward(last, weights[f"{last.name}.weight"], weights[f"{last.name}.bias"], found[-1])
    delta = logits.softmax(1) - nn.functional.one_hot(labels, logits.shape[1]).to(logits.dtype)
    return _backpropagated(chain, weights, found, delta)


def _layer_inputs(chain: Chain, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> list[torch.Tensor]:
    found = [inputs]
    for layer in chain.layers[:-1]:
        found.append(activated(layer, weights, found[-1]))
    return found


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
