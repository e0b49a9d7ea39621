"""Public photographs only, for tuning attacks: no victim of any benchmark is ever looked at.

pytest --gitbench --gitbench-dataset benchmarks/held_out.py:HeldOut --gitbench-defense none --gitbench-attack "ig(tv=0.3)"
"""

from __future__ import annotations

import torch

import gitbench


class HeldOut(gitbench.Dataset):
    """The public split of a dataset, cut in two: 256 images play the victims, the rest stays public.

    Args:
        dataset: SPEC of the dataset whose public split is cut.
    """

    def __init__(self, *, dataset: str = "photos") -> None:
        self.dataset = dataset

    def load(self) -> gitbench.Data:
        found = gitbench.load_dataset(self.dataset)
        order = torch.randperm(len(found.public), generator=torch.Generator().manual_seed(5))
        held, rest = order[:256], order[256:]

        def split(index: torch.Tensor) -> gitbench.Split:
            return gitbench.Split(found.public.inputs[index], found.public.labels[index])

        return gitbench.Data(split(rest), split(held), classes=found.classes, name=repr(self))
