"""What a defense does to the gradient of the last layer: whether it changes its scale, and how large the error is that it adds."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gitbench.attacker.observation import Observation
from gitbench.clients.model import last_layer
from gitbench.core.random import make_generator

_PLAYED = 8  # public batches
_STRAIGHT = 1e-5  # relative length of what is not along the raw gradient: float32's rounding is below it
_CHANGED = 1e-4  # of a factor, from one


@dataclass(frozen=True)
class Channel:
    """How the gradient of the last layer arrives.

    Args:
        rescaled: whether each victim's was multiplied by a factor of its own, and nothing else happened to it: clipped, say.
        error: root mean square of what was added to an entry, beyond rounding; 0 where that is all.
    """

    rescaled: bool = False
    error: float = 0.0


def channel_of(observation: Observation) -> Channel:
    """Rehearse the defense on public batches.

    Args:
        observation: nothing is known to happen without ``public`` or ``defense``.
    """
    if not {"public", "defense"} <= observation.granted or len(observation.public) < observation.batch_size:
        return Channel()
    generator = make_generator(0, "rescaling")
    shape = (_PLAYED, observation.batch_size)
    raw = observation.public_gradients(torch.randint(len(observation.public), shape, generator=generator), generator=generator)
    sent = observation.protected(raw, generator=generator)
    name, _ = last_layer(observation.architecture)
    own = [key for key in (f"{name}.weight", f"{name}.bias") if key in sent.tensors]
    if not own:
        return Channel()
    before, after = (torch.cat([update.tensors[key].flatten(1) for key in own], dim=1).double() for update in (raw, sent))
    factors = (before * after).sum(1) / before.square().sum(1).clamp_min(1e-300)
    rest = (after - factors[:, None] * before).norm(dim=1)
    if bool(((factors > 0) & (rest <= _STRAIGHT * after.norm(dim=1))).all()):
        return Channel(rescaled=bool(((factors - 1).abs() > _CHANGED).any()))
    return Channel(error=float((after - before).square().mean().sqrt()))
