"""What an observation holds, before anyone asks what of it is granted."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from gitbench.clients.data import Split
from gitbench.clients.defense import Expectation
from gitbench.clients.procedure import Client
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.modality import Modality

_OF_VICTIMS = ("sent", "earlier", "labels", "batchnorm_statistics")
BatchNormStatistics = Mapping[str, tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Contents:
    """Of :class:`gitbench.attacker.observation.Observation`, which describes them.

    Args:
        architecture: False where not even the model's layers are granted.
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
    architecture: bool = True
    learned: dict[str, object] = field(default_factory=dict)

    def replaced(self, **changes: object) -> Contents:
        """The same with some changes. What was learned is kept where only victims change."""
        others = (change is not getattr(self, name) for name, change in changes.items() if name not in _OF_VICTIMS)
        if "learned" not in changes and any(others):
            changes["learned"] = {}
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]


def of_the_same_victims(earlier: Sequence[Update], update: Update) -> tuple[Update, ...]:
    """Updates of rounds before, if they are of as many victims as this one; else an :class:`AttackError`."""
    wrong = [len(one) for one in earlier if len(one) != len(update)]
    if wrong:
        raise AttackError(f"Expected earlier updates of the same {len(update)} victims, got one of {wrong[0]}. Stack victims in one order.")
    return tuple(earlier)
