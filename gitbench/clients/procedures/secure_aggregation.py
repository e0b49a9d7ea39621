"""Secure aggregation: the server sees only the sum of several clients' updates."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.procedure import Client, load_client
from gitbench.clients.update import Update


class SecureAggregation(Client):
    """The sum of several clients' updates, none of which is seen (Bonawitz et al. 2017, Practical Secure Aggregation).

    A victim is the sum: all images of its clients are private, and any of them may leak. Each client protects its own update
    before it is summed. That nobody drops out or lies is taken for granted.

    Args:
        clients: how many are summed, each with a batch of its own.
        client: SPEC of what each of them does.
    """

    name = "secure_aggregation"

    def __init__(self, *, clients: int = 4, client: str = "fedsgd") -> None:
        if not isinstance(clients, int) or clients < 1:
            raise ValueError(f"expected clients >= 1, got {clients!r}")
        self.clients = clients
        self.client = load_client(client)
        if self.client.clients != 1:
            raise ValueError(f"expected a client that sends its own update, got {client!r}, which is a sum already")
        self.unit = self.client.unit

    def local_update(
        self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator, per_example: bool = False
    ) -> Update:
        return self.client.local_update(model, inputs, labels, generator=generator, per_example=per_example)
