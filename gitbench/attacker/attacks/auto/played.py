"""Public images that play victims beside the victims."""

from __future__ import annotations

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.playing import played
from gitbench.clients.update import Update


def with_played_victims(observation: Observation, most: int, generator: torch.Generator) -> tuple[Observation, torch.Tensor | None]:
    """The victims, followed by public images that play victims, and the truth ``(R, B, C, H, W)`` of these."""
    # Images of a batch have no order: candidates from different attacks cannot be mixed pixel by pixel.
    if not {"public", "defense"} <= observation.granted or observation.batch_size > 1 or not len(observation.kept):
        return observation, None
    kept = observation.kept
    rows = kept[torch.randperm(len(kept), generator=generator)[:most], None]
    part = played(observation, rows, view=lambda seen: seen, generator=generator)
    theirs = part.observation
    labels = torch.cat([observation.labels, theirs.labels]) if "labels" in observation.granted else None
    statistics = None
    if "batchnorm_statistics" in observation.granted:
        pairs = ((name, own, theirs.batchnorm_statistics[name]) for name, own in observation.batchnorm_statistics.items())
        statistics = {name: (torch.cat([own[0], other[0]]), torch.cat([own[1], other[1]])) for name, own, other in pairs}
    update = Update.cat([observation.update, theirs.update])
    return observation.with_update(update, labels=labels, batchnorm_statistics=statistics), part.truth
