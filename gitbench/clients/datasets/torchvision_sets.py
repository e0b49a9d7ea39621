"""torchvision's classification sets by name. Nothing is downloaded unless ``download=True``.

torchvision checks the MD5 sum of every archive before it reads it.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch

from gitbench.clients.data import Data, Dataset, Split, from_uint8, need_path
from gitbench.core.errors import DataError


class _TorchvisionSet(Dataset):
    """Public is torchvision's train split, private its test split.

    Args:
        root: the folder that torchvision keeps its datasets in.
        download: fetch what is missing there.
        channels: 3 repeats the one channel of grey images, for a model that takes colour; None leaves them as they are.
    """

    source: ClassVar[str] = ""
    by_split: ClassVar[bool] = False  # SVHN and STL10 take split="train", the others train=True

    def __init__(self, *, root: str, download: bool = False, channels: int | None = None) -> None:
        self.root = root
        self.download = download
        self.channels = channels

    def load(self) -> Data:
        root = self.root if self.download else str(need_path(self.root, f"the folder of torchvision's {self.source}"))
        public, private = self._split(root, "train"), self._split(root, "test")
        return Data(public, private, classes=int(public.labels.max()) + 1, name=repr(self))

    def _split(self, root: str, split: str) -> Split:
        from torchvision import datasets

        which: dict[str, Any] = {"split": split} if self.by_split else {"train": split == "train"}
        try:
            found = getattr(datasets, self.source)(root, download=self.download, **which)
        except (RuntimeError, OSError, EOFError, ValueError) as error:
            hint = "" if self.download else " Check root, or allow the download with download=True."
            raise DataError(f"torchvision's {self.source} cannot be read from {root}: {error}.{hint}") from error
        images = torch.as_tensor(np.asarray(found.data))
        if images.ndim == 3:
            images = images[..., None]
        elif self.by_split:
            images = images.permute(0, 2, 3, 1)
        labels = torch.as_tensor(np.asarray(found.labels if self.by_split else found.targets)).long()
        return Split(from_uint8(images, channels=self.channels), labels)


class Cifar10(_TorchvisionSet):
    __doc__ = f"CIFAR-10 (Krizhevsky 2009). {_TorchvisionSet.__doc__}"
    name, source = "cifar10", "CIFAR10"


class Cifar100(_TorchvisionSet):
    __doc__ = f"CIFAR-100 (Krizhevsky 2009). {_TorchvisionSet.__doc__}"
    name, source = "cifar100", "CIFAR100"


class Mnist(_TorchvisionSet):
    __doc__ = f"MNIST (LeCun et al. 1998). {_TorchvisionSet.__doc__}"
    name, source = "mnist", "MNIST"


class FashionMnist(_TorchvisionSet):
    __doc__ = f"Fashion-MNIST (Xiao et al. 2017). {_TorchvisionSet.__doc__}"
    name, source = "fashion_mnist", "FashionMNIST"


class Svhn(_TorchvisionSet):
    __doc__ = f"SVHN (Netzer et al. 2011). {_TorchvisionSet.__doc__}"
    name, source, by_split = "svhn", "SVHN", True


class Stl10(_TorchvisionSet):
    __doc__ = f"STL-10 (Coates et al. 2011). {_TorchvisionSet.__doc__}"
    name, source, by_split = "stl10", "STL10", True
