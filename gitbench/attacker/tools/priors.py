"""Gaussian priors of a layer's input: from public images, or of the power spectrum that photographs have."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import fft

from gitbench.attacker.tools import rotations
from gitbench.attacker.tools.rotations import Dense, Rotation, Separable

DENSE = 4096
"""Pixels up to which a covariance is kept whole."""

_HIDDEN = 1024  # and entries of a hidden layer
_SHRUNK = 1e-3  # share of the mean variance added to every direction of a hidden layer's covariance
_PIXEL = 1e-6  # variance of a pixel beyond what the public images show: less than one grey level in 255
_FOLDS = 5
_GREY = 0.5
_CONTRAST = 0.06  # variance of a pixel over natural photographs
_FLAT = 1e-3  # of the spectrum: no direction is ruled out


@dataclass(frozen=True)
class Gaussian:
    """``N(mean, U diag(spread) Uᵀ)`` of a flattened input, in float64.

    Args:
        mean: ``(n,)``.
        spread: ``(n,)`` variances along the directions.
        directions: ``U``; None for those of the entries, where a whole covariance would be too large.
    """

    mean: torch.Tensor
    spread: torch.Tensor
    directions: Rotation | None

    @property
    def variance(self) -> torch.Tensor:
        """Of each entry, ``(n,)``."""
        return self.spread if self.directions is None else self.directions.squared().rows(self.spread)

    def precision(self) -> torch.Tensor:
        """``Σ⁻¹``: ``(n, n)``."""
        return torch.diag(1 / self.spread) if self.directions is None else self.directions.scaled(1 / self.spread)

    def weighted(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows @ Σ⁻¹``, of rows ``(..., n)``."""
        if self.directions is None:
            return rows / self.spread
        return self.directions.rows(self.directions.coordinates(rows) / self.spread)

    def drawn(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """Random inputs ``(count, n)``; on the CPU alone."""
        along = torch.randn(count, len(self.mean), generator=generator, dtype=torch.float64) * self.spread.sqrt()
        return self.mean + (along if self.directions is None else self.directions.rows(along))

    def to(self, device: torch.device) -> Gaussian:
        """The same on another device."""
        return Gaussian(self.mean.to(device), self.spread.to(device), None if self.directions is None else self.directions.to(device))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """As tensors to store, named with ``prefix``."""
        kept = {} if self.directions is None else self.directions.tensors(prefix)
        return {f"{prefix}.mean": self.mean, f"{prefix}.spread": self.spread, **kept}

    @classmethod
    def stored(cls, tensors: Mapping[str, torch.Tensor], prefix: str) -> Gaussian:
        """The inverse of :meth:`tensors`."""
        return cls(tensors[f"{prefix}.mean"], tensors[f"{prefix}.spread"], rotations.stored(tensors, prefix))


class Whitened:
    """Images in the coordinates in which a prior is a standard normal distribution, in float32.

    Args:
        prior: of one image.
    """

    def __init__(self, prior: Gaussian) -> None:
        self._mean, self._spread = prior.mean.float(), prior.spread.float().sqrt()
        self._directions = None if prior.directions is None else prior.directions.to(torch.float32)

    @property
    def rotated(self) -> bool:
        """Whether neighbouring coordinates are neighbouring directions of a covariance, rather than pixels."""
        return self._directions is not None

    def inverse_curvature(self, deviation: float) -> torch.Tensor:
        """Of the posterior of one image that was seen with an error of this deviation in each pixel, by coordinates: ``(n,)``."""
        return 1 / (1 + (self._spread / deviation).square())

    def coordinates(self, images: torch.Tensor) -> torch.Tensor:
        """Of images ``(V, B, C, H, W)``: ``(V, B n)``."""
        return (self._turned(images.flatten(2) - self._mean) / self._spread).flatten(1)

    def images(self, coordinates: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
        """The inverse of :meth:`coordinates`; ``shape`` is ``(V, B, C, H, W)``."""
        scaled = coordinates.reshape(shape[0], shape[1], -1) * self._spread
        flat = scaled if self._directions is None else self._directions.rows(scaled)
        return (self._mean + flat).reshape(tuple(shape))

    def slope(self, slope: torch.Tensor) -> torch.Tensor:
        """A gradient by images ``(V, B, C, H, W)`` as one by coordinates, ``(V, B n)``."""
        return (self._turned(slope.flatten(2)) * self._spread).flatten(1)

    def _turned(self, flat: torch.Tensor) -> torch.Tensor:
        return flat if self._directions is None else self._directions.coordinates(flat)


def of_samples(chunks: Iterable[torch.Tensor], *, hidden: bool) -> Gaussian:
    """Mean and covariance of rows ``(N, n)`` that come in chunks; the diagonal alone of what is too large for the whole.

    A sample covariance underestimates the variance along its smallest directions. So every fifth chunk is left out of it, and
    the variances are those of the chunks left out.

    Args:
        chunks: at least one row in all.
        hidden: inputs of a hidden layer. Their covariance is shrunk towards a broad one, because gradients tell them precisely.
    """
    limit = _HIDDEN if hidden else DENSE
    count, total, product, kept = 0, torch.zeros(()), torch.zeros(()), []
    for index, chunk in enumerate(chunks):
        rows = chunk.flatten(1).double()
        if index % _FOLDS == _FOLDS - 1 and rows.shape[1] <= limit:
            kept.append(rows)
            continue
        count, total = count + len(rows), total.to(rows) + rows.sum(0)
        product = product.to(rows) + (rows.square().sum(0) if rows.shape[1] > limit else rows.T @ rows)
    mean = total / count
    if product.ndim == 1:
        variance = (product / count - mean.square()).clamp_min(0)
        return Gaussian(mean, variance + _SHRUNK * variance.mean() + _PIXEL, None)
    spread, directions = torch.linalg.eigh(product / count - torch.outer(mean, mean))
    if kept:
        spread = ((torch.cat(kept) - mean) @ directions).square().mean(0)
    added = _PIXEL + (_SHRUNK * float(spread.mean()) if hidden else 0.0)
    return Gaussian(mean, spread.clamp_min(0) + added, Dense(directions))


def of_spectrum(images: torch.Tensor) -> Gaussian:
    """Variances along cosines (those of JPEG, over the whole image) and principal colours: no large decomposition.

    Args:
        images: ``(N, C, H, W)``, at least one.
    """
    flat = images.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    pixels = centred.reshape(images.shape).transpose(0, 1).flatten(1)
    colours = torch.linalg.eigh(pixels @ pixels.T / pixels.shape[1])[1].T
    down, across = (torch.from_numpy(fft.dct(np.eye(size), norm="ortho", axis=0)).to(flat) for size in images.shape[2:])
    directions = Separable(colours, down, across)
    spread = directions.coordinates(centred).square().mean(0)
    return Gaussian(mean, spread + _PIXEL, directions)


def natural(input_shape: tuple[int, ...]) -> Gaussian:
    """What is known of a photograph without having seen one: grey, a spectrum of ``1 / f²``, channels that go together.

    Args:
        input_shape: ``(C, H, W)``.
    """
    channels, height, width = input_shape
    mean = torch.full((math.prod(input_shape),), _GREY, dtype=torch.float64)
    if len(mean) > DENSE:
        return Gaussian(mean, torch.full_like(mean, _CONTRAST), None)
    # Twice the side: a photograph does not go on at the other edge.
    down = torch.fft.fftfreq(2 * height, dtype=torch.float64)[:, None]
    across = torch.fft.fftfreq(2 * width, dtype=torch.float64)[None]
    frequency = (down.square() + across.square()).sqrt().clamp_min(1 / (2 * max(height, width)))
    power = frequency**-2
    power = power / power.mean() + _FLAT
    correlation = torch.fft.ifft2(power).real
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rows, columns = rows.flatten(), columns.flatten()
    positions = correlation[rows[:, None] - rows, columns[:, None] - columns]
    colours = 0.9 + 0.1 * torch.eye(channels, dtype=torch.float64)
    spread, directions = torch.linalg.eigh(_CONTRAST * torch.kron(colours, positions))
    return Gaussian(mean, spread.clamp_min(0) + _PIXEL, Dense(directions))
