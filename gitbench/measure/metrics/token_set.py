"""Different tokens, per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import TextMetric, of_truth

if TYPE_CHECKING:
    import torch


class TokenSet(TextMetric):
    """The share of the different tokens of a sequence that are in the reconstruction anywhere."""

    name, heading = "token_set", "set"
    summary = "share of the different tokens that are recovered"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        same = truth[:, :, None] == truth[:, None]
        first = of_truth(truth) & ~same.tril(-1).any(2)
        there = (truth[:, :, None] == found[:, None]).any(2)
        return (first & there).double().sum(1) / first.sum(1).clamp_min(1)
