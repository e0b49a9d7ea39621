"""Public examples that play victims: their truth is known, so that an attacker can try itself on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from gitbench.attacker.observation import Observation
from gitbench.clients.client import batchnorm_statistics


@dataclass(frozen=True)
class Played:
    """Public batches as victims.

    Args:
        observation: of what they sent, as the refiner sees it.
        start: the reconstruction ``(R, B, *shape)`` of the attack before; None where there is none.
        truth: ``(R, B, *shape)``.
    """

    observation: Observation
    start: torch.Tensor | None
    truth: torch.Tensor


class Play(Protocol):
    """Tries the attack before a refiner on public batches."""

    def __call__(self, rows: torch.Tensor, *, generator: torch.Generator) -> Played:
        """Public batches ``(R, B)``, as indices into the public split; ``generator`` is for the defense's randomness."""


def played(
    observation: Observation,
    rows: torch.Tensor,
    *,
    view: Callable[[Observation], Observation],
    before: Callable[[Observation], torch.Tensor] | None = None,
    generator: torch.Generator,
) -> Played:
    """What becomes of public batches where they are the victims.

    Args:
        observation: of the victims, with ``public``. What is granted of them (labels, statistics) is granted of these.
        rows: ``(R, B)`` indices into the public split.
        view: what the refiner sees of an observation. Who does not know the defense rehearses none.
        before: the reconstructions of the attack before it.
        generator: for the defense's randomness.
    """
    public, granted = observation.public, observation.granted
    index = rows.to(public.inputs.device)
    seen = observation.with_update(
        view(observation).public_updates(rows, generator=generator),
        labels=public.labels[index] if "labels" in granted else None,
        batchnorm_statistics=batchnorm_statistics(observation.model, public.inputs[index]) if "batchnorm_statistics" in granted else None,
    )
    return Played(view(seen), None if before is None else before(seen), public.inputs[index])
