"""Edits between sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import TextMetric, plain

if TYPE_CHECKING:
    import torch


class EditDistance(TextMetric):
    """Tokens to insert, leave out or replace (Levenshtein), as a share of the longer sequence."""

    name, heading = "edit_distance", "edits"
    higher_leaks = False
    summary = "tokens to insert, leave out or replace, as a share of the longer sequence"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        import torch
        from nltk.metrics.distance import edit_distance

        pairs = zip(plain(found), plain(truth), strict=True)
        return torch.tensor([edit_distance(mine, theirs) / max(1, len(mine), len(theirs)) for mine, theirs in pairs], dtype=torch.float64)
