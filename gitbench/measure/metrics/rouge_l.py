"""ROUGE-L of sequences."""

from __future__ import annotations

from gitbench.measure.rouge import Rouge


class RougeL(Rouge):
    """ROUGE-L, F-measure (Lin 2004), of tokens in the place of words."""

    name, heading = "rouge_l", "ROUGE-L"
    kind = "rougeL"
    summary = "ROUGE-L (F-measure, Lin 2004) of the tokens"
