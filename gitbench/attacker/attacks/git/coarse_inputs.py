"""Layers' inputs in closed form, ``lstsq(delta, G)``, where the update shows the layer's delta. The coarse chain reads them.

An update shows the delta of a linear layer with one position (its bias's gradient), of a layer to whose output a parameter
is added (that parameter's gradient; APRIL, arXiv 2112.14087), and of the layers right before the last one (``W^T delta``).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.layers.graph import Step
from gitbench.clients.update import Update

PENALTIES = (1e-7, 1e-3, 1e-1)
"""Of ``lstsq(delta, G)``, in units of delta's mean square."""

_HEAD_PENALTY = 1e-2
_TINY = 1e-20


def is_plain(layer: nn.Module) -> bool:
    """Whether the weight's gradient is a sum over positions of delta times the whole patch of the input, padded with zeros."""
    if not isinstance(layer, nn.Conv2d):
        return True
    return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def shows_input(step: Step) -> bool:
    """Whether the update shows this layer's delta at every position."""
    if step.observed_delta is not None:
        return True
    return step.kind == "linear" and step.bias is not None and len(step.output_shape) == 1


def shown_inputs(step: Step, layer: nn.Module, update: Update) -> list[torch.Tensor]:
    """Estimates ``(V, P)`` of a layer's input from its delta and its gradient, one for each penalty.

    Args:
        step: one that :func:`shows_input`.
        layer: its module.
        update: of ``V`` victims.
    """
    gradient = update.tensors[step.weight]
    count = len(gradient)
    if step.observed_delta is None:
        assert step.bias is not None
        delta = update.tensors[step.bias][:, :, None]
        return [_least_squares(delta, gradient, 0.0).flatten(1)]
    assert step.delta_index is not None
    delta = update.tensors[step.observed_delta].flatten(1)[:, step.delta_index.flatten().to(gradient.device)]
    if step.kind == "linear":
        delta = delta.reshape(count, -1, step.output_shape[-1]).transpose(1, 2)
        return [_least_squares(delta, gradient, penalty).flatten(1) for penalty in PENALTIES]
    assert isinstance(layer, nn.Conv2d)
    delta = delta.reshape(count, step.output_shape[0], -1)
    patches = [_least_squares(delta, gradient.flatten(2), penalty) for penalty in PENALTIES]
    return [_folded(layer, patch, step.input_shape[1:]) for patch in patches]


def channels_of(step: Step) -> int:
    """How many entries delta has at one position of the output."""
    return step.output_shape[0] if step.kind == "conv2d" else step.output_shape[-1]


def input_below_last(step: Step, delta: torch.Tensor, update: Update) -> torch.Tensor:
    """A layer's input ``(V, D)`` for each position that ``delta = W^T delta_L (V, F)`` of the last layer tells apart.

    A convolution's kernel is averaged over its window: the positions are pooled anyway.
    """
    weight = update.tensors[step.weight].flatten(3).mean(3) if step.kind == "conv2d" else update.tensors[step.weight]
    return _least_squares(delta.reshape(len(weight), channels_of(step), -1), weight, _HEAD_PENALTY).flatten(1)


def _folded(layer: nn.Conv2d, patches: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Patches ``(V, positions, C k k)`` put together, averaged where they overlap: ``(V, C H W)``."""

    def fold(columns: torch.Tensor) -> torch.Tensor:
        assert not isinstance(layer.padding, str)
        return functional.fold(columns, shape, layer.kernel_size, layer.dilation, layer.padding, layer.stride)

    columns = patches.transpose(1, 2)
    return (fold(columns) / fold(torch.ones_like(columns[:1])).clamp_min(1)).flatten(1)


def _least_squares(delta: torch.Tensor, gradient: torch.Tensor, penalty: float) -> torch.Tensor:
    """``a (V, T, F)`` with ``delta (V, O, T) a = gradient (V, O, F)``, by the normal equations in float64."""
    if delta.shape[2] == 1:  # one position: a quotient, as exact without float64
        return (delta.transpose(1, 2) @ gradient / delta.square().sum(1, keepdim=True).clamp_min(_TINY)).clamp(-1e4, 1e4) / (1 + penalty)
    delta, gradient = delta.double(), gradient.double()
    gram = delta.transpose(1, 2) @ delta
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_TINY**2)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    found: torch.Tensor = torch.linalg.solve(gram + ((penalty + 1e-12) * scale)[:, None, None] * eye, delta.transpose(1, 2) @ gradient)
    return found.nan_to_num(0, 0, 0).clamp(-1e4, 1e4).float()
