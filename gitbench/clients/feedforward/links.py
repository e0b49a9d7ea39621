"""The links of a chain: what a layer makes of its input, and the slopes that a second derivative is made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional

from gitbench.clients.layer_gradients import Aim

Turned = tuple[torch.Tensor | None, torch.Tensor | None]
"""How a value changes with the slope by a layer's output, and with the layer's inputs; None where it does not.

The first is ``(N, ...)``, the second in the form in which the layer's :meth:`Link.back` takes it.
"""
Products = tuple[torch.Tensor, torch.Tensor]
"""Inner products of victims' gradients with an aim, and with themselves; or slopes by them: ``(V,)`` each."""


class Link(ABC):
    """A layer of a chain: a linear map with an offset, or a function of each entry by itself.

    The images of all victims pass through side by side: ``N = V * B`` of them.
    """

    @abstractmethod
    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        """What the layer returns, ``(N, ...)``."""

    @abstractmethod
    def push(self, direction: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """How the output changes where the inputs move along ``direction``."""

    @abstractmethod
    def back(self, slope: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        """The adjoint of :meth:`push`: from the slope by the output to that by the inputs, and ``more`` of it (:data:`Turned`).

        ``more`` may be overwritten.
        """

    def bend(self, output: torch.Tensor) -> torch.Tensor | None:
        """The second derivative over the first, of each entry; None where it is zero, almost everywhere."""
        return None


class Pair(ABC):
    """What a layer read, and the slope by what it returned: the two factors of the gradients by its parameters."""

    @abstractmethod
    def weight(self) -> torch.Tensor:
        """The gradients by the weight, ``(V, *shape)``."""

    @abstractmethod
    def bias(self) -> torch.Tensor:
        """The gradients by the bias, ``(V, O)``."""

    @abstractmethod
    def turned(self, weight: torch.Tensor | None, bias: torch.Tensor | None) -> Turned:
        """Of the inner product of the gradients with ``weight (V, *shape)`` and ``bias (V, O)``, which None leaves out."""

    @abstractmethod
    def products(self, weight: Aim | None, bias: Aim | None) -> list[Products]:
        """Of the gradients by the weight and the bias, as far as there are aims."""

    @abstractmethod
    def turned_products(self, slopes: Sequence[Products]) -> Turned:
        """Of the sum of the last :meth:`products`, each times its slope ``(V,)``."""


class Weighted(Link):
    """A layer with parameters, some of which may train."""

    weight: str | None = None
    """Name of the weight, where it trains."""
    bias: str | None = None
    """Name of the bias, where it trains."""

    @property
    def names(self) -> list[str]:
        """Of the parameters that train."""
        return [name for name in (self.weight, self.bias) if name]

    def written_out(self, inputs: torch.Tensor, victims: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What the layer returns, and what it wrote out of its inputs on the way, for :meth:`pair`."""
        return self.forth(inputs), None

    @abstractmethod
    def pair(self, inputs: torch.Tensor, slope: torch.Tensor, victims: int, written: torch.Tensor | None) -> Pair:
        """What the gradients by the layer's parameters are made of.

        Args:
            inputs: what it read, ``(N, ...)``.
            slope: of the loss by what it returned, ``(N, ...)``.
            victims: ``V``.
            written: what :meth:`written_out` wrote.
        """


class Compared:
    """Gradients that are written out, beside what they are compared with.

    Args:
        mine: ``(V, D)``.
        aim: likewise.
    """

    def __init__(self, mine: torch.Tensor, aim: torch.Tensor) -> None:
        self._mine, self._aim = mine, aim

    def products(self) -> Products:
        """Inner products ``(V,)`` with the aim, and with themselves."""
        return torch.linalg.vecdot(self._mine, self._aim), torch.linalg.vecdot(self._mine, self._mine)

    def turned(self, slopes: Products) -> torch.Tensor:
        """How the sum of both, each times its slope ``(V,)``, changes with the gradients: ``(V, D)``."""
        dot, square = (slope[:, None] for slope in slopes)
        return torch.addcmul((2 * square) * self._mine, dot, self._aim)


class Normalized(Link):
    """``(x - mean) / std`` of each channel."""

    def __init__(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        self._mean, self._std = mean, std

    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        return (inputs - self._mean) / self._std

    def push(self, direction: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return direction / self._std

    def back(self, slope: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        return slope / self._std


class Flattened(Link):
    """All entries of an image in one row."""

    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)

    def push(self, direction: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return direction.flatten(1)

    def back(self, slope: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        return slope.reshape(inputs.shape)


class Activation(Link):
    """Of each entry by itself.

    Args:
        function: of the entries.
        slope: times its first derivative, from what is multiplied and the function's values.
        bend: its second derivative over the first, from the function's values; None where it is zero.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor], torch.Tensor],
        slope: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        bend: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self._function, self._slope, self._bend = function, slope, bend

    def forth(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._function(inputs)

    def push(self, direction: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        return self._slope(direction, output)

    def back(self, slope: torch.Tensor, inputs: torch.Tensor, output: torch.Tensor, more: torch.Tensor | None = None) -> torch.Tensor:
        found = self._slope(slope, output)
        return found if more is None else found + more

    def bend(self, output: torch.Tensor) -> torch.Tensor | None:
        return None if self._bend is None else self._bend(output)


def activation(layer: nn.Module) -> Activation | None:
    """The link of an activation; None where it is not known."""
    ops, kind = torch.ops.aten, type(layer)
    if kind is nn.Sigmoid:
        return Activation(torch.sigmoid, ops.sigmoid_backward, lambda output: 1 - 2 * output)
    if kind is nn.Tanh:
        return Activation(torch.tanh, ops.tanh_backward, lambda output: -2 * output)
    if kind is nn.ReLU:
        return Activation(torch.relu, lambda slope, output: ops.threshold_backward(slope, output, 0))
    if isinstance(layer, nn.LeakyReLU) and kind is nn.LeakyReLU and layer.negative_slope > 0:
        leak = layer.negative_slope
        return Activation(
            lambda inputs: functional.leaky_relu(inputs, leak), lambda slope, output: ops.leaky_relu_backward(slope, output, leak, True)
        )
    return None
