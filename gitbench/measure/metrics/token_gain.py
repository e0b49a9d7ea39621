"""How many more tokens than the blind guess, per sequence: one threshold serves every text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import TextMetric, recovered

if TYPE_CHECKING:
    import torch


class TokenGain(TextMetric):
    """The share of tokens that are recovered in any order, minus that of the blind guess."""

    name = "token_gain"
    low, high = -1.0, 1.0
    summary = "share of the tokens that are recovered in any order, above the blind guess (the most frequent public tokens)"

    def score(self, found: torch.Tensor, truth: torch.Tensor, *, blind: torch.Tensor) -> torch.Tensor:
        return recovered(found, truth) - recovered(blind.expand_as(truth), truth)
