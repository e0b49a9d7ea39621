"""The gradient of each victim by the parameters of one layer, from what the layer read and the loss's slope by what it returned."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_weight

_FEW = 32  # positions of a victim's maps, below which a product of matrices is quicker than a grouped convolution


@dataclass(frozen=True)
class Passed:
    """What passed through a layer while the images of all victims went through the model side by side.

    Args:
        layer: one that :func:`is_known`.
        inputs: what it read, ``(V * B, ...)``.
        slope: of the sum of the victims' losses by what it returned, ``(V * B, ...)``.
    """

    layer: nn.Module
    inputs: torch.Tensor
    slope: torch.Tensor

    def gradient(self, name: str, *, victims: int) -> torch.Tensor:
        """By the layer's ``weight`` or ``bias``, ``(V, *shape)``; differentiable in what passed."""
        layer = self.layer
        if isinstance(layer, nn.Conv2d) and name == "weight":
            return _of_convolution(layer, self.inputs, self.slope, victims)
        if isinstance(layer, nn.Linear) and name == "weight":
            inputs, slope = (tensor.reshape(victims, -1, tensor.shape[-1]) for tensor in (self.inputs, self.slope))
            return _products(slope.transpose(1, 2), inputs.transpose(1, 2))
        values = self.slope if name == "bias" else self.slope * _normalized(layer, self.inputs)
        if isinstance(layer, nn.Linear | nn.LayerNorm):  # what it is added to comes last
            return values.reshape(victims, -1, *layer.get_parameter(name).shape).sum(1)
        return values.reshape(victims, -1, values.shape[1], values[0, 0].numel()).sum((1, 3))


def is_known(layer: nn.Module) -> bool:
    """Whether this module knows the layer's gradients: it is of a type, and in a mode, that treats each image by itself."""
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d):
        return layer.running_mean is not None and not layer.training
    return type(layer) in (nn.Conv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)


def _normalized(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """What a layer's weight is multiplied by."""
    if isinstance(layer, nn.LayerNorm):
        return functional.layer_norm(inputs, layer.normalized_shape, eps=layer.eps)
    if isinstance(layer, nn.GroupNorm):
        return functional.group_norm(inputs, layer.num_groups, eps=layer.eps)
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return functional.batch_norm(inputs, layer.running_mean, layer.running_var, eps=layer.eps)


def _of_convolution(layer: nn.Conv2d, inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> torch.Tensor:
    inputs, padding = _padded(layer, inputs)
    if slope.shape[2:].numel() * (len(slope) // victims) >= _FEW:
        groups, shape = victims * layer.groups, (victims * layer.out_channels, *layer.weight.shape[1:])
        inputs, slope = _side_by_side(inputs, victims), _side_by_side(slope, victims)
        whole: torch.Tensor = conv2d_weight(inputs, shape, slope, layer.stride, padding, layer.dilation, groups)
        return whole.reshape(victims, *layer.weight.shape)
    (rows, down), (columns, across) = (_taps(layer, inputs, slope, padding, side) for side in (0, 1))
    kernel = len(rows), len(columns)
    patches = functional.unfold(functional.pad(inputs, (*across, *down)), kernel, layer.dilation, stride=layer.stride)
    left, right = (
        tensor.reshape(victims, -1, layer.groups, tensor.shape[1] // layer.groups, patches.shape[2]).permute(0, 2, 3, 1, 4).flatten(3)
        for tensor in (slope, patches)
    )
    found = _products(left.flatten(0, 1), right.flatten(0, 1)).reshape(victims, layer.out_channels, -1, *kernel)
    (height, width) = layer.kernel_size
    return functional.pad(found, (columns.start, width - columns.stop, rows.start, height - rows.stop))


def _padded(layer: nn.Conv2d, inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """What a convolution reads, and the zeros that are still to be put around it."""
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode == "zeros" and isinstance(padding, tuple):
        return inputs, padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, layer._reversed_padding_repeated_twice, mode), (0, 0)


def _taps(
    layer: nn.Conv2d, inputs: torch.Tensor, slope: torch.Tensor, padding: tuple[int, ...], side: int
) -> tuple[range, tuple[int, int]]:
    """Along one side, which of the kernel's taps read more than padding, and the margins to be put around the image for them.

    On a map of 1x1 a padded 3x3 kernel has one such tap: the gradient of the others is zero.
    """
    size, stride, dilation = inputs.shape[2 + side], layer.stride[side], layer.dilation[side]
    starts = [place * stride - padding[side] for place in range(slope.shape[2 + side])]
    reading = [tap for tap in range(layer.kernel_size[side]) if any(0 <= start + tap * dilation < size for start in starts)] or [0]
    first, last = reading[0], reading[-1]
    return range(first, last + 1), (-(starts[0] + first * dilation), starts[-1] + last * dilation + 1 - size)


def _side_by_side(tensor: torch.Tensor, victims: int) -> torch.Tensor:
    """Of the victims' images ``(V * B, C, H, W)`` one batch ``(B, V * C, H, W)``: each victim has channels of its own."""
    return tensor.reshape(victims, -1, *tensor.shape[1:]).transpose(0, 1).flatten(1, 2)


def _products(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sums over positions of outer products: ``(M, O, P)`` and ``(M, K, P)`` to ``(M, O, K)``."""
    return left * right.transpose(1, 2) if left.shape[2] == 1 else left @ right.transpose(1, 2)
