"""Tokens in any place, per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric
from gitbench.measure.token_counts import recovered

if TYPE_CHECKING:
    import torch


class TokenBag(Metric):
    """The share of tokens that are recovered in any order, each as often as it is there."""

    name, heading = "token_bag", "bag"
    modality = "text"
    higher_leaks = True
    low, high = 0.0, 1.0
    tolerance = 0.02
    summary = "share of the tokens that are recovered in any order"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return recovered(found, truth)
