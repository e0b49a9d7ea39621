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
        if name == "weight" and isinstance(layer, nn.Conv2d):
            return _of_convolution(layer, self.inputs, self.slope, victims)
        if name == "weight" and isinstance(layer, nn.Linear):
            return _factors_of_linear(self.inputs, self.slope, victims).product()
        values = self.slope if name == "bias" else self.slope * _normalized(layer, self.inputs)
        if isinstance(layer, nn.Linear | nn.LayerNorm):  # what it is added to comes last
            return values.reshape(victims, -1, *layer.get_parameter(name).shape).sum(1)
        return values.reshape(victims, -1, values.shape[1], values[0, 0].numel()).sum((1, 3))

    def products(self, name: str, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the same gradient with ``other (V, *shape)``, and with itself: inner products ``(V,)`` each.

        Where a victim's maps have few positions, the gradient, which is a sum of few outer products, is not written out.
        """
        layer, victims = self.layer, len(other)
        if name == "weight" and isinstance(layer, nn.Linear):
            factors = _factors_of_linear(self.inputs, self.slope, victims)
            if factors.few:
                return factors.products(other)
        if name == "weight" and isinstance(layer, nn.Conv2d) and _positions(self.slope, victims) < _FEW:
            factors, rows, columns = _factors_of_convolution(layer, self.inputs, self.slope, victims)
            if factors.few:
                read = other[..., rows.start : rows.stop, columns.start : columns.stop]
                dots, squares = factors.products(read.reshape(victims * layer.groups, -1, factors.right.shape[1]))
                return dots.reshape(victims, -1).sum(1), squares.reshape(victims, -1).sum(1)
        mine, theirs = self.gradient(name, victims=victims).flatten(1), other.flatten(1)
        return (mine * theirs).sum(1), mine.square().sum(1)


@dataclass(frozen=True)
class _Factors:
    """The matrices that a gradient ``left rightᵀ`` is made of.

    Args:
        left: ``(M, O, P)``.
        right: ``(M, K, P)``.
    """

    left: torch.Tensor
    right: torch.Tensor

    def product(self) -> torch.Tensor:
        """``(M, O, K)``."""
        left, right = self.left, self.right.transpose(1, 2)
        return left * right if left.shape[2] == 1 else left @ right

    @property
    def few(self) -> bool:
        """Whether the product has so few summands that it takes longer to write it out."""
        (_, outputs, places), inputs = self.left.shape, self.right.shape[1]
        return 3 * places * (outputs + inputs) <= outputs * inputs

    def products(self, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inner products of the product with ``other (M, O, K)`` and with itself, each ``(M,)``, without writing it out."""
        # In this order of factors the long matrix is read row by row, also on the way back.
        dots = ((self.left.transpose(1, 2) @ other) * self.right.transpose(1, 2)).sum((1, 2))
        # Where the summands cancel, a product of their inner products cancels twice as many digits.
        left, right = (factor.double() for factor in (self.left, self.right))
        squares = ((left.transpose(1, 2) @ left) * (right.transpose(1, 2) @ right)).sum((1, 2))
        return dots, squares.to(dots.dtype)


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


def _factors_of_linear(inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> _Factors:
    left, right = (tensor.reshape(victims, -1, tensor.shape[-1]).transpose(1, 2) for tensor in (slope, inputs))
    return _Factors(left, right)


def _of_convolution(layer: nn.Conv2d, inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> torch.Tensor:
    if _positions(slope, victims) >= _FEW:
        inputs, padding = _padded(layer, inputs)
        groups, shape = victims * layer.groups, (victims * layer.out_channels, *layer.weight.shape[1:])
        inputs, slope = _side_by_side(inputs, victims), _side_by_side(slope, victims)
        whole: torch.Tensor = conv2d_weight(inputs, shape, slope, layer.stride, padding, layer.dilation, groups)
        return whole.reshape(victims, *layer.weight.shape)
    factors, rows, columns = _factors_of_convolution(layer, inputs, slope, victims)
    found = factors.product().reshape(victims, *layer.weight.shape[:2], len(rows), len(columns))
    height, width = layer.kernel_size
    return functional.pad(found, (columns.start, width - columns.stop, rows.start, height - rows.stop))


def _factors_of_convolution(layer: nn.Conv2d, inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> tuple[_Factors, range, range]:
    """For each victim and group of channels, and the rows and columns of the kernel that the product stands for: the others' are zero."""
    inputs, padding = _padded(layer, inputs)
    (rows, down), (columns, across) = (_taps(layer, inputs, slope, padding, side) for side in (0, 1))
    patches = functional.unfold(functional.pad(inputs, (*across, *down)), (len(rows), len(columns)), layer.dilation, stride=layer.stride)
    left, right = (
        tensor.reshape(victims, -1, layer.groups, tensor.shape[1] // layer.groups, patches.shape[2])
        .permute(0, 2, 3, 1, 4)
        .flatten(3)
        .flatten(0, 1)
        for tensor in (slope, patches)
    )
    return _Factors(left, right), rows, columns


def _positions(slope: torch.Tensor, victims: int) -> int:
    """Of a victim's maps, all its images together."""
    return slope.shape[2:].numel() * (len(slope) // victims)


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
