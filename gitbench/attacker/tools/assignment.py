"""Images of a batch have no order: the best assignment of what was found to what is known."""

from __future__ import annotations

import torch
from scipy.optimize import linear_sum_assignment


def assigned(found: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The images of each batch in the order that is nearest to what was found, in squared error.

    Args:
        found: ``(N, B, P)`` pixels.
        images: ``(N, B, P)``, in any order within a batch.
    """
    if images.shape[1] == 1:
        return images
    with torch.no_grad():
        # |a - b|² = |a|² + |b|² - 2ab, of which the first two terms are the same for all assignments.
        costs = (-2 * torch.einsum("nip,njp->nij", found, images)).double().cpu().numpy()
        chosen = torch.stack([torch.from_numpy(linear_sum_assignment(cost)[1]) for cost in costs]).to(images.device)
    return images.gather(1, chosen[..., None].expand_as(images))


def matched_error(found: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean squared error under each batch's best assignment, differentiable in ``found``; arguments of :func:`assigned`."""
    return (found - assigned(found, images)).square().mean()


def aligned(candidates: torch.Tensor, reference: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Which of a batch's candidates stands for which of another reconstruction of the same batch: ``(B,)``, nearest in squared error.

    Args:
        candidates: ``(B, ...)``.
        reference: ``(B, ...)``; entry ``i`` of what is returned is the candidate for image ``i`` of these.
        labels: ``(B,)`` of both: only images of one label are exchanged.
    """
    costs = torch.cdist(reference.flatten(1), candidates.flatten(1)).square()
    costs = costs + (labels[:, None] != labels) * (1 + costs.max()) * len(labels)
    return torch.from_numpy(linear_sum_assignment(costs.double().cpu().numpy())[1]).to(labels.device)
