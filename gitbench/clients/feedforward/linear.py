"""Linear layers of a chain."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from gitbench.clients.feedforward.links import Compared, Pair, Products, Turned, Weighted
from gitbench.clients.layer_gradients import Aim


class Linear(Weighted):
    """``torch.nn.Linear`` on the rows of a matrix.

    Args:
        matrix: its weight, ``(O, K)``.
        offset: its bias ``(O,)``, where it has one.
        weight: name of the weight, where it trains.
        bias: name of the bias, where it trains.
    """

    def __init__(self, matrix: torch.Tensor, offset: torch.Tensor | None, *, weight: str | None = None, bias: str | None = None) -> None:
        self._matrix, self._offset, self.weight, self.bias = matrix, offset, weight, bias

    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        return functional.linear(inputs, self._matrix, self._offset)

    def push(self, direction: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return direction @ self._matrix.T

    def back(self, slope: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        return slope @ self._matrix if more is None else torch.addmm(more, slope, self._matrix)

    def pair(self, inputs: torch.Tensor, slope: torch.Tensor, victims: int, written: torch.Tensor | None) -> Pair:
        return _Rows(inputs.reshape(victims, -1, inputs.shape[1]), slope.reshape(victims, -1, slope.shape[1]))


class _Rows(Pair):
    """A batch has few rows: a victim's gradient, a sum of few outer products, need not be written out.

    Args:
        inputs: ``(V, B, K)``.
        slope: ``(V, B, O)``.
    """

    def __init__(self, inputs: torch.Tensor, slope: torch.Tensor) -> None:
        self._inputs, self._slope = inputs, slope

    def weight(self) -> torch.Tensor:
        outputs = self._slope.transpose(1, 2)
        return outputs * self._inputs if outputs.shape[2] == 1 else outputs @ self._inputs

    def bias(self) -> torch.Tensor:
        return self._slope.sum(1)

    def turned(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Turned:
        of_slope = None if weight is None else self._inputs @ weight.transpose(1, 2)
        of_inputs = None if weight is None else (self._slope @ weight).flatten(0, 1)
        return self._joined(of_slope, bias), of_inputs

    def products(self, weight: Aim | None, bias: Aim | None) -> list[Products]:
        found: list[Products] = []
        if weight is not None:
            self._aim = weight.tensor
            self._seen = self._inputs @ self._aim.transpose(1, 2)  # what the aim makes of the inputs, (V, B, O)
            inputs, outputs = (_gram(rows) for rows in (self._inputs, self._slope))
            found.append(((self._seen * self._slope).sum((1, 2)), (inputs * outputs).sum((1, 2)).to(self._slope.dtype)))
            self._of_inputs, self._of_slopes = inputs.to(self._slope.dtype), outputs.to(self._slope.dtype)
        if bias is not None:
            self._biases = Compared(self.bias(), bias.tensor)
            found.append(self._biases.products())
        self._compared = weight is not None, bias is not None
        return found

    def turned_products(self, slopes: Sequence[Products]) -> Turned:
        of_weight, of_bias = self._compared
        of_slope = of_inputs = None
        if of_weight:
            dot, square = (slope[:, None, None] for slope in slopes[0])
            of_slope = torch.addcmul((2 * square) * (self._of_inputs @ self._slope), dot, self._seen)
            of_inputs = torch.addcmul((2 * square) * (self._of_slopes @ self._inputs), dot, self._slope @ self._aim).flatten(0, 1)
        return self._joined(of_slope, self._biases.turned(slopes[-1]) if of_bias else None), of_inputs

    def _joined(self, of_slope: torch.Tensor | None, bias: torch.Tensor | None) -> torch.Tensor | None:
        """What the two parameters say of the slopes, ``(N, O)``."""
        if bias is not None:
            of_slope = bias[:, None].expand_as(self._slope) if of_slope is None else of_slope + bias[:, None]
        return None if of_slope is None else of_slope.reshape(-1, of_slope.shape[-1])


def _gram(rows: torch.Tensor) -> torch.Tensor:
    """Inner products of rows ``(V, B, K)``; doubled in digits, since where they cancel products of them cancel twice as many."""
    if rows.shape[1] == 1:
        return rows.square().sum(2, keepdim=True)
    doubled = rows.double()
    return doubled @ doubled.transpose(1, 2)
