"""What an observation holds, before anyone asks what of it is granted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from gitbench.clients.data import Split
from gitbench.clients.defense import Expectation
from gitbench.clients.procedure import Client
from gitbench.clients.update import Update
from gitbench.core.modality import Modality

_OF_VICTIMS = ("sent", "earlier", "labels", "batchnorm_statistics")
BatchNormStatistics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Contents:
    """Of :class:`gitbench.attacker.observation.Observation`, which describes them.

    Args:
        learned: of public data, by name; shared by all contents that differ in their victims alone.
    """

    sent: tuple[Update, ...]
    repeats: int
    earlier: tuple[Update, ...]
    model: nn.Module
    input_shape: tuple[int, ...]
    batch_size: int
    labels: torch.Tensor | None
    public: Split | None
    client: Client
    expectation: Expectation | None
    batchnorm_statistics: BatchNormStatistics | None
    parameters: bool
    modality: Modality
    learned: dict[str, object] = field(default_factory=dict)

    def replaced(self, **changes: object) -> Contents:
        """The same with some changes. What was learned is kept where only victims change."""
        others = (change is not getattr(self, name) for name, change in changes.items() if name not in _OF_VICTIMS)
        return dataclasses.replace(self, **changes, **({"learned": {}} if any(others) else {}))  # type: ignore[arg-type]
