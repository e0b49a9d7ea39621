"""Can the reconstruction be recognised among all private images?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric

if TYPE_CHECKING:
    import torch


class Identification(Metric):
    """1 where no private image is closer (in squared error) to the reconstruction than its truth, else 0.

    A reconstruction equally close to several images identifies none, unless they are copies of the truth.
    """

    name = "identification"
    higher_leaks = True
    low, high = 0.0, 1.0
    tolerance = 0.05
    summary = "share recognised: nearest private image is the true one"

    def score(self, found: torch.Tensor, truth: torch.Tensor, *, private: torch.Tensor) -> torch.Tensor:
        import torch

        found, own, others = (images.flatten(1).double() for images in (found, truth, private))
        distance = (found - own).square().sum(1)
        to_others = torch.cdist(found, others, compute_mode="donot_use_mm_for_euclid_dist").square()
        to_own = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist")
        rivals = torch.where(to_own == 0, torch.inf, to_others).min(dim=1).values
        return (distance < rivals * (1 - 1e-9)).double()
