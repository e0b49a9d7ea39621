"""Tokens in their places, per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import TextMetric, of_truth

if TYPE_CHECKING:
    import torch


class TokenAccuracy(TextMetric):
    """The share of tokens that are right in their places."""

    name, heading = "token_accuracy", "in place"
    summary = "share of the tokens that are right in their places"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        there = of_truth(truth)
        return ((found == truth) & there).double().sum(1) / there.sum(1).clamp_min(1)
