"""Layers as linear maps of the images: slopes of any order are made of the map and its adjoint, and of nothing else."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional
from torch.nn.grad import conv2d_input

FEW_PLACES = 16
"""Columns of a matrix below which it is quicker transposed: its rows are long then."""
_CHANNELS = 4
_PATCHES = 2**16


@dataclass(frozen=True)
class Reach:
    """What a convolution reads along its two sides: those taps of the kernel that ever read more than padding.

    On a map of 1x1 a padded 3x3 kernel has one such tap.

    Args:
        rows: of the kernel, that are kept.
        columns: likewise.
        margins: zeros to be put left, right, above and below of the image for them; what is to be cut away where negative.
        whole: every tap is kept.
    """

    rows: range
    columns: range
    margins: tuple[int, int, int, int]
    whole: bool

    @classmethod
    def of(
        cls, size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
    ) -> Reach:
        """Of images, and a kernel, of this height and width."""
        (rows, down), (columns, across) = map(_along, size, kernel, stride, padding, dilation)
        return cls(rows, columns, (*across, *down), (len(rows), len(columns)) == tuple(kernel))

    def cut(self, weight: torch.Tensor) -> torch.Tensor:
        """The taps that are kept, of ``(..., h, w)``."""
        return weight[..., self.rows.start : self.rows.stop, self.columns.start : self.columns.stop]


def _along(size: int, kernel: int, stride: int, padding: int, dilation: int) -> tuple[range, tuple[int, int]]:
    places = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    starts = range(-padding, places * stride - padding, stride)
    reading = [tap for tap in range(kernel) if any(0 <= start + tap * dilation < size for start in starts)] or [0]
    first, last = reading[0], reading[-1]
    return range(first, last + 1), (padding - first * dilation, starts[-1] + last * dilation + 1 - size)


def by_patches(images: int, channels: int, kernel: Sequence[int], places: Sequence[int]) -> bool:
    """Whether a product of matrices, with what the kernel reads written out for each place, is quicker than a convolution's slope.

    It is for a few images, and for images themselves, whose channels are too few for the convolution's own code.
    """
    return channels <= _CHANNELS or images * channels * math.prod(kernel) * math.prod(places) <= _PATCHES


@dataclass(frozen=True)
class _Map:
    """A convolution without its bias."""

    weight: torch.Tensor
    margins: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @classmethod
    def of(
        cls,
        images: torch.Tensor,
        weight: torch.Tensor,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int,
    ) -> _Map:
        reach = Reach.of(images.shape[2:], weight.shape[2:], stride, padding, dilation)
        if reach.whole:
            return cls(weight, (), stride, padding, dilation, groups)
        return cls(reach.cut(weight).contiguous(), reach.margins, stride, (0, 0), dilation, groups)

    def forth(self, images: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        images = functional.pad(images, self.margins) if self.margins else images
        return functional.conv2d(images, self.weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def back(self, slope: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        left, right, top, bottom = self.margins or (0, 0, 0, 0)
        height, width = size[0] + top + bottom, size[1] + left + right
        channels = self.groups * self.weight.shape[1]
        kernel = self.weight.shape[2:]
        if self.groups == 1 and by_patches(len(slope), channels, kernel, slope.shape[2:]):
            images = functional.fold(self._patches(slope.flatten(2)), (height, width), kernel, self.dilation, self.padding, self.stride)
        else:
            padded = (len(slope), channels, height, width)
            images = conv2d_input(padded, self.weight, slope, self.stride, self.padding, self.dilation, self.groups)
        return functional.pad(images, [-margin for margin in self.margins]) if self.margins else images

    def _patches(self, slope: torch.Tensor) -> torch.Tensor:
        """What the slopes ``(N, O, P)`` of each place are to what was read there, ``(N, C * h * w, P)``."""
        weight = self.weight.flatten(1)
        if slope.shape[2] >= FEW_PLACES:
            found: torch.Tensor = weight.T @ slope
            return found
        one_below_the_other: torch.Tensor = slope.transpose(1, 2).flatten(0, 1) @ weight  # the weight is read once for all images
        return one_below_the_other.reshape(len(slope), -1, weight.shape[1]).transpose(1, 2)


class _Forth(Function):
    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, bias: torch.Tensor | None, convolution: _Map) -> torch.Tensor:
        ctx.convolution, ctx.size = convolution, images.shape[2:]
        return convolution.forth(images, bias)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Back.apply(slopes[0], ctx.size, ctx.convolution), None, None


class _Back(Function):
    @staticmethod
    def forward(ctx: Any, slope: torch.Tensor, size: Sequence[int], convolution: _Map) -> torch.Tensor:
        ctx.convolution = convolution
        return convolution.back(slope, size)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _Forth.apply(slopes[0], None, ctx.convolution), None, None


@contextlib.contextmanager
def linear_layers(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Inside the block convolutions and BatchNorm in eval mode, whose weights are not differentiated, are computed as linear maps.

    torch's own second derivative computes slopes by the weights beside those by the images, whether they are asked for or not.
    """
    layers = tuple(layers)
    norms = [layer for layer in layers if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d)]
    found = [layer for layer in layers if type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple)]
    for layer in found:
        vars(layer)["_conv_forward"] = functools.partial(_computed, layer)
    for norm in norms:
        vars(norm)["forward"] = functools.partial(_scaled, norm)
    try:
        yield
    finally:
        for layer in found:
            del vars(layer)["_conv_forward"]
        for norm in norms:
            del vars(norm)["forward"]


def _scaled(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    assert isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d)
    return normalized(layer, inputs, layer.weight, layer.bias)


def normalized(layer: nn.BatchNorm1d | nn.BatchNorm2d, inputs: torch.Tensor, weight: object = None, bias: object = None) -> torch.Tensor:
    """What BatchNorm in eval mode makes of its inputs, in one pass over them."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    scale = (layer.running_var + layer.eps).rsqrt()
    scale = scale * weight if isinstance(weight, torch.Tensor) else scale
    shift = bias - layer.running_mean * scale if isinstance(bias, torch.Tensor) else -layer.running_mean * scale
    channels = (-1, *(1,) * (inputs.ndim - 2))
    return torch.addcmul(shift.reshape(channels), inputs, scale.reshape(channels))


def _computed(layer: nn.Conv2d, images: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    assert isinstance(layer.padding, tuple)
    found: torch.Tensor = _Forth.apply(images, bias, _Map.of(images, weight, layer.stride, layer.padding, layer.dilation, layer.groups))
    return found
