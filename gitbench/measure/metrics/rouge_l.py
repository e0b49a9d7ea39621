"""ROUGE-L of sequences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric
from gitbench.measure.rouge import rouge

if TYPE_CHECKING:
    import torch


class RougeL(Metric):
    """ROUGE-L, F-measure (Lin 2004), of tokens in the place of words."""

    name, heading = "rouge_l", "ROUGE-L"
    modality = "text"
    higher_leaks = True
    low, high = 0.0, 1.0
    tolerance = 0.02
    summary = "ROUGE-L (F-measure, Lin 2004) of the tokens"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        return rouge(found, truth, "rougeL")
