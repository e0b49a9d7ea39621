"""Orthogonal changes of coordinates of flattened inputs: a matrix, or a product of small ones along the axes of an image."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch


class Rotation(ABC):
    """``U (n, n)``, whose columns are directions."""

    @abstractmethod
    def coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows @ U``, of rows ``(..., n)``."""

    @abstractmethod
    def rows(self, coordinates: torch.Tensor) -> torch.Tensor:
        """``coordinates @ Uᵀ``, of coordinates ``(..., n)``: the inverse of :meth:`coordinates`."""

    @abstractmethod
    def scaled(self, values: torch.Tensor) -> torch.Tensor:
        """``U diag(values) Uᵀ (n, n)``, of values ``(n,)``."""

    @abstractmethod
    def squared(self) -> Rotation:
        """Whose entries are the squares of these; :meth:`rows` then takes independent variances from directions to entries."""

    @abstractmethod
    def to(self, target: torch.device | torch.dtype) -> Rotation:
        """The same on a device, or in a floating-point format."""

    @abstractmethod
    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """As tensors to store, named with ``prefix``."""


@dataclass(frozen=True)
class Dense(Rotation):
    """Any rotation.

    Args:
        matrix: ``U``.
    """

    matrix: torch.Tensor

    def coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.matrix

    def rows(self, coordinates: torch.Tensor) -> torch.Tensor:
        return coordinates @ self.matrix.T

    def scaled(self, values: torch.Tensor) -> torch.Tensor:
        return (self.matrix * values) @ self.matrix.T

    def squared(self) -> Dense:
        return Dense(self.matrix.square())

    def to(self, target: torch.device | torch.dtype) -> Dense:
        return Dense(self.matrix.to(target))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """In float32, to take half the room."""
        return {f"{prefix}.directions": self.matrix.float()}


@dataclass(frozen=True)
class Separable(Rotation):
    """Along the colours, the rows and the columns of an image: ``Uᵀ = colours ⊗ down ⊗ across``, without that matrix.

    Args:
        colours: ``(C, C)``.
        down: ``(H, H)``.
        across: ``(W, W)``.
    """

    colours: torch.Tensor
    down: torch.Tensor
    across: torch.Tensor

    def coordinates(self, rows: torch.Tensor) -> torch.Tensor:
        return self._along(rows, self.colours, self.down, self.across)

    def rows(self, coordinates: torch.Tensor) -> torch.Tensor:
        return self._along(coordinates, self.colours.T, self.down.T, self.across.T)

    def scaled(self, values: torch.Tensor) -> torch.Tensor:
        colours, down, across = (_outer_squares(side) for side in (self.colours, self.down, self.across))
        sides = (len(self.colours), len(self.down), len(self.across))
        # Axis by axis: the pairs of columns, then those of rows, then those of colours.
        found = (values.reshape(-1, sides[2]) @ across.T).reshape(sides[0], sides[1], -1)
        found = (colours @ (down @ found).flatten(1)).reshape(sides[0], sides[0], sides[1], sides[1], sides[2], sides[2])
        return found.permute(0, 2, 4, 1, 3, 5).reshape(len(values), len(values))

    def squared(self) -> Separable:
        return Separable(self.colours.square(), self.down.square(), self.across.square())

    def to(self, target: torch.device | torch.dtype) -> Separable:
        return Separable(self.colours.to(target), self.down.to(target), self.across.to(target))

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}.colours": self.colours, f"{prefix}.down": self.down, f"{prefix}.across": self.across}

    @staticmethod
    def _along(flat: torch.Tensor, colours: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
        sides = (len(colours), len(down), len(across))
        count = math.prod(flat.shape[:-1])
        found = (flat.reshape(count * sides[0] * sides[1], sides[2]) @ across.T).reshape(count * sides[0], sides[1], sides[2])
        found = (down @ found).reshape(count, sides[0], sides[1] * sides[2])
        return (colours @ found).reshape(flat.shape)


def _outer_squares(matrix: torch.Tensor) -> torch.Tensor:
    """Of each row its outer product with itself, ``(m, m)`` to ``(m * m, m)``: what the row makes of pairs of entries."""
    columns = matrix.T
    return (columns[:, None] * columns[None]).flatten(0, 1)


def stored(tensors: Mapping[str, torch.Tensor], prefix: str) -> Rotation | None:
    """The inverse of :meth:`Rotation.tensors`, in float64; None where nothing is stored."""
    if f"{prefix}.directions" in tensors:
        return Dense(tensors[f"{prefix}.directions"].double())
    if f"{prefix}.colours" in tensors:
        return Separable(*(tensors[f"{prefix}.{name}"].double() for name in ("colours", "down", "across")))
    return None
