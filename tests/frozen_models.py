"""Tiny models of which a part is frozen, in the ways that people freeze."""

from __future__ import annotations

import torch
from torch import nn


class Lora(nn.Module):
    """``W x + B A x`` with ``W`` frozen."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.down = nn.Parameter(0.1 * torch.randn(rank, layer.in_features))
        self.up = nn.Parameter(0.1 * torch.randn(layer.out_features, rank))
        self.layer = layer.requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.layer(inputs) + inputs @ self.down.T @ self.up.T
        return outputs


class Adapter(nn.Module):
    """The same of linear layers, registered in the order in which peft has them."""

    def __init__(self, layer: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.base_layer(inputs) + self.up(self.down(inputs))
        return outputs


def network(wrap: type[nn.Module] | None = None) -> nn.Sequential:
    """For images of 3x8x8 and 4 classes; linear layers may be wrapped."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.Sigmoid(), nn.Conv2d(6, 6, 3, padding=1), nn.Sigmoid())
    linears = [nn.Linear(96, 12), nn.Linear(12, 4)]
    hidden, last = linears if wrap is None else [wrap(layer) for layer in linears]
    return nn.Sequential(*convolutions, nn.Flatten(), hidden, nn.Tanh(), last)


def whole() -> nn.Module:
    return network()


def backbone() -> nn.Module:
    """The convolutions are frozen."""
    model = network()
    model[:4].requires_grad_(False)
    return model


def probe() -> nn.Module:
    """The last layer alone trains."""
    model = network()
    model[:-1].requires_grad_(False)
    return model


def head() -> nn.Module:
    """The last layer is frozen."""
    model = network()
    model[-1].requires_grad_(False)
    return model


def biases() -> nn.Module:
    """BitFit."""
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("bias"))
    return model


def convolution() -> nn.Module:
    """The first layer alone trains: no linear layer is sent."""
    model = network()
    model[1:].requires_grad_(False)
    return model


def lora() -> nn.Module:
    model = network(Lora)
    model[:4].requires_grad_(False)
    return model


def adapters() -> nn.Module:
    model = network(Adapter)
    model[:4].requires_grad_(False)
    return model


def everything() -> nn.Module:
    return network().requires_grad_(False)


FROZEN = {make.__name__: make for make in (backbone, probe, head, biases, convolution, lora, adapters)}
