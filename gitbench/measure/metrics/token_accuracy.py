"""Tokens in their places, per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric
from gitbench.measure.token_counts import of_truth

if TYPE_CHECKING:
    import torch


class TokenAccuracy(Metric):
    """The share of tokens that are right in their places."""

    name, heading = "token_accuracy", "in place"
    modality = "text"
    higher_leaks = True
    low, high = 0.0, 1.0
    tolerance = 0.02
    summary = "share of the tokens that are right in their places"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        there = of_truth(truth)
        return ((found == truth) & there).double().sum(1) / there.sum(1).clamp_min(1)
