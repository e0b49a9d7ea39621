"""The networks, images and gradients that all implementations get. Knows torch and torchvision alone: each of them imports it."""

from __future__ import annotations

import itertools

import torch
from torch import nn
from torch.nn import functional

CLASSES, SIDE = 10, 32


def lenet() -> nn.Module:
    """Four 5x5 convolutions of 12 channels with sigmoids: gitbench's ``lenet(layers=4)``, weights U(-0.5, 0.5)."""
    layers: list[nn.Module] = []
    for index, stride in enumerate((2, 2, 1, 1)):
        layers += [nn.Conv2d(12 if index else 3, 12, 5, stride=stride, padding=2), nn.Sigmoid()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * (SIDE // 4) ** 2, CLASSES))
    for parameter in network.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def convnet() -> nn.Module:
    """The ConvNet of breaching: eight 3x3 convolutions of 32 to 128 channels with BatchNorm."""
    layers: list[nn.Module] = []
    widths = [3, 32, 64, 64, 128, 128, 128, 128, 128]
    for index, (before, after) in enumerate(itertools.pairwise(widths)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]
        if index in (5, 7):
            layers.append(nn.MaxPool2d(3))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(9 * 128, CLASSES))


def resnet18() -> nn.Module:
    """torchvision's."""
    from torchvision.models import resnet18

    network: nn.Module = resnet18(num_classes=CLASSES)
    return network


NETWORKS = {"lenet": lenet, "convnet": convnet, "resnet18": resnet18}


def network(name: str) -> nn.Module:
    """Initialised alike everywhere, in eval mode."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def examples(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Smooth images ``(count, 3, 32, 32)`` in [0, 1] and labels."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    return functional.interpolate(coarse, SIDE, mode="bilinear"), labels


def gradients(model: nn.Module, image: torch.Tensor, label: torch.Tensor) -> list[torch.Tensor]:
    """Of the loss of one image ``(3, 32, 32)`` by each parameter."""
    return [*torch.autograd.grad(functional.cross_entropy(model(image[None]), label[None]), list(model.parameters()))]


def products(model: nn.Module) -> int:
    """Multiplications of one image's forward pass."""
    counted: list[int] = []

    def count(layer: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        counted.append(output[0].numel() * layer.weight[0].numel())

    handles = [layer.register_forward_hook(count) for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.no_grad():
        model(torch.zeros(1, 3, SIDE, SIDE))
    for handle in handles:
        handle.remove()
    return sum(counted)
