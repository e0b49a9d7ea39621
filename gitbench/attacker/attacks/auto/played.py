"""Public images that play victims beside the victims."""

from __future__ import annotations

import torch

from gitbench.attacker.observation import Observation
from gitbench.clients.client import batchnorm_statistics
from gitbench.clients.update import Update


def with_played_victims(observation: Observation, most: int, generator: torch.Generator) -> tuple[Observation, torch.Tensor | None]:
    """The victims, followed by public images that play victims, and the truth ``(R, B, C, H, W)`` of these."""
    # Images of a batch have no order: candidates from different attacks cannot be mixed pixel by pixel.
    if not {"public", "defense"} <= observation.granted or observation.batch_size > 1 or not len(observation.kept):
        return observation, None
    kept = observation.kept
    rows = kept[torch.randperm(len(kept), generator=generator)[:most], None]
    sent = observation.public_updates(rows, generator=generator)
    update = Update.cat([observation.update, sent])
    public, rows = observation.public, rows.to(observation.public.inputs.device)
    labels = torch.cat([observation.labels, public.labels[rows]]) if "labels" in observation.granted else None
    statistics = None
    if "batchnorm_statistics" in observation.granted:
        theirs = batchnorm_statistics(observation.model, public.inputs[rows])
        own = observation.batchnorm_statistics
        statistics = {name: (torch.cat([own[name][0], mean]), torch.cat([own[name][1], var])) for name, (mean, var) in theirs.items()}
    return observation.with_update(update, labels=labels, batchnorm_statistics=statistics), public.inputs[rows]
