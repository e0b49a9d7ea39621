"""Whole sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import TextMetric, of_truth

if TYPE_CHECKING:
    import torch


class ExactMatch(TextMetric):
    """1 where all tokens of a sequence are right in their places, 0 otherwise."""

    name, heading = "exact_match", "exact"
    summary = "share of the sequences of which every token is right in its place"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return ((found == truth) | ~of_truth(truth)).all(1).double()
