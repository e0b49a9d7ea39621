"""A network that is a plain chain of layers: its gradients, and how these change with the images, in four sweeps over the layers.

Forward for what each layer reads, backward for the slope by what it returns; then forward once more for how these slopes change, and
backward for how the inputs do. That is what autograd makes of a gradient's gradient too, in several times as many operations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import Function
from torch.nn import functional

from gitbench.clients.feedforward.links import Link, Pair, Products, Turned, Weighted
from gitbench.clients.layer_gradients import Aim

Plain = Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]
"""The same gradients of inputs ``(V, B, C, H, W)`` and probabilities ``(V, B, classes)`` by autograd, differentiable as often as asked."""


@dataclass(frozen=True)
class _Passed:
    """What passed through the chain.

    Args:
        read: what each link read, and at last the logits: ``(N, ...)``.
        slopes: of the victims' losses by what each link returned, as far back as parameters train.
        targets: ``(N, classes)``.
        pairs: of the links whose parameters train, by their places.
    """

    read: Sequence[torch.Tensor]
    slopes: Mapping[int, torch.Tensor]
    targets: torch.Tensor
    pairs: Mapping[int, Pair]


class Feedforward:
    """A chain of links.

    Args:
        links: in their order; parameters of one of them train.
        classes: logits of an image.
        plain: differentiates more than twice.
    """

    def __init__(self, links: Sequence[Link], classes: int, plain: Plain) -> None:
        self.links, self.plain, self._classes = links, plain, classes
        self.trained = {place: link for place, link in enumerate(links) if isinstance(link, Weighted) and link.names}

    def gradients(self, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        """Of the mean cross-entropy of each victim's batch: ``(V, *shape)``; differentiable in ``inputs`` and in soft ``labels``.

        Args:
            inputs: ``(V, B, C, H, W)``.
            labels: class indices ``(V, B)``, or probabilities ``(V, B, classes)``.
        """
        names = [name for link in self.trained.values() for name in link.names]
        found: Sequence[torch.Tensor] = _Gradients.apply(inputs, self._targets(inputs, labels), self)
        return dict(zip(names, found, strict=True))

    def products(self, inputs: torch.Tensor, labels: torch.Tensor, aims: Mapping[str, Aim]) -> tuple[torch.Tensor, torch.Tensor]:
        """Inner products of the same gradients with ``aims``, and with themselves: each ``(parameters, V)``, in the order of ``aims``."""
        dots, squares = _InnerProducts.apply(inputs, self._targets(inputs, labels), self, aims)
        return dots, squares

    def passes(self, inputs: torch.Tensor, targets: torch.Tensor, *, told: Callable[[Weighted, Pair], None], again: bool) -> _Passed:
        """The first two sweeps.

        Args:
            inputs: ``(V, B, C, H, W)``.
            targets: probabilities ``(V, B, classes)``.
            told: each link whose parameters train, the last one first, and its pair.
            again: keep the pairs, which take most of the memory.
        """
        read, written = [inputs.flatten(0, 1)], []
        for place, link in enumerate(self.links):
            trained = self.trained.get(place)
            output, on_the_way = (link.forth(read[-1]), None) if trained is None else trained.written_out(read[-1], len(inputs))
            read.append(output)
            written.append(on_the_way)
        targets = targets.flatten(0, 1)
        slope = (targets.sum(1, keepdim=True) * read[-1].softmax(1) - targets) / inputs.shape[1]
        first = min(self.trained)
        slopes: dict[int, torch.Tensor] = {}
        pairs: dict[int, Pair] = {}
        for place in range(len(self.links) - 1, first - 1, -1):
            slopes[place], trained = slope, self.trained.get(place)
            if trained is not None:
                pair = trained.pair(read[place], slope, len(inputs), written[place])
                told(trained, pair)
                pairs |= {place: pair} if again else {}
            if place > first:
                slope = self.links[place].back(slope, read[place], read[place + 1])
        return _Passed(read, slopes, targets, pairs)

    def turned(self, passed: _Passed, turned: Mapping[int, Turned], shape: torch.Size) -> tuple[torch.Tensor, torch.Tensor]:
        """The last two sweeps: how a value changes with the inputs and with the targets.

        Args:
            passed: what the value was computed from.
            turned: how it changes with the factors of the links' pairs, by their places.
            shape: of the inputs.
        """
        read, along = passed.read, None
        of_read: dict[int, torch.Tensor | None] = {}
        for place in range(min(self.trained), len(self.links)):
            link, output = self.links[place], read[place + 1]
            of_slope, of_read[place] = turned.get(place, (None, None))
            if along is not None:
                along = link.push(along, read[place], output)
                bend = link.bend(output)
                of_read[place] = of_read[place] if bend is None else along * passed.slopes[place] * bend
            along = _sum(along, of_slope)
        assert along is not None
        along = along / shape[1]
        probabilities = read[-1].softmax(1)
        mean = (along * probabilities).sum(1, keepdim=True)
        slope = passed.targets.sum(1, keepdim=True) * probabilities * (along - mean)
        for place in range(len(self.links) - 1, -1, -1):
            slope = self.links[place].back(slope, read[place], read[place + 1], of_read.get(place))
        return slope.reshape(shape), (mean - along).reshape(*shape[:2], -1)

    def _targets(self, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return labels if labels.is_floating_point() else functional.one_hot(labels, self._classes).to(inputs.dtype)


class _Gradients(Function):
    """The gradients by all parameters, in the order of the links."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, targets: torch.Tensor, network: Feedforward) -> tuple[torch.Tensor, ...]:
        found: list[torch.Tensor] = []

        def told(link: Weighted, pair: Pair) -> None:
            found[:0] = [part() for name, part in ((link.weight, pair.weight), (link.bias, pair.bias)) if name]

        ctx.save_for_backward(inputs, targets)
        ctx.network, ctx.passed = network, network.passes(inputs, targets, told=told, again=any(ctx.needs_input_grad))
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        inputs, targets = ctx.saved_tensors
        if torch.is_grad_enabled():
            by_inputs, by_targets = _again([*ctx.network.plain(inputs, targets).values()], inputs, targets, slopes)
            return by_inputs, by_targets, None
        waiting, turned = list(slopes), {}
        for place, pair in sorted(ctx.passed.pairs.items()):
            link = ctx.network.trained[place]
            weight = waiting.pop(0) if link.weight else None
            turned[place] = pair.turned(weight, waiting.pop(0) if link.bias else None)
        return *ctx.network.turned(ctx.passed, turned, inputs.shape), None


class _InnerProducts(Function):
    """Inner products of the gradients with aims, and with themselves."""

    @staticmethod
    def forward(
        ctx: Any, inputs: torch.Tensor, targets: torch.Tensor, network: Feedforward, aims: Mapping[str, Aim]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        found: dict[str, Products] = {}

        def told(link: Weighted, pair: Pair) -> None:
            weight, bias = (aims.get(name) if name else None for name in (link.weight, link.bias))
            found.update(zip((name for name in link.names if name in aims), pair.products(weight, bias), strict=True))

        ctx.save_for_backward(inputs, targets)
        ctx.network, ctx.aims = network, aims
        ctx.passed = network.passes(inputs, targets, told=told, again=any(ctx.needs_input_grad))
        dots, squares = zip(*(found[name] for name in aims), strict=True)
        return torch.stack(dots), torch.stack(squares)

    @staticmethod
    def backward(ctx: Any, *slopes: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None, None]:
        (inputs, targets), (dots, squares) = ctx.saved_tensors, slopes
        if torch.is_grad_enabled():
            mine = ctx.network.plain(inputs, targets)
            pairs = [(mine[name].flatten(1), aim.tensor.flatten(1)) for name, aim in ctx.aims.items()]
            found = [torch.stack([(one * two).sum(1) for one, two in pairs]), torch.stack([one.square().sum(1) for one, _ in pairs])]
            by_inputs, by_targets = _again(found, inputs, targets, slopes)
            return by_inputs, by_targets, None, None
        rows, turned = {name: row for row, name in enumerate(ctx.aims)}, {}
        for place, pair in ctx.passed.pairs.items():
            known = [rows[name] for name in ctx.network.trained[place].names if name in rows]
            if known:
                turned[place] = pair.turned_products([(dots[row], squares[row]) for row in known])
        return *ctx.network.turned(ctx.passed, turned, inputs.shape), None, None


def _again(
    found: Sequence[torch.Tensor], inputs: torch.Tensor, targets: torch.Tensor, slopes: Sequence[torch.Tensor]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Slopes that can be differentiated once more, of what was computed with autograd."""
    needed = [tensor for tensor in (inputs, targets) if tensor.requires_grad]
    some = iter(torch.autograd.grad(found, needed, slopes, create_graph=True, allow_unused=True))
    by_inputs, by_targets = (next(some) if tensor.requires_grad else None for tensor in (inputs, targets))
    return by_inputs, by_targets


def _sum(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
    return other if one is None else one if other is None else one + other
