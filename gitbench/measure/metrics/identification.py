"""Can the reconstruction be recognised among all private images?"""

from __future__ import annotations

import torch


def identification(images: torch.Tensor, truth: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """1 where no candidate is closer (in squared error) to the reconstruction than its truth, else 0.

    Args:
        images: reconstructions ``(N, C, H, W)``.
        truth: their true images ``(N, C, H, W)``.
        candidates: all private images ``(M, C, H, W)``, the true ones among them.

    Returns:
        ``(N,)``. A reconstruction equally close to several images identifies none, unless they are
        copies of the truth.
    """
    found = images.flatten(1).double()
    own = truth.flatten(1).double()
    others = candidates.flatten(1).double()
    distance = (found - own).square().sum(1)
    to_others = torch.cdist(found, others, compute_mode="donot_use_mm_for_euclid_dist").square()
    to_own = torch.cdist(own, others, compute_mode="donot_use_mm_for_euclid_dist")
    rivals = torch.where(to_own == 0, torch.inf, to_others).min(dim=1).values
    return (distance < rivals * (1 - 1e-9)).double()
