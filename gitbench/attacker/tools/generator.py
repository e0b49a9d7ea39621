"""Generators of images in stages: their protocol, and ours, the decoder of a variational autoencoder that public images train."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from gitbench.core.random import seeded

_SCALES = 3  # it starts at an eighth of the image's sides
ADVERSARIAL_BETAS = (0.5, 0.999)
"""Of Adam, as DCGANs are trained."""


class Staged(Protocol):
    """What ``gias`` and ``gifd`` need of a generator. It is a ``torch.nn.Module`` and leaves gradients on."""

    latent: int
    """Dimensions of a code; codes are drawn from N(0, 1)."""

    @property
    def stages(self) -> Sequence[nn.Module]:
        """One after the other they make images: the first reads codes ``(N, latent)``, each other one what the stage before returned.

        That is a tensor ``(N, ...)`` or a tuple of such tensors, which are the arguments of the next. The last returns images
        ``(N, C, H, W)`` in [0, 1]. What of an image depends on that image's row alone, so no BatchNorm in train mode. A generator with
        an attribute ``classes`` above 0 is given the class, one-hot ``(N, classes)``, as the second argument of its first stage.
        """


def through(stages: Sequence[nn.Module], *features: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the last of the stages returns of the first one's arguments, as a tuple."""
    for stage in stages:
        found = stage(*features)
        features = found if isinstance(found, tuple) else (found,)
    return features


class Generator(nn.Module):
    """The DCGAN's generator without BatchNorm, for images of any size: codes ``(N, latent)`` to images in [0, 1].

    It starts at an eighth of the sides, rounded up, and crops what is too much. Its stages (:class:`Staged`) are the linear layer and each
    of the three transposed convolutions, with the activation behind it.

    Args:
        shape: ``(C, H, W)`` of the images.
        latent: dimensions of the code.
        channels: of the last hidden layer.
        classes: whose one-hot ``(N, classes)`` the linear layer reads beside the code; 0 for none.
    """

    def __init__(self, shape: tuple[int, ...], *, latent: int, channels: int, classes: int = 0) -> None:
        super().__init__()
        self.latent, self.classes = latent, classes
        colours, height, width = shape
        widths = _widths(channels)
        side = 2**_SCALES
        rows, columns = -(-height // side), -(-width // side)
        layers: list[nn.Module] = [
            nn.Linear(latent + classes, widths[0] * rows * columns), nn.ReLU(), nn.Unflatten(1, (widths[0], rows, columns))
        ]  # fmt: skip
        for before, after in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = _Joining(*layers, nn.ConvTranspose2d(widths[-1], colours, 4, stride=2, padding=1), nn.Sigmoid(), _Crop(height, width))
        self._ends = (0, 3, *range(5, len(layers) + 1, 2), len(self.layers))

    @property
    def stages(self) -> Sequence[nn.Module]:
        """See :class:`Staged`."""
        return [self.layers[first:last] for first, last in itertools.pairwise(self._ends)]

    def forward(self, codes: torch.Tensor, *classes: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = self.layers(codes, *classes)
        return images


class _Joining(nn.Sequential):
    """Layers, and slices of them, that read codes and classes side by side."""

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        found = features[0] if len(features) == 1 else torch.cat(features, dim=1)
        for layer in self:
            found = layer(found)
        return found


class _Crop(nn.Module):
    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.height, self.width = height, width

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images[..., : self.height, : self.width]


class Autoencoder(nn.Module):
    """A variational autoencoder around the generator, and the discriminator of adversarial training.

    Where the generator has classes, the other two are told them too. ``classes`` below are those of the images, one-hot
    ``(N, classes)``, of a generator that has some.
    """

    def __init__(self, generator: Generator, shape: tuple[int, ...], latent: int, channels: int) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = _Convolutions.between(shape, 2 * latent, channels=channels, classes=generator.classes)
        self.discriminator = _Convolutions.between(shape, 1, channels=channels, classes=generator.classes)

    @classmethod
    def seeded_by(cls, generator: torch.Generator, shape: tuple[int, ...], *, latent: int, channels: int, classes: int = 0) -> Autoencoder:
        """One whose parameters are drawn by ``generator``."""
        with seeded(generator):
            return cls(Generator(shape, latent=latent, channels=channels, classes=classes), shape, latent, channels)

    def forward(self, images: torch.Tensor, *classes: torch.Tensor) -> torch.Tensor:
        """Images through their mean codes."""
        made: torch.Tensor = self.generator(self.encoder(images, *classes).chunk(2, dim=1)[0], *classes)
        return made

    def loss(self, images: torch.Tensor, generator: torch.Generator, *classes: torch.Tensor, kl: float, adversarial: float) -> torch.Tensor:
        """Squared error of a pixel plus ``kl`` times the divergence of a code dimension from N(0, 1).

        ``adversarial`` times the DCGAN's losses are added, where it is not zero.
        """
        mean, logarithm = self.encoder(images, *classes).chunk(2, dim=1)
        noise, codes = torch.randn(2, *mean.shape, generator=generator).to(images.device)
        logarithm = logarithm.clamp(-10, 10)  # of the variance
        made = self.generator(mean + (logarithm / 2).exp() * noise, *classes)
        divergence = (mean.square() + logarithm.exp() - 1 - logarithm) / 2
        total: torch.Tensor = (made - images).square().mean() + kl * divergence.mean()
        return total + adversarial * self.adversarial_loss(images, codes, *classes) if adversarial else total

    def error(self, images: torch.Tensor, *classes: torch.Tensor) -> float:
        """Mean squared error of images through their codes."""
        batches = zip(*(rows.split(256) for rows in (images, *classes)), strict=True)
        return sum(float((self(batch, *given) - batch).square().mean()) * len(batch) for batch, *given in batches) / len(images)

    def adversarial_loss(self, images: torch.Tensor, codes: torch.Tensor, *classes: torch.Tensor) -> torch.Tensor:
        """The DCGAN's two losses as one sum: each network gets the gradient of its own loss alone."""
        made = self.generator(codes, *classes)
        real, unreal = self.discriminator(images, *classes), self.discriminator(made.detach(), *classes)
        judge = functional.softplus(-real).mean() + functional.softplus(unreal).mean()
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return judge + functional.softplus(-functional_call(self.discriminator, frozen, (made, *classes))).mean()


class _Convolutions(nn.Sequential):
    """The generator backwards: from images, and their classes, to numbers."""

    @classmethod
    def between(cls, shape: tuple[int, ...], outputs: int, *, channels: int, classes: int) -> _Convolutions:
        """Those of images of a shape."""
        before, height, width = shape
        layers: list[nn.Module] = []
        for after in reversed(_widths(channels)):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            before, height, width = after, height // 2, width // 2
        return cls(*layers, nn.Flatten(), nn.Linear(before * height * width + classes, outputs))

    def forward(self, images: torch.Tensor, *classes: torch.Tensor) -> torch.Tensor:
        *layers, last = self
        found = images
        for layer in layers:
            found = layer(found)
        numbers: torch.Tensor = last(torch.cat([found, *classes], dim=1))
        return numbers


def _widths(channels: int) -> list[int]:
    return [channels * 2**scale for scale in reversed(range(_SCALES))]
