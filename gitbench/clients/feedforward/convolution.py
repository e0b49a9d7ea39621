"""Convolutions of a chain whose channels are few, so that what the kernel reads is written out for each place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from gitbench.clients.feedforward.links import Compared, Pair, Products, Turned, Weighted
from gitbench.clients.layer_gradients import Aim
from gitbench.clients.linear_layers import by_patches


class Convolution(Weighted):
    """``torch.nn.Conv2d`` without groups and dilation.

    Args:
        layer: one that :func:`fits`; its sizes count.
        kernel: its weight, ``(O, C, h, w)``.
        offset: its bias ``(O,)``, where it has one.
        size: height and width of the images.
        weight: name of the weight, where it trains.
        bias: name of the bias, where it trains.
    """

    def __init__(
        self,
        layer: nn.Conv2d,
        kernel: torch.Tensor,
        offset: torch.Tensor | None,
        size: tuple[int, int],
        *,
        weight: str | None = None,
        bias: str | None = None,
    ) -> None:
        assert isinstance(layer.padding, tuple)
        self.weight, self.bias, self.size = weight, bias, size
        self.stride, self.padding = (layer.stride[0], layer.stride[1]), (layer.padding[0], layer.padding[1])
        self.kernel, self._offset = kernel, offset
        sides = zip(size, self.padding, layer.kernel_size, self.stride, strict=True)
        self.places = tuple((whole + 2 * margin - side) // step + 1 for whole, margin, side, step in sides)
        self._flipped = flipped(kernel[None]) if self.turns_round else None

    @property
    def patches(self) -> int:
        """Entries of what is written out for one image."""
        return self.kernel[0].numel() * math.prod(self.places)

    @property
    def around(self) -> tuple[int, int]:
        """The padding of what goes back, where the convolution :attr:`turns_round`."""
        return self.kernel.shape[2] - 1 - self.padding[0], self.kernel.shape[3] - 1 - self.padding[1]

    @property
    def turns_round(self) -> bool:
        """Whether what goes back is a convolution too, with the kernel turned round."""
        return self.stride == (1, 1) and min(self.around) >= 0

    def folds(self, images: int) -> bool:
        """Whether what goes back is quicker written out for each place, and folded."""
        return by_patches(images, self.kernel.shape[1], self.kernel.shape[2:], self.places)

    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(inputs, self.kernel, self._offset, self.stride, self.padding)

    def written_out(self, inputs: torch.Tensor, victims: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        if not self.folds(len(inputs)) or victims < len(inputs):
            return self.forth(inputs), None
        patches, kernel = self.patches_of(inputs, victims), self.kernel.flatten(1)
        output = kernel @ patches if self._offset is None else torch.baddbmm(self._offset[:, None], kernel.expand(victims, -1, -1), patches)
        return output.reshape(victims, -1, *self.places), patches

    def patches_of(self, inputs: torch.Tensor, victims: int) -> torch.Tensor:
        """What the kernel reads at each place of all images of a victim, ``(V, K, P)``."""
        (top, left), (down, across), (height, width) = self.padding, self.stride, self.kernel.shape[2:]
        padded = functional.pad(inputs, (left, left, top, top)) if top or left else inputs
        read = padded.unfold(2, height, down).unfold(3, width, across).unflatten(0, (victims, -1))  # (V, B, C, *places, h, w)
        patches: torch.Tensor = read.permute(0, 2, 5, 6, 1, 3, 4).reshape(victims, self.kernel[0].numel(), -1)
        return patches

    def push(self, direction: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return functional.conv2d(direction, self.kernel, None, self.stride, self.padding)

    def back(self, slope: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        if self.folds(len(slope)):
            transposed, slope = self.kernel.flatten(1).T, slope.flatten(2)
            read = transposed @ slope if more is None else more.baddbmm_(transposed.expand(len(slope), -1, -1), slope)
            return functional.fold(read, self.size, self.kernel.shape[2:], padding=self.padding, stride=self.stride)
        if self._flipped is not None:
            images = functional.conv2d(slope, self._flipped, padding=self.around)
        else:
            images = conv2d_input(inputs.shape, self.kernel, slope, self.stride, self.padding)
        return images if more is None else images + more

    def pair(self, inputs: torch.Tensor, slope: torch.Tensor, victims: int, written: torch.Tensor | None) -> Pair:
        return _Patches(self, self.patches_of(inputs, victims) if written is None else written, slope)


class _Patches(Pair):
    """What the kernel read at each place of all images of a victim, ``(V, K, P)``, and the slopes there, ``(V, O, P)``."""

    def __init__(self, layer: Convolution, patches: torch.Tensor, slope: torch.Tensor) -> None:
        self._layer, self._patches, self._victims, self._images = layer, patches, len(patches), len(slope)
        self._maps = slope.reshape(self._victims, -1, *slope.shape[1:]).transpose(1, 2)  # (V, O, B, *places)
        self._slope = self._maps.flatten(2)

    def weight(self) -> torch.Tensor:
        return (self._slope @ self._patches.transpose(1, 2)).reshape(self._victims, *self._layer.kernel.shape)

    def bias(self) -> torch.Tensor:
        return self._slope.sum(2)

    def turned(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Turned:
        if weight is None:
            return None if bias is None else self._image_by_image(bias[:, :, None].expand_as(self._slope)), None
        weight = weight.flatten(2)
        of_slope = weight @ self._patches if bias is None else torch.baddbmm(bias[:, :, None], weight, self._patches)
        return self._image_by_image(of_slope), self._of_inputs(weight)

    def products(self, weight: Aim | None, bias: Aim | None) -> list[Products]:
        written = ((weight, self.weight), (bias, self.bias))
        self._compared = [None if aim is None else Compared(mine().flatten(1), aim.tensor.flatten(1)) for aim, mine in written]
        return [one.products() for one in self._compared if one is not None]

    def turned_products(self, slopes: Sequence[Products]) -> Turned:
        weight, bias = self._compared
        return self.turned(
            None if weight is None else weight.turned(slopes[0]).reshape(self._victims, *self._layer.kernel.shape),
            None if bias is None else bias.turned(slopes[-1]),
        )

    def _of_inputs(self, weight: torch.Tensor) -> torch.Tensor:
        """As :meth:`Convolution.back` takes it, of weights ``(V, O, K)``."""
        layer = self._layer
        if layer.folds(self._images):
            read = weight.transpose(1, 2) @ self._slope
            return read.reshape(self._victims, read.shape[1], -1, math.prod(layer.places)).transpose(1, 2).flatten(0, 1)
        # All victims' images at once, each victim with channels of its own.
        maps, kernels = self._maps.movedim(2, 0).flatten(1, 2), weight.reshape(*weight.shape[:2], *layer.kernel.shape[1:])
        if layer.turns_round:
            images = functional.conv2d(maps, flipped(kernels), padding=layer.around, groups=self._victims)
        else:
            shape = len(maps), self._victims * kernels.shape[2], *layer.size
            images = conv2d_input(shape, kernels.flatten(0, 1), maps, layer.stride, layer.padding, groups=self._victims)
        return images.reshape(len(images), self._victims, -1, *layer.size).transpose(0, 1).flatten(0, 1)

    def _image_by_image(self, of_slope: torch.Tensor) -> torch.Tensor:
        return of_slope.reshape(self._maps.shape).transpose(1, 2).flatten(0, 1)


def flipped(kernels: torch.Tensor) -> torch.Tensor:
    """The kernels ``(G * C, O, h, w)`` that go back, of kernels ``(G, O, C, h, w)`` for each group of channels."""
    return kernels.transpose(1, 2).flip(-1, -2).flatten(0, 1)


def fits(layer: nn.Conv2d) -> bool:
    """Whether this module knows a convolution."""
    return layer.groups == 1 and layer.padding_mode == "zeros" and isinstance(layer.padding, tuple) and layer.dilation == (1, 1)
