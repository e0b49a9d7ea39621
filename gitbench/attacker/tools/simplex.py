"""Projection onto a ball of the l1 norm."""

from __future__ import annotations

import torch


def onto_l1_ball(rows: torch.Tensor, radius: torch.Tensor) -> torch.Tensor:
    """The points of the balls around zero that are nearest to rows ``(N, n)`` (Duchi et al., ICML 2008).

    Args:
        rows: where they are.
        radius: of each, ``(N,)``, not negative; infinity leaves a row as it is.
    """
    lengths = rows.abs().sum(1)
    outside = (lengths > radius).nonzero().flatten()
    if not len(outside):
        return rows
    some, radii = rows[outside], radius[outside, None]
    sorted_ = some.abs().sort(dim=1, descending=True).values
    count = torch.arange(1, rows.shape[1] + 1, device=rows.device)
    threshold = (sorted_.cumsum(1) - radii) / count
    last = ((sorted_ > threshold).sum(1, keepdim=True) - 1).clamp_min(0)
    shrunk = some.sign() * (some.abs() - threshold.gather(1, last).clamp_min(0)).clamp_min(0)
    return rows.index_copy(0, outside, shrunk)
