"""Tiny data, made on the spot, and where the real data lies beside the project."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from gitbench.data import Data, Split

SHARED = Path(__file__).parents[2] / "shared"
CIFAR10 = SHARED / "data" / "cifar10.npz"


def make_data(*, size: int = 8, classes: int = 4, public: int = 96, private: int = 24, channels: int = 3, seed: int = 0) -> Data:
    """Smooth random images: a random colour gradient each, so that they can be learned."""
    generator = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        corners = torch.rand(count, channels, 2, 2, generator=generator)
        images = torch.nn.functional.interpolate(corners, size=(size, size), mode="bilinear", align_corners=True)
        return Split(images.clamp(0, 1), torch.randint(0, classes, (count,), generator=generator))

    return Data(split(public), split(private), classes=classes, name="tiny")


def write_npz(path: Path, found: Data) -> Path:
    """The data as an archive in the MedMNIST layout."""

    def arrays(split: Split) -> tuple[np.ndarray, np.ndarray]:
        return (split.inputs.permute(0, 2, 3, 1) * 255).round().byte().numpy(), split.labels.numpy()

    train_images, train_labels = arrays(found.public)
    test_images, test_labels = arrays(found.private)
    np.savez(path, train_images=train_images, train_labels=train_labels, test_images=test_images, test_labels=test_labels)
    return path
