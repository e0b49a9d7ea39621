"""The coarse chain: one shallow MLP for each layer or block, all trained together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.attacks.git.coarse_nodes import Node
from gitbench.attacker.attacks.git.coarse_reader import Seen

_CLASSES = 64  # labels are hashed beyond so many
_CLIP = 8.0  # standard deviations of a sketched feature
_RELATIVE = 1e-4  # a deviation below this share of the mean is rounding


class CoarseChain(nn.Module):
    """One shallow MLP for each node, each adding to the estimate that it is passed.

    A node reads its own gradient's sketch, a random-sign sum of those of the nodes that it feeds (as a hash of
    them side by side), the labels and the mean of those nodes' estimates; the first reads the last layer's input.

    Args:
        nodes: the last layer first.
        components: of the image, in which the chain works.
        classes: of the labels.
        last: entries of the last layer's input.
        width: of the hidden layers.
        sketch: entries of each node's hashed gradient.
    """

    scale: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    signs: torch.Tensor
    codes: torch.Tensor
    last_mean: torch.Tensor
    last_deviation: torch.Tensor
    sketch_mean: torch.Tensor
    sketch_deviation: torch.Tensor

    def __init__(self, nodes: Sequence[Node], *, components: int, classes: int, last: int, width: int, sketch: int) -> None:
        super().__init__()
        self._feeds = [node.feeds for node in nodes]
        read = {index for node in nodes for index in node.feeds}
        self._ends = [index for index in range(len(nodes)) if index not in read]
        labels = min(classes, _CLASSES)
        self.shared = nn.ModuleList(nn.Linear(2 * sketch, width) for _ in nodes)
        own = [components + labels + (last if index == 0 else 0) for index in range(len(nodes))]
        self.own = nn.ModuleList(nn.Linear(size, width) for size in own)
        self.out = nn.ModuleList(nn.Linear(width, components) for _ in nodes)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("signs", torch.randint(2, (len(nodes), sketch)).float() * 2 - 1)
        self.register_buffer("codes", torch.eye(classes) if classes <= _CLASSES else torch.randn(classes, _CLASSES))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("mean", torch.zeros(components))
        self.register_buffer("deviation", torch.ones(components))
        self.register_buffer("last_mean", torch.zeros(last))
        self.register_buffer("last_deviation", torch.ones(last))
        self.register_buffer("sketch_mean", torch.zeros(len(nodes), sketch))
        self.register_buffer("sketch_deviation", torch.ones(len(nodes), sketch))

    def prepare(self, seen: Sequence[Seen], begin: torch.Tensor, wanted: torch.Tensor) -> None:
        """Take the moments of what is read (one for each draw), of where it starts and of what it is to add."""
        self.sketch_mean, self.sketch_deviation = _moments([part.sketches for part in seen])
        self.last_mean, self.last_deviation = _moments([part.last.flatten(0, 1) for part in seen])
        self.scale = (wanted - begin).square().mean().sqrt().clamp_min(1e-6)
        # The scale is added so that a component which is constant at the start does not explode once a node adds to it.
        self.mean, self.deviation = begin.flatten(0, 1).mean(0), begin.flatten(0, 1).std(0) + self.scale

    def forward(self, seen: Seen, begin: torch.Tensor) -> torch.Tensor:
        """Components ``(V, B, K)`` from what was read off updates and the components to start from ``(V, B, K)``."""
        sketches = _standardised(seen.sketches, self.sketch_mean, self.sketch_deviation)
        last = _standardised(seen.last, self.last_mean, self.last_deviation)
        labels = self.codes[seen.labels]
        estimates: list[torch.Tensor] = []
        for index, feeds in enumerate(self._feeds):
            estimate = torch.stack([estimates[other] for other in feeds]).mean(0) if feeds else begin
            others = sketches.new_zeros(len(sketches), sketches.shape[2])
            if feeds:
                chosen = torch.tensor(feeds, device=sketches.device)
                others = (sketches[:, chosen] * self.signs[chosen]).sum(1) / math.sqrt(len(feeds))
            own = [(estimate - self.mean) / self.deviation, labels, *([last] if index == 0 else [])]
            hidden = self.shared[index](torch.cat([sketches[:, index], others], dim=1))[:, None] + self.own[index](torch.cat(own, dim=2))
            estimates.append(estimate + self.out[index](functional.gelu(hidden)) * self.scale)
        return torch.stack([estimates[index] for index in self._ends]).mean(0)


def _moments(parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each coordinate of rows ``(N, ...)``, over several draws."""
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    deviation = torch.stack([part.var(0) for part in parts]).mean(0).sqrt()
    return mean, deviation


def _standardised(sketches: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    # A coordinate that is constant in the public updates tells nothing and reads as zero.
    varies = deviation > _RELATIVE * mean.abs() + 1e-7
    scale = torch.where(varies, 1 / deviation.clamp_min(1e-7), 0)
    return ((sketches - mean) * scale).clamp(-_CLIP, _CLIP)
