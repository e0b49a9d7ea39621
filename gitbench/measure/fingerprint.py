"""Tells whether two runs drew the same local model: all victims of a seed share it, and no number of them averages it out."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gitbench.core.random import make_generator, randn_like

_NUMBERS = 8


def fingerprint(model: nn.Module, local: nn.Module) -> tuple[float, ...]:
    """A random sketch of how far, and where, the client's own parameters are from the shared ones.

    The distance of two sketches is about that of the two models, so that the rounding of another machine
    moves it little, and another draw as much as the drift itself (Charikar et al. 2002, count sketch).

    Args:
        model: that the server and the clients share.
        local: the client's copy.

    Returns:
        Nothing where the parameters are equal.
    """
    generator = make_generator(0, "fingerprint")
    theirs = dict(local.named_parameters())
    total = torch.zeros(_NUMBERS, dtype=torch.float64)
    for name, parameter in model.named_parameters():
        change = (theirs[name].detach() - parameter.detach()).flatten().double().cpu()
        signed = change * randn_like(change, generator).sign()
        total += functional.pad(signed, (0, -len(signed) % _NUMBERS)).reshape(-1, _NUMBERS).sum(0)
    return tuple(float(f"{value:.4g}") for value in total.tolist()) if bool(total.any()) else ()
