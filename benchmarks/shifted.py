"""Distribution shift: public and private images of different classes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

import gitbench


class Shifted(gitbench.Dataset):
    """Keeps some classes of the public split, and others of the private one.

    Args:
        dataset: SPEC of the dataset.
        public: its classes that stay public.
        private: its classes that stay private.
    """

    def __init__(self, *, dataset: str, public: Sequence[int] = range(8), private: Sequence[int] = range(2, 10)) -> None:
        self.dataset = dataset
        self.public = tuple(public)
        self.private = tuple(private)

    def load(self) -> gitbench.Data:
        found = gitbench.load_dataset(self.dataset)

        def split(whole: gitbench.Split, classes: tuple[int, ...]) -> gitbench.Split:
            kept = torch.isin(whole.labels, torch.tensor(classes))
            return gitbench.Split(whole.inputs[kept], whole.labels[kept])

        return gitbench.Data(split(found.public, self.public), split(found.private, self.private), classes=found.classes, name=repr(self))
