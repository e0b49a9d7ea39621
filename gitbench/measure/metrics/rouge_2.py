"""ROUGE-2 of sequences."""

from __future__ import annotations

from gitbench.measure.rouge import Rouge


class Rouge2(Rouge):
    """ROUGE-2, F-measure (Lin 2004), of tokens in the place of words."""

    name, heading = "rouge_2", "ROUGE-2"
    kind = "rouge2"
    summary = "ROUGE-2 (F-measure, Lin 2004) of the tokens"
