"""Exact-GIT's last step: a linear map reads the image off the walk's features, and a network adds what it leaves over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from gitbench.attacker.attacks.git.options import GitOptions
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.core.progress import Progress
from gitbench.core.random import seeded

_EXACT = 1e-4  # root mean square of a pixel's error


@dataclass(frozen=True)
class Head:
    """What :func:`fit_head` learned, to read images.

    Args:
        linear: from features to pixels.
        network: from standardised features to what the linear map leaves over, in units of ``trust``.
        mean: of the features.
        deviation: of the features.
        trust: the size of what is left over; 0 where the network did not learn it.
    """

    linear: LinearMap
    network: nn.Sequential
    mean: torch.Tensor
    deviation: torch.Tensor
    trust: torch.Tensor

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Pixels ``(N, P)``."""
        rest: torch.Tensor = self.network((features - self.mean) / self.deviation)
        return self.linear(features) + self.trust * rest

    @classmethod
    def stored(cls, state: Mapping[str, torch.Tensor], device: torch.device) -> Head:
        """From what :func:`fit_head` returned."""
        linear = LinearMap.stored(state, "final")
        network = _network(len(linear.input_mean), int(state["head.width"]), len(linear.output_mean)).to(device)
        prefix = "head.net."
        network.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})
        return cls(linear, network.eval(), state["head.mean"], state["head.deviation"], state["head.trust"])


class _Remainder:
    """What the linear map leaves of the pixels, for each draw of the defense: the network is trained on it."""

    def __init__(self, network: nn.Sequential, features: Sequence[torch.Tensor], rests: Sequence[torch.Tensor], held: torch.Tensor) -> None:
        self._network, self._features, self._rests = network, features, rests
        self._train, self._test = (~held).nonzero().flatten(), held.nonzero().flatten()
        self.mean, self.deviation = features[0].mean(0), features[0].std(0).clamp_min(1e-4)
        self.scale = rests[0][self._test].square().mean().sqrt().clamp_min(1e-8)

    @property
    def rows(self) -> int:
        return len(self._train)

    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of some training rows, in one of the draws."""
        draw = int(torch.randint(len(self._features), (), generator=generator))
        rows = self._train[chosen.to(self._train.device)]
        return self._error(draw, rows)

    def validate(self) -> float:
        """The error on the rows that are held out."""
        return float(self._error(0, self._test))

    def _error(self, draw: int, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self._network((self._features[draw][rows] - self.mean) / self.deviation)
        return (found - self._rests[draw][rows] / self.scale).square().mean()


def fit_head(
    features: Sequence[torch.Tensor],
    pixels: torch.Tensor,
    *,
    held: torch.Tensor,
    first: bool,
    options: GitOptions,
    generator: torch.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
) -> dict[str, torch.Tensor]:
    """The linear map in closed form, and a network that starts at zero for the rest.

    Args:
        features: ``(N, F)`` of public images, once for each draw of the defense.
        pixels: of these images, ``(N, P)``.
        held: ``(N,)`` bool: rows that choose the penalty and the epoch.
        first: the first features are estimates of the pixels themselves.
        options: the network's width and the budget of its training.
        generator: for its start and its training.
        progress: told what is going on.
        checkpoint: for :func:`gitbench.attacker.learning.train_network`.

    Returns:
        What :meth:`Head.stored` needs.
    """
    progress("git: fitting the linear path", 0, 1)
    linear = _linear(features, pixels, held, first)
    with seeded(generator):
        network = _network(features[0].shape[1], options.width, pixels.shape[1]).to(pixels.device).eval()
    lessons = _Remainder(network, features, [pixels - linear(part) for part in features], held)
    with torch.no_grad():
        before = after = lessons.validate()
    if float(lessons.scale) > _EXACT:  # a linear map that is exact leaves nothing to learn but rounding
        after = train_network(
            network, loss=lessons.loss, rows=lessons.rows, validate=lessons.validate, epochs=options.epochs, batch_size=128,
            lr=options.lr, generator=generator, progress=progress, what="git", checkpoint=checkpoint, weight_decay=0.05, patience=3,
        )  # fmt: skip
    return {
        **linear.tensors("final"),
        **{f"head.net.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()},
        "head.mean": lessons.mean,
        "head.deviation": lessons.deviation,
        "head.width": torch.tensor(options.width),
        "head.trust": lessons.scale * float(after < before),
    }


def _linear(features: Sequence[torch.Tensor], pixels: torch.Tensor, held: torch.Tensor, first: bool) -> LinearMap:
    """The better of a regression and, where the first features may be taken for the pixels, the map that does so."""
    taken = _first(features[0], pixels, held) if first else None
    if taken is not None and taken.error <= _EXACT**2:
        return taken
    fitted = fit_linear(torch.cat(list(features)), pixels.repeat(len(features), 1), held=held.repeat(len(features)), bounds=(0, 1))
    # Few examples cannot teach a regression the identity.
    return fitted if taken is None or fitted.error < taken.error else taken


def _first(features: torch.Tensor, pixels: torch.Tensor, held: torch.Tensor) -> LinearMap:
    """The map that takes the first features for the pixels."""
    weight = torch.eye(features.shape[1], pixels.shape[1], device=pixels.device)
    found = LinearMap(pixels.new_zeros(features.shape[1]), pixels.new_zeros(pixels.shape[1]), weight, 0.0)
    return replace(found, error=float((found(features[held]).clamp(0, 1) - pixels[held]).square().mean()))


def _network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(inputs, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, outputs)
    )
    for parameter in network[-1].parameters():
        nn.init.zeros_(parameter)
    return network
