"""FedSGD: a client sends the gradient of its batch."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.client import gradients
from gitbench.clients.procedure import Client
from gitbench.clients.update import Update


class FedSgd(Client):
    """Sends the gradient of the mean loss of one batch (McMahan et al. 2017, Communication-Efficient Learning of Deep Networks)."""

    name = "fedsgd"

    def local_update(
        self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator, per_example: bool = False
    ) -> Update:
        return gradients(model, inputs, labels, per_example=per_example)
