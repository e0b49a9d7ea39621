"""What metrics of text are made of: what they share, and how many tokens two sequences do. Padding of the truth does not count."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.clients.modalities.text import PAD
from gitbench.core.metric import Metric

if TYPE_CHECKING:
    import torch


class TextMetric(Metric):
    """Base of the metrics of text: a share of each sequence, which leaks more the larger it is."""

    modality = "text"
    higher_leaks = True
    low, high = 0.0, 1.0
    tolerance = 0.02


def recovered(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """The share of the true tokens that are in a reconstruction anywhere, each as often as it is there: ``(N, L)`` twice to ``(N,)``."""
    import torch

    size = 1 + int(torch.maximum(found.max(), truth.max()))
    mine, theirs = (
        torch.zeros(len(one), size, device=one.device).scatter_add_(1, one, torch.ones_like(one).float()) for one in (found, truth)
    )
    both = torch.minimum(mine, theirs)
    both[:, PAD] = 0
    return both.double().sum(1) / of_truth(truth).sum(1).clamp_min(1)


def of_truth(truth: torch.Tensor) -> torch.Tensor:
    """Where a true sequence has a token that is no padding."""
    return truth != PAD


def plain(tokens: torch.Tensor) -> list[list[int]]:
    """Sequences without padding at their ends."""
    return [row[: len(row) - _trailing(row)] for row in tokens.tolist()]


def _trailing(row: list[int]) -> int:
    return next((count for count, token in enumerate(reversed(row)) if token != PAD), len(row))
