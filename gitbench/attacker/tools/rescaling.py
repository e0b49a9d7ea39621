"""Whether a defense sends the gradient of the last layer as it is, but for a factor that each victim has for itself."""

from __future__ import annotations

import torch

from gitbench.attacker.observation import Observation
from gitbench.clients.model import last_layer
from gitbench.core.random import make_generator

_PLAYED = 8  # public batches
_STRAIGHT = 1e-5  # relative length of what is not along the raw gradient: float32's rounding is below it
_CHANGED = 1e-4  # of a factor, from one


def is_rescaled(observation: Observation) -> bool:
    """Whether clipping each whole update to some length, say, is all that happens to it; False where the factor is always one.

    The defense is rehearsed on public batches.

    Args:
        observation: False for one without ``public`` or ``defense``.
    """
    if not {"public", "defense"} <= observation.granted or len(observation.public) < observation.batch_size:
        return False
    generator = make_generator(0, "rescaling")
    shape = (_PLAYED, observation.batch_size)
    raw = observation.public_gradients(torch.randint(len(observation.public), shape, generator=generator), generator=generator)
    sent = observation.protected(raw, generator=generator)
    name, _ = last_layer(observation.architecture)
    own = [key for key in (f"{name}.weight", f"{name}.bias") if key in sent.tensors]
    if not own:
        return False
    before, after = (torch.cat([update.tensors[key].flatten(1) for key in own], dim=1).double() for update in (raw, sent))
    factors = (before * after).sum(1) / before.square().sum(1).clamp_min(1e-300)
    rest = (after - factors[:, None] * before).norm(dim=1)
    straight = (factors > 0) & (rest <= _STRAIGHT * after.norm(dim=1))
    return bool(straight.all() and ((factors - 1).abs() > _CHANGED).any())
