"""What a convolution makes of a covariance that all channels of its input share: ``W (1 ⊗ S) Wᵀ``, without writing ``W`` out."""

from __future__ import annotations

import functools

import torch
from torch.nn import functional

from gitbench.attacker.layers.chain import Layer

_ENTRIES = 2**22  # that are gathered at once


def kernel_pairs(weight: torch.Tensor) -> torch.Tensor:
    """Products of a convolution's weight ``(O, C, kh, kw)``, summed over the channels of its input.

    Returns:
        ``(O (O + 1) / 2, K, K)``, of each pair of output channels one for each pair of the ``K = kh kw`` entries of the kernel; pairs as in
        ``torch.tril_indices``.
    """
    flat = weight.flatten(2)
    first, second = torch.tril_indices(len(flat), len(flat), device=weight.device)
    return flat[first].transpose(1, 2) @ flat[second]


def covariance_through(layer: Layer, pairs: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """The covariance of a convolution's outputs ``(outputs, outputs)``: its lower triangle, which a Cholesky factorization reads.

    Args:
        layer: a convolution.
        pairs: of its weight, by :func:`kernel_pairs`.
        covariance: of one channel's positions, ``(places, places)``; channels are independent.
    """
    channels, positions = layer.output_shape[0], layer.output_shape[1] * layer.output_shape[2]
    found = covariance.new_zeros(channels, positions, channels, positions)
    first, second = torch.tril_indices(channels, channels, device=covariance.device)
    padded, products = functional.pad(covariance, (0, 1, 0, 1)).flatten(), pairs.flatten(1)
    assert layer.kernel is not None
    shape = layer.input_shape[1:], layer.kernel, layer.stride, layer.padding
    strip = max(1, _ENTRIES // (products.shape[1] * positions))
    for start in range(0, positions, strip):
        stop = min(start + strip, positions)
        seen = padded.index_select(0, _seen(*shape, start, stop).to(padded.device)).view(products.shape[1], -1)
        found[first, start:stop, second] = (products @ seen).view(len(first), stop - start, positions)
    return found.view(channels * positions, channels * positions)


@functools.lru_cache(maxsize=2)
def _seen(
    sides: tuple[int, ...], kernel: tuple[int, int], stride: int, padding: int, start: int, stop: int
) -> torch.Tensor:  # fmt: skip
    """Where the padded covariance has what two entries of the kernel see at two output positions: ``K K (stop - start) positions``."""
    places = sides[0] * sides[1]
    numbers = torch.arange(1, places + 1, dtype=torch.float64).reshape(1, 1, *sides)
    found = functional.unfold(numbers, kernel, padding=padding, stride=stride)[0].long()
    found = torch.where(found == 0, places, found - 1)  # what lies beside the image is 0, behind all others
    return (found[:, None, start:stop, None] * (places + 1) + found[None, :, None, :]).flatten()
