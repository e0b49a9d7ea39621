"""The recursion's weights, solved from undefended public pairs: no layer's parameters need to be known."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Layer, Weights
from gitbench.attacker.layers.passes import activated
from gitbench.clients.update import Update

_CONFIDENT = 0.05  # an example whose δ is smaller than this is classified too well to tell anything
_ENOUGH = 320  # examples, where each has as many equations as a layer's output has positions
_ALL = slice(None)
_DETERMINED = 0.999  # share of an input position that the gradient alone tells


def solve_weights(chain: Chain, raw: Update, inputs: torch.Tensor, labels: torch.Tensor) -> Weights | None:
    """Weights and biases in closed form, layer by layer from the logits down; None where they cannot be solved.

    The last layer's input follows from its gradient, and its weights from a regression of the
    logarithms of the probabilities, which its bias gradient shows. Then, for every layer below, the
    recursion gives ``δ`` and ``δ⁺ G`` the layer's input, and a regression of the pre-activations on
    that input its weights. Where a stride leaves parts of an input undetermined and the layer below
    reads the public images themselves, that layer is solved first, and fills in the rest.

    Args:
        chain: the model's layers.
        raw: undefended updates of ``N`` public examples, one each.
        inputs: those examples as the first layer sees them, ``(N, C, H, W)``.
        labels: ``(N,)``.

    Returns:
        ``{name.weight, name.bias}`` of every layer but a first linear one (which the recursion does
        not need), in float32. The last layer's rows are known up to a common row, which ``Wᵀδ`` does not see.
    """
    layers = chain.layers
    top = _solved_top(chain, raw, labels)
    if top is None:
        return None
    weights, chosen, delta, outputs = top
    inputs = inputs.double()[chosen]
    delta = operators.backward(layers[-1], weights[f"{layers[-1].name}.weight"], delta)
    for index in range(len(layers) - 2, -1, -1):
        layer = layers[index]
        outputs = outputs.reshape(-1, *layer.output_shape)
        delta = delta.reshape(-1, *layer.output_shape) * operators.derivative(layer.activation, outputs)
        if index == 0:
            if layer.is_conv:
                _keep(weights, layer, _regress(layer, inputs, outputs))
            break
        found, determined = _input_of(layer, delta, _gradient(raw, layer, chosen))
        if not bool(determined.all()):
            if index != 1 or not layers[0].is_conv:
                return None
            _keep(weights, layers[0], _regress(layers[0], inputs, found, determined))
            found = activated(layers[0], weights, inputs)
            _keep(weights, layer, _regress(layer, found, outputs))
            break
        _keep(weights, layer, _regress(layer, found, outputs))
        delta = operators.backward(layer, weights[f"{layer.name}.weight"], delta)
        outputs = found
    return {name: tensor.float() for name, tensor in weights.items()}


def _solved_top(chain: Chain, raw: Update, labels: torch.Tensor) -> tuple[Weights, torch.Tensor, torch.Tensor, torch.Tensor] | None:
    """The last layer's weights, the examples to go on with, their ``δ`` and the layer's inputs; None where too few tell anything."""
    last = chain.layers[-1]
    delta, feature = exact_top(last, _gradient(raw, last))
    chosen = (delta.norm(dim=1) > _CONFIDENT).nonzero().flatten()
    if len(chosen) < 1.2 * (feature.shape[1] + 1):
        return None
    delta, feature = delta[chosen], feature[chosen]
    weights: Weights = {}
    _keep(weights, last, _last_layer(delta, feature, labels[chosen]))
    some = slice(_ENOUGH if chain.layers[-2].is_conv else None)
    return weights, chosen[some], delta[some], feature[some]


def _gradient(update: Update, layer: Layer, rows: torch.Tensor | slice = _ALL) -> dict[str, torch.Tensor]:
    """A layer's part of some updates, in float64."""
    names = (f"{layer.name}.weight", f"{layer.name}.bias")
    return {name: update.tensors[name][rows].double() for name in names if name in update.tensors}


def exact_top(last: Layer, grads: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """``δ (N, classes)`` and input ``(N, F)`` of the last layer, from its undefended gradient.

    Without a bias only their product is there. The true class's row is the input times ``p - 1``; where
    the guess was wrong that is minus the input, and the median of such rows' norms scales the others.
    """
    weight = grads[f"{last.name}.weight"]
    if not last.bias:
        true = weight.sum(2).argmin(1)  # the features are taken to be positive on average
        row = -weight[torch.arange(len(weight)), true]
        norm = row.norm(dim=1, keepdim=True)
        typical = norm.median()
        feature = row / norm.clamp_min(1e-30) * torch.where(norm > 0.97 * typical, norm, typical)
        delta = torch.einsum("nkf,nf->nk", weight, feature) / feature.square().sum(1, keepdim=True)
        return delta, feature
    delta = grads[f"{last.name}.bias"]
    return delta, operators.least_squares_input(delta, weight)


def _keep(weights: Weights, layer: Layer, solved: tuple[torch.Tensor, torch.Tensor]) -> None:
    weights[f"{layer.name}.weight"], weights[f"{layer.name}.bias"] = solved


def _last_layer(delta: torch.Tensor, feature: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Softmax regression read backwards: differences of log-probabilities are linear in the input."""
    classes = delta.shape[1]
    one_hot = nn.functional.one_hot(labels, classes).to(delta.dtype)
    scale = -(delta * one_hot).sum(1, keepdim=True)  # at most one, and close to one where the guess was wrong
    probabilities = delta + one_hot
    # The true class's probability is a small difference of large numbers, and is left out where rounding decides it.
    known = (one_hot == 0) | (probabilities > 1e-3)
    known &= (probabilities > 1e-30) & (scale > 1e-3)
    reference = int(known.sum(0).argmax())
    logs = probabilities.clamp_min(1e-30).log()
    inputs = torch.cat([feature, torch.ones_like(feature[:, :1])], dim=1)
    rows = []
    for label in range(classes):
        both = known[:, label] & known[:, reference]
        rows.append(_lstsq(inputs[both], (logs[both, label] - logs[both, reference])[:, None])[:, 0])
    solved = torch.stack(rows)
    solved = solved - solved.mean(0)
    return solved[:, :-1], solved[:, -1]


def _input_of(layer: Layer, delta: torch.Tensor, grads: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """``δ⁺ G`` and which of its entries the gradient determines (the same for every example)."""
    weight = grads[f"{layer.name}.weight"]
    if not layer.is_conv:
        if layer.bias:
            delta = grads[f"{layer.name}.bias"]
        found = operators.least_squares_input(delta, weight)
        return found, torch.ones_like(found[0], dtype=torch.bool)
    positions = layer.input_shape[1] * layer.input_shape[2]
    solved, told = [], torch.zeros(positions, dtype=delta.dtype, device=delta.device)
    for rows in torch.arange(len(delta)).split(128):
        empty = delta.new_zeros(len(rows), layer.input_shape[0], positions)
        gram, back = operators.normal_equations(layer, delta[rows], weight[rows], empty)
        # A penalty far below what is determined, so that what is not comes out as zero.
        penalty = 1e-9 * gram.diagonal(dim1=1, dim2=2).mean(1) + 1e-30
        factor = torch.linalg.cholesky(gram + penalty[:, None, None] * torch.eye(positions, dtype=delta.dtype, device=delta.device))
        solved.append(torch.cholesky_solve(back, factor).transpose(1, 2))
        if int(rows[0]) == 0:
            told = torch.cholesky_solve(gram, factor).diagonal(dim1=1, dim2=2).mean(0)
    found = torch.cat(solved).reshape(-1, *layer.input_shape)
    determined = (told > _DETERMINED).reshape(layer.input_shape[1:])
    return found, determined.expand(layer.input_shape)


def _regress(
    layer: Layer, inputs: torch.Tensor, outputs: torch.Tensor, where: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias from exact inputs and outputs, over the outputs whose pre-activation is known."""
    targets = operators.inverse(layer.activation, outputs).reshape(-1, *layer.output_shape)
    usable = _usable(layer.activation, outputs.reshape(targets.shape))
    if where is not None:
        usable = usable & where
    if not layer.is_conv:
        design = torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)
        columns = [_lstsq(design[usable[:, unit]], targets[usable[:, unit], unit][:, None])[:, 0] for unit in range(targets.shape[1])]
        solved = torch.stack(columns)
        return solved[:, :-1], solved[:, -1]
    assert layer.kernel is not None
    unknown = layer.input_shape[0] * layer.kernel[0] * layer.kernel[1] + 1
    count = min(len(inputs), max(64, 40 * unknown // targets[0, 0].numel()))
    patches = operators.patches_of(layer, inputs[:count]).transpose(1, 2).flatten(0, 1)
    design = torch.cat([patches, torch.ones_like(patches[:, :1])], dim=1)
    aims = targets[:count].transpose(0, 1).flatten(1).T
    good = usable[:count].transpose(0, 1).flatten(1).T
    everywhere = good.all(1)
    if int(everywhere.sum()) >= 10 * unknown:
        solved = _lstsq(design[everywhere], aims[everywhere]).T
    else:
        channels = zip(aims.T, good.T, strict=True)
        solved = torch.stack([_lstsq(design[rows], aim[rows][:, None])[:, 0] for aim, rows in channels])
    return solved[:, :-1].reshape(len(solved), layer.input_shape[0], *layer.kernel), solved[:, -1]


def _usable(activation: nn.Module | None, outputs: torch.Tensor) -> torch.Tensor:
    if isinstance(activation, nn.Sigmoid):
        return (outputs > 1e-3) & (outputs < 1 - 1e-3)
    if isinstance(activation, nn.Tanh):
        return outputs.abs() < 1 - 1e-3
    if isinstance(activation, nn.ReLU):
        return outputs > 1e-6
    return torch.ones_like(outputs, dtype=torch.bool)


def _lstsq(design: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    gram = design.T @ design
    penalty = 1e-10 * gram.diagonal().mean().clamp_min(1e-30)
    found: torch.Tensor = torch.linalg.solve(
        gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), design.T @ targets
    )
    return found
