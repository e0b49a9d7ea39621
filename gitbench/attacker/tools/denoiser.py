"""A denoiser of images: a small convolutional network that public images train, and that is told how strong the noise is."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress
from gitbench.core.random import randn_like, seeded

_SCALES = 3  # images are read at a half, a quarter and an eighth of their sides
_HELD = (0.025, 0.05, 0.1, 0.2, 0.4)  # standard deviations at which epochs are compared
_AT_ONCE = 2**18  # pixels


class Denoiser(nn.Module):
    """``y - σ f(y, σ)`` of noisy images ``y``, where ``f`` estimates the noise that was added, in units of its deviation ``σ``.

    As in FFDNet (Zhang et al., arXiv 1710.04026) pixels of 2x2 squares become channels and ``σ`` is one more; the layers are those of a
    small U-Net. Images of any sides are padded to multiples of eight.

    Args:
        colours: channels of the images.
        width: channels of the first scale; twice and four times as many at the next.
    """

    def __init__(self, colours: int, *, width: int) -> None:
        super().__init__()
        widths = [width * 2**scale for scale in range(_SCALES)]
        self.first = nn.Conv2d(4 * colours + 1, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(before, 2 * before, 2, stride=2) for before in widths[:-1])
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * after, after, 2, stride=2) for after in widths[:-1])
        self.before = nn.ModuleList(_Block(one) for one in widths)
        self.after = nn.ModuleList(_Block(one) for one in widths[:-1])
        self.last = nn.Conv2d(widths[0], 4 * colours, 3, padding=1)

    def forward(self, images: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """Of images ``(N, C, H, W)`` with noise of deviations ``(N,)``."""
        return images - _each(deviation) * self.noise(images, deviation)

    def noise(self, images: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
        """The noise in images, in units of its deviation; arguments as above."""
        height, width = images.shape[2:]
        side = 2**_SCALES
        padded = functional.pad(images, (0, -width % side, 0, -height % side), mode="replicate")
        folded = functional.pixel_unshuffle(padded - 0.5, 2)
        strength = (1 + deviation / 0.05).log()  # of the order of one over the whole range
        found = self.first(torch.cat([folded, _each(strength).expand(-1, 1, *folded.shape[2:])], dim=1))
        passed = []
        for block, down in zip(self.before, self.down, strict=False):
            passed.append(block(found))
            found = down(passed[-1])
        found = self.before[-1](found)
        for block, up, beside in zip(reversed(self.after), reversed(self.up), reversed(passed), strict=True):
            found = block(up(found) + beside)
        unfolded: torch.Tensor = functional.pixel_shuffle(self.last(found), 2)
        return unfolded[..., :height, :width]

    def loss(self, images: torch.Tensor, deviations: tuple[float, float], generator: torch.Generator) -> torch.Tensor:
        """Mean squared error of the noise that is found, in units of its variance; logarithms of deviations are uniform between two."""
        low, high = (math.log(one) for one in deviations)
        deviation = (low + (high - low) * torch.rand(len(images), generator=generator)).exp().to(images)
        noise = randn_like(images, generator)
        return (self.noise(images + _each(deviation) * noise, deviation) - noise).square().mean()


class _Block(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU()
        )  # fmt: skip

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = features + self.layers(features)
        return found


def train_denoiser(
    images: torch.Tensor,
    *,
    width: int,
    epochs: int,
    batch_size: int,
    lr: float,
    holdout: float,
    deviations: tuple[float, float],
    generator: torch.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
) -> dict[str, torch.Tensor]:
    """The values of a denoiser of these images.

    Args:
        images: ``(N, C, H, W)``, in any order that ``generator`` has not chosen.
        width: of :class:`Denoiser`.
        epochs: of its training.
        batch_size: of its training.
        lr: of the first step; it falls to zero along a cosine.
        holdout: share of the images that chooses the epoch.
        deviations: least and greatest of the noise; their logarithm is uniform between.
        generator: for everything random.
        progress: told after every step.
        checkpoint: where the training goes on from.

    Raises:
        AttackError: there are too few images.
    """
    order = torch.randperm(len(images), generator=generator).to(images.device)
    held = max(1, round(holdout * len(images)))
    if len(images) <= held:
        raise AttackError(f"A denoiser needs at least 2 public images to be trained on, found {len(images)}: use more public data.")
    rows, kept = images[order[held:]], images[order[:held]]
    with seeded(generator):
        network = Denoiser(images.shape[1], width=width)
    network.to(images.device)
    unseen = randn_like(kept, generator)

    def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return network.loss(rows[chosen.to(rows.device)], deviations, generator)

    train_network(
        network, loss=loss, rows=len(rows), validate=lambda: _error(network, kept, unseen), epochs=epochs, batch_size=batch_size, lr=lr,
        generator=generator, progress=progress, what="denoise: denoiser", checkpoint=checkpoint,
    )  # fmt: skip
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def trained(values: Mapping[str, torch.Tensor], *, device: torch.device) -> Denoiser:
    """The denoiser with these values, frozen."""
    width, folded = values["first.weight"].shape[:2]
    network = Denoiser((folded - 1) // 4, width=width)
    network.load_state_dict(dict(values))
    return network.to(device).eval().requires_grad_(False)


@torch.no_grad()
def denoised(network: Denoiser, images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Images ``(V, B, C, H, W)`` without the noise of a deviation that is in them, in [0, 1]."""
    flat = images.flatten(0, 1)
    parts = [network(part, part.new_full((len(part),), deviation)) for part in flat.split(_images_at_once(flat))]
    return torch.cat(parts).reshape(images.shape).clamp(0, 1)


def _error(network: Denoiser, images: torch.Tensor, noise: torch.Tensor) -> float:
    """Mean squared error of the noise that is found, in units of its variance, over several deviations."""
    total, at_once = 0.0, _images_at_once(images)
    for deviation in _HELD:
        for clean, added in zip(images.split(at_once), noise.split(at_once), strict=True):
            found = network.noise(clean + deviation * added, clean.new_full((len(clean),), deviation))
            total += float((found - added).square().mean()) * len(clean)
    return total / (len(images) * len(_HELD))


def _images_at_once(images: torch.Tensor) -> int:
    return max(1, _AT_ONCE // images.shape[2:].numel())


def _each(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1, 1)
