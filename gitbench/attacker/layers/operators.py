"""The linear algebra of one layer: forwards, backwards, its gradient, and the gradient solved for its input."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from gitbench.attacker.layers.chain import Layer

_SATURATED = 1e-4  # an estimate closer to an activation's bounds than this is mostly noise
_ROWS = 256
_CHUNK = 16  # systems solved at once: more of them do not fit into the cache


def forward(layer: Layer, weight: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor) -> torch.Tensor:
    """Pre-activations ``(N, *output_shape)`` of inputs ``(N, *input_shape)``, flattened or not."""
    inputs = inputs.reshape(-1, *layer.input_shape)
    if layer.is_conv:
        return functional.conv2d(inputs, weight, bias, stride=layer.stride, padding=layer.padding)
    return functional.linear(inputs, weight, bias)


def backward(layer: Layer, weight: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """``Wᵀ δ``: the loss's gradient by the layer's input, ``(N, *input_shape)``."""
    delta = delta.reshape(-1, *layer.output_shape)
    if not layer.is_conv:
        return delta @ weight
    shape = (len(delta), *layer.input_shape)
    found: torch.Tensor = conv2d_input(shape, weight, delta, stride=layer.stride, padding=layer.padding)
    return found


def gradient(layer: Layer, inputs: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """``G = δ aᵀ`` of every example: by the weight ``(N, *weight.shape)`` and by the bias ``(N, outputs)``."""
    delta = delta.reshape(-1, *layer.output_shape)
    if not layer.is_conv:
        return delta[:, :, None] * inputs.flatten(1)[:, None], delta
    patches = patches_of(layer, inputs)
    found = torch.einsum("nop,nkp->nok", delta.flatten(2), patches)
    return found.reshape(len(delta), layer.output_shape[0], layer.input_shape[0], *_sides(layer)), delta.sum((2, 3))


def patches_of(layer: Layer, inputs: torch.Tensor) -> torch.Tensor:
    """What each output position of a convolution sees: ``(N, C * kh * kw, positions)``."""
    inputs = inputs.reshape(-1, *layer.input_shape)
    return functional.unfold(inputs, _sides(layer), padding=layer.padding, stride=layer.stride)


def least_squares_input(delta: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """A linear layer's input ``δ⁺ G (N, inputs)`` from its gradient ``(N, outputs, inputs)``, of one example each.

    It is the average of what every output unit says, ``G_h / δ_h``, weighted by ``δ_h²``.
    """
    return torch.einsum("no,noi->ni", delta, gradient) / delta.square().sum(1, keepdim=True).clamp_min(1e-30)


def derivative(activation: nn.Module | None, outputs: torch.Tensor) -> torch.Tensor:
    """``σ'(z)`` from ``σ(z)``."""
    if isinstance(activation, nn.Sigmoid):
        return outputs * (1 - outputs)
    if isinstance(activation, nn.Tanh):
        return 1 - outputs.square()
    if isinstance(activation, nn.ReLU):
        return (outputs > 0).to(outputs.dtype)
    if isinstance(activation, nn.LeakyReLU):
        return torch.where(outputs > 0, 1.0, activation.negative_slope).to(outputs.dtype)
    return torch.ones_like(outputs)


def inverse(activation: nn.Module | None, outputs: torch.Tensor, *, edge: float = _SATURATED) -> torch.Tensor:
    """``z`` from ``σ(z)``, no closer to its bounds than ``edge``; of a ReLU's zeros only the bound 0 is known, and returned."""
    if isinstance(activation, nn.Sigmoid):
        return outputs.clamp(edge, 1 - edge).logit()
    if isinstance(activation, nn.Tanh):
        return outputs.clamp(-1 + edge, 1 - edge).atanh()
    if isinstance(activation, nn.LeakyReLU):
        return torch.where(outputs > 0, outputs, outputs / activation.negative_slope)
    if isinstance(activation, nn.ReLU):
        return outputs.clamp_min(0)
    return outputs


def solve(
    layer: Layer,
    delta: torch.Tensor,
    weight_gradient: torch.Tensor,
    *,
    prior: torch.Tensor,
    precision: torch.Tensor,
    variance: float,
    sparse: bool = False,
) -> torch.Tensor:
    """The layer's input from its gradient: ``argmin_a |G - δ aᵀ|² / variance + (a - prior)ᵀ precision (a - prior)``.

    ``variance -> 0`` with a vanishing precision is the Moore-Penrose inverse ``δ⁺ G``. The channels of a
    convolution's input share one system of equations, which differs from victim to victim.

    Args:
        layer: the layer.
        delta: ``(N, *output_shape)``.
        weight_gradient: ``(N, *weight.shape)``.
        prior: mean of the input before its gradient was seen, ``(N, *input_shape)``.
        precision: inverse covariance of its error: ``(positions, positions)`` of a convolution's
            input, shared by the channels; ``(F,)`` of a linear layer's.
        variance: of the noise on each entry of the gradient.
        sparse: zeros in the gradient mean that nothing was sent.

    Returns:
        ``(N, *input_shape)``.
    """
    if not layer.is_conv:
        parts = zip(delta.split(_ROWS), weight_gradient.split(_ROWS), prior.split(_ROWS), strict=True)
        return torch.cat([_solve_linear(*part, precision=precision, variance=variance, sparse=sparse) for part in parts])
    found = []
    for rows in torch.arange(len(delta), device=delta.device).split(_CHUNK):
        mean = prior[rows].flatten(2)
        gram, back = normal_equations(layer, delta[rows], weight_gradient[rows], mean, sparse=sparse)
        factor, failed = torch.linalg.cholesky_ex(gram / variance + precision)
        told = torch.cholesky_solve(back / variance, factor).transpose(1, 2)
        # Where float32 cannot solve the system, the prior stays.
        found.append(mean + torch.where((failed == 0)[:, None, None] & told.isfinite(), told, 0))
    return torch.cat(found).reshape(prior.shape)


def _solve_linear(
    delta: torch.Tensor, gradient: torch.Tensor, prior: torch.Tensor, *, precision: torch.Tensor, variance: float, sparse: bool
) -> torch.Tensor:
    squares = delta.square()
    seen = torch.einsum("no,noi->ni", squares, (gradient != 0).to(delta.dtype)) if sparse else squares.sum(1, keepdim=True)
    back = torch.einsum("no,noi->ni", delta, gradient) - seen * prior
    return prior + back / (seen + variance * precision)


def normal_equations(
    layer: Layer, delta: torch.Tensor, weight_gradient: torch.Tensor, mean: torch.Tensor, *, sparse: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of a convolution: ``AᵀA (N, positions, positions)`` and ``Aᵀ(G - A mean) (N, positions, channels)``.

    ``A`` maps one channel of the input to that channel's part of ``G``. Positions that a stride keeps
    apart are never seen by one entry of the kernel, so the matrix falls into ``stride²`` blocks.
    """
    count, positions = len(delta), layer.input_shape[1] * layer.input_shape[2]
    padded = torch.cat([delta.flatten(2), delta.new_zeros(count, delta.shape[1], 1)], dim=2)
    kernels = weight_gradient.flatten(3)  # (N, O, C, kernel entries)
    gram = delta.new_zeros(count, positions, positions)
    back = delta.new_zeros(count, positions, mean.shape[1])
    for entries, places, source in _blocks(layer):
        block = padded[:, :, source.to(delta.device)].flatten(1, 2)  # (N, O * entries, places)
        seen = kernels[..., entries].permute(0, 1, 3, 2).flatten(1, 2)  # (N, O * entries, C)
        missing = seen - block @ mean[:, :, places].transpose(1, 2)
        if sparse:
            missing = missing * (seen != 0)
        gram[:, places[:, None], places] = block.transpose(1, 2) @ block
        back[:, places] = block.transpose(1, 2) @ missing
    return gram, back


def _blocks(layer: Layer) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    yield from _cached_blocks(layer.input_shape[1:], layer.output_shape[1:], layer.stride, layer.padding, _sides(layer))


@functools.lru_cache(maxsize=32)
def _cached_blocks(
    inputs: tuple[int, int], outputs: tuple[int, int], stride: int, padding: int, sides: tuple[int, int]
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Per residue of the stride: kernel entries, input positions, and the output position that links each pair."""
    rows, columns = torch.meshgrid(torch.arange(inputs[0]), torch.arange(inputs[1]), indexing="ij")
    down, across = torch.meshgrid(torch.arange(sides[0]), torch.arange(sides[1]), indexing="ij")
    found = []
    for row in range(stride):
        for column in range(stride):
            places = ((rows % stride == row) & (columns % stride == column)).flatten().nonzero().flatten()
            fits = ((row + padding - down) % stride == 0) & ((column + padding - across) % stride == 0)
            entries = fits.flatten().nonzero().flatten()
            if not len(places) or not len(entries):
                continue
            y = (rows.flatten()[places] + padding - down.flatten()[entries][:, None]).div(stride, rounding_mode="floor")
            x = (columns.flatten()[places] + padding - across.flatten()[entries][:, None]).div(stride, rounding_mode="floor")
            inside = (y >= 0) & (y < outputs[0]) & (x >= 0) & (x < outputs[1])
            source = torch.where(inside, y * outputs[1] + x, outputs[0] * outputs[1])
            found.append((entries, places, source))
    return found


def _sides(layer: Layer) -> tuple[int, int]:
    assert layer.kernel is not None
    return layer.kernel
