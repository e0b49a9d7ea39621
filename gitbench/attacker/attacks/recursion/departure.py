"""How updates differ from the gradients behind them, measured on images of the attacker's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import read_softmax
from gitbench.attacker.tools.rehearsal import departure, own_and_expected, root_mean_squares
from gitbench.clients.update import Update

ROUNDING = 1e-6
"""Of float32, in units of the root mean square of a gradient's entries."""

_NOTHING = 1e-5  # relative departure that is taken for rounding
_SAME = 0.02  # relative change of scale that is taken for none


@dataclass(frozen=True)
class Departure:
    """How far what a defense sends is from what the walk and the posterior expect, as root mean squares of each tensor.

    Args:
        walk: between the gradient and what was sent, brought back to the gradient's scale.
        match: between what the defense's deterministic part makes of the gradient and what was sent.
        size: of what was sent.
        rescaled: whether the defense changes the scale.
    """

    walk: Mapping[str, float]
    match: Mapping[str, float]
    size: Mapping[str, float]
    rescaled: bool

    def tensors(self) -> dict[str, torch.Tensor]:
        """As tensors to store."""
        parts = {"walk": self.walk, "match": self.match, "size": self.size}
        kept = {f"noise.{part}.{name}": torch.tensor(value) for part, values in parts.items() for name, value in values.items()}
        return {**kept, "noise.rescaled": torch.tensor(self.rescaled)}

    @classmethod
    def stored(cls, tensors: Mapping[str, torch.Tensor]) -> Departure:
        """The inverse of :meth:`tensors`."""

        def part(prefix: str) -> dict[str, float]:
            return {name.removeprefix(prefix): float(tensor) for name, tensor in tensors.items() if name.startswith(prefix)}

        return cls(part("noise.walk."), part("noise.match."), part("noise.size."), bool(tensors["noise.rescaled"]))


def measure_departure(observation: Observation, sent: Update, inputs: torch.Tensor, labels: torch.Tensor) -> Departure:
    """How updates of known images differ from their gradients.

    Args:
        observation: needs ``parameters``.
        sent: updates ``(N, *shape)`` as the clients would send them.
        inputs: the images behind them, ``(N, B, C, H, W)``.
        labels: theirs, ``(N, B)``.
    """
    raw, expected = own_and_expected(observation, inputs, labels, sent=sent)
    flat, seen = raw.flatten() * (sent.flatten() != 0), sent.flatten()
    ratio = (flat * seen).sum(1) / flat.square().sum(1).clamp_min(1e-30)
    rescaled = float((ratio - 1).abs().median()) > _SAME
    back = divided(sent, scales(observation, sent, labels[:, 0])) if rescaled and labels.shape[1] == 1 else sent
    return Departure(walk=_noise(back, raw), match=_noise(sent, expected), size=root_mean_squares(sent), rescaled=rescaled)


def divided(update: Update, scales: torch.Tensor) -> Update:
    """Each victim's update, divided by its scale ``(V,)``."""
    return update.map(lambda _, tensor: tensor / scales.reshape(-1, *(1,) * (tensor.ndim - 1)))


def scales(observation: Observation, update: Update, labels: torch.Tensor) -> torch.Tensor:
    """By what factor each victim's gradient was scaled before it was sent, ``(V,)``.

    The last layer's input does not depend on it, and tells what the bias's gradient was: softmax minus one-hot.
    1 where :func:`gitbench.attacker.tools.labels.read_softmax` cannot tell.

    Args:
        observation: needs ``parameters``.
        update: what was sent.
        labels: ``(V,)``.
    """
    read = read_softmax(observation, update)
    if read is None:
        return torch.ones(len(labels), device=labels.device)
    softmax, delta = read
    own = softmax - functional.one_hot(labels, delta.shape[1])
    found = (delta * own).sum(1) / own.square().sum(1).clamp_min(1e-30)
    return torch.where(found.isfinite() & (found > 1e-6), found, 1.0).float()


def _noise(sent: Update, expected: Update) -> dict[str, float]:
    """The departure of each tensor; 0 where it is no more than rounding."""
    sizes = root_mean_squares(expected)
    return {name: error if error > _NOTHING * sizes[name] else 0.0 for name, error in departure(sent, expected).items()}
