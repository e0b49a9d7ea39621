"""ROUGE-1 of sequences."""

from __future__ import annotations

from gitbench.measure.rouge import Rouge


class Rouge1(Rouge):
    """ROUGE-1, F-measure (Lin 2004), of tokens in the place of words."""

    name, heading = "rouge_1", "ROUGE-1"
    kind = "rouge1"
    summary = "ROUGE-1 (F-measure, Lin 2004) of the tokens"
