"""What torch does when it is first used, done before a clock runs."""

from __future__ import annotations

import functools

import torch
from torch import nn

from gitbench.clients.client import gradients


@functools.cache
def warm_up() -> None:
    """Have torch import what it imports at first use (seconds): no case's time, and no place for an alarm to ring."""
    gradients(nn.utils.skip_init(nn.Linear, 1, 2), torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.long))
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])
