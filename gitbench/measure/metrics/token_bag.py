"""Tokens in any place, per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import TextMetric, recovered

if TYPE_CHECKING:
    import torch


class TokenBag(TextMetric):
    """The share of tokens that are recovered in any order, each as often as it is there."""

    name, heading = "token_bag", "bag"
    summary = "share of the tokens that are recovered in any order"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return recovered(found, truth)
