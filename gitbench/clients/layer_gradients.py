"""The gradient of each victim by the parameters of one layer, from what the layer read and the loss's slope by what it returned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_input, conv2d_weight

from gitbench.clients.linear_layers import FEW_PLACES, Reach, by_patches, normalized

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

    def products(self, name: str, aim: Aim) -> tuple[torch.Tensor, torch.Tensor]:
        """Of the same gradient with an aim, and with itself: inner products ``(V,)`` each.

        Where a victim's maps have few positions, the gradient, which is a sum of few outer products, is not written out.
        """
        layer, victims = self.layer, len(aim.tensor)
        if name == "weight" and isinstance(layer, nn.Linear):
            return _factors_of_linear(self.inputs, self.slope, victims).products(aim.tensor)
        if name == "weight" and isinstance(layer, nn.Conv2d) and _patched(layer, self.slope, victims):
            factors, reach = _factors_of_convolution(layer, self.inputs, self.slope, victims)
            dots, squares = factors.products(aim.cut(reach).reshape(len(factors.left), -1, factors.right.shape[1]))
            return dots.reshape(victims, -1).sum(1), squares.reshape(victims, -1).sum(1)
        dots, squares = _Products.apply(self.gradient(name, victims=victims).flatten(1), aim.tensor.flatten(1))
        return dots, squares


class Aim:
    """What gradients by one parameter are compared with, again and again.

    Args:
        tensor: ``(V, *shape)``.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self._cut: dict[Reach, torch.Tensor] = {}

    def cut(self, reach: Reach) -> torch.Tensor:
        """The taps that a convolution reaches with, side by side in memory: long rows are read in one go."""
        if reach not in self._cut:
            self._cut[reach] = self.tensor if reach.whole else reach.cut(self.tensor).contiguous()
        return self._cut[reach]


class _Products(Function):
    """Inner products of the rows of two matrices ``(V, D)``, and of those of the first with themselves."""

    @staticmethod
    def forward(ctx: Any, mine: torch.Tensor, theirs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.save_for_backward(mine, theirs)
        return torch.linalg.vecdot(mine, theirs), torch.linalg.vecdot(mine, mine)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None]:
        mine, theirs = ctx.saved_tensors
        of_dots, of_squares = (slope[:, None] for slope in slopes)
        return torch.addcmul(2 * of_squares * mine, of_dots, theirs), None


class _Product(Function):
    """``left rightᵀ`` of ``(M, O, P)`` and ``(M, K, P)``; each slope in the order in which rows are long."""

    @staticmethod
    def forward(ctx: Any, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(left, right)
        if left.shape[2] == 1:
            return left * right.transpose(1, 2)
        if left.shape[2] >= FEW_PLACES:
            return left @ right.transpose(1, 2)
        return torch.stack([mine @ other.T for mine, other in zip(left, right, strict=True)])  # a batched product is slow at few summands

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (left, right), (slope,) = ctx.saved_tensors, slopes
        if left.shape[2] >= FEW_PLACES:
            return slope @ right, slope.transpose(1, 2) @ left
        of_left, of_right = right.transpose(1, 2) @ slope.transpose(1, 2), left.transpose(1, 2) @ slope
        return of_left.transpose(1, 2), of_right.transpose(1, 2)


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
        found: torch.Tensor = _Product.apply(self.left, self.right)
        return found

    @property
    def few(self) -> bool:
        """Whether the product has so few summands that it takes longer to write it out."""
        (_, outputs, places), inputs = self.left.shape, self.right.shape[1]
        return 3 * places * (outputs + inputs) <= outputs * inputs

    def products(self, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Inner products of the product with ``other (M, O, K)`` and with itself, each ``(M,)``; it is not written out where it is wide."""
        if not self.few:
            dots, squares = _Products.apply(self.product().flatten(1), other.flatten(1))
            return dots, squares
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
    return normalized(layer, inputs)


def _factors_of_linear(inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> _Factors:
    left, right = (tensor.reshape(victims, -1, tensor.shape[-1]).transpose(1, 2) for tensor in (slope, inputs))
    return _Factors(left, right)


def _of_convolution(layer: nn.Conv2d, inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> torch.Tensor:
    if not _patched(layer, slope, victims):
        inputs, padding = _padded(layer, inputs)
        how = (layer.stride, padding, layer.dilation, victims * layer.groups)
        kernels: torch.Tensor = _Kernels.apply(inputs, slope, layer.kernel_size, victims, how)
        return kernels.reshape(victims, *layer.weight.shape)
    factors, reach = _factors_of_convolution(layer, inputs, slope, victims)
    rows, columns = reach.rows, reach.columns
    found = factors.product().reshape(victims, *layer.weight.shape[:2], len(rows), len(columns))
    height, width = layer.kernel_size
    return functional.pad(found, (columns.start, width - columns.stop, rows.start, height - rows.stop))


class _Kernels(Function):
    """The gradients by each victim's own kernel, ``(V * O, C / groups, h, w)``, and the slopes of them by what they are made of."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, slope: torch.Tensor, kernel: Sequence[int], victims: int, how: tuple[Any, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs, slope)
        ctx.victims, ctx.how = victims, how
        inputs, slope = _side_by_side(inputs, victims), _side_by_side(slope, victims)
        found: torch.Tensor = conv2d_weight(inputs, (slope.shape[1], inputs.shape[1] // how[-1], *kernel), slope, *how)
        return found

    @staticmethod
    def backward(ctx: Any, *kernels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        inputs, slope = (_side_by_side(tensor, ctx.victims) for tensor in ctx.saved_tensors)
        of_inputs = conv2d_input(inputs.shape, kernels[0], slope, *ctx.how)
        of_slope = functional.conv2d(inputs, kernels[0], None, *ctx.how)
        return _one_below_the_other(of_inputs, ctx.victims), _one_below_the_other(of_slope, ctx.victims), None, None, None


def _factors_of_convolution(layer: nn.Conv2d, inputs: torch.Tensor, slope: torch.Tensor, victims: int) -> tuple[_Factors, Reach]:
    """For each victim and group of channels, and the taps that the product stands for: the gradient of the others is zero."""
    inputs, padding = _padded(layer, inputs)
    reach = Reach.of(inputs.shape[2:], layer.kernel_size, layer.stride, padding, layer.dilation)
    kernel = len(reach.rows), len(reach.columns)
    inputs, padding = (inputs, padding) if reach.whole else (functional.pad(inputs, reach.margins), (0, 0))
    patches = functional.unfold(inputs, kernel, layer.dilation, padding, layer.stride)

    def of_victims(tensor: torch.Tensor) -> torch.Tensor:
        split = tensor.reshape(victims, -1, layer.groups, tensor.shape[1] // layer.groups, patches.shape[2])
        return split.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 1)

    return _Factors(of_victims(slope), of_victims(patches)), reach


def _patched(layer: nn.Conv2d, slope: torch.Tensor, victims: int) -> bool:
    """Whether products of matrices are quicker than grouped convolutions."""
    places = slope.shape[2:].numel() * (len(slope) // victims)
    return places < _FEW or by_patches(len(slope), layer.in_channels, layer.kernel_size, slope.shape[2:])


def _padded(layer: nn.Conv2d, inputs: torch.Tensor) -> tuple[torch.Tensor, tuple[int, ...]]:
    """What a convolution reads, and the zeros that are still to be put around it."""
    padding: str | tuple[int, ...] = layer.padding
    if layer.padding_mode == "zeros" and isinstance(padding, tuple):
        return inputs, padding
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    return functional.pad(inputs, layer._reversed_padding_repeated_twice, mode), (0, 0)


def _one_below_the_other(tensor: torch.Tensor, victims: int) -> torch.Tensor:
    """The inverse of :func:`_side_by_side`."""
    return tensor.reshape(len(tensor), victims, -1, *tensor.shape[2:]).transpose(0, 1).flatten(0, 1)


def _side_by_side(tensor: torch.Tensor, victims: int) -> torch.Tensor:
    """Of the victims' images ``(V * B, C, H, W)`` one batch ``(B, V * C, H, W)``: each victim has channels of its own."""
    return tensor.reshape(victims, -1, *tensor.shape[1:]).transpose(0, 1).flatten(1, 2)
