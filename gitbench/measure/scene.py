"""What is there before the clients send: the data, the model, the client, the defense, and the victims."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.observation import Observation
from gitbench.clients.client import batchnorm_statistics
from gitbench.clients.data import Data, Split, draw_victims
from gitbench.clients.defense import Defense, check_fits
from gitbench.clients.procedure import Client
from gitbench.clients.update import Update
from gitbench.core.random import make_generator, seeded
from gitbench.identity.case import Case


@dataclass(frozen=True)
class Scene:
    """One case before anything is sent.

    Args:
        public: of the data, on the device.
        original: the model before the defense has changed it.
        inputs: of the victims, ``(V, B, *shape)``, those of all clients behind an update.
        labels: theirs, ``(V, B)``.
    """

    case: Case
    data: Data
    public: Split
    original: nn.Module
    client: Client
    defense: Defense
    inputs: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        check_fits(self.defense, self.data.modality.name)

    def shared_model(self) -> nn.Module:
        """The model of server and client. The values of layers that a defense makes anew follow from the case's seed."""
        with seeded(make_generator(self.case.seed, "shared model", self.case.defense)):
            return self.defense.modify_model(self.original)

    def observation(self, update: Sequence[Update], model: nn.Module) -> Observation:
        """The updates of all rounds with what the threat model grants of this scene."""
        knowledge = self.case.knowledge
        return Observation(
            update=update,
            model=model,
            input_shape=self.data.input_shape,
            batch_size=self.labels.shape[1],
            labels=self.labels if "labels" in knowledge else None,
            public=self.public if "public" in knowledge else None,
            client=self.client,
            defense=self.defense if "defense" in knowledge else None,
            batchnorm_statistics=batchnorm_statistics(model, self.inputs) if "batchnorm_statistics" in knowledge else None,
            parameters="parameters" in knowledge,
            modality=self.data.modality,
        )

    def rehearsed(self, model: nn.Module) -> Observation:
        """All that can be known, and no update."""
        return Observation(
            update=[Update({}) for _ in range(self.case.rounds)],
            model=model,
            input_shape=self.data.input_shape,
            batch_size=self.labels.shape[1],
            public=self.public,
            client=self.client,
            defense=self.defense,
            modality=self.data.modality,
        )


def victims_of(case: Case, data: Data, client: Client) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``(V, B, *shape)`` and labels ``(V, B)`` of a case's victims, of all clients behind an update.

    Raises:
        DataError: the private split is too small.
    """
    return draw_victims(data.private, victims=case.victims, batch_size=client.images(case.batch_size), seed=case.seed)
