"""ROUGE by the library rouge-score, of tokens in the place of words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.measure.token_counts import plain

if TYPE_CHECKING:
    import torch


class _Tokens:
    """What the library takes for a tokenizer: numbers between spaces are the tokens already."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


def rouge(found: torch.Tensor, truth: torch.Tensor, kind: str) -> torch.Tensor:
    """The F-measure of sequences ``(N, L)``: ``(N,)``.

    Args:
        found: reconstructions.
        truth: the true sequences.
        kind: as the library calls it: ``rouge1``, ``rouge2``, ``rougeL``.
    """
    import torch
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer([kind], tokenizer=_Tokens())
    texts = ([" ".join(map(str, row)) for row in plain(one)] for one in (found, truth))
    return torch.tensor([scorer.score(theirs, mine)[kind].fmeasure for mine, theirs in zip(*texts, strict=True)], dtype=torch.float64)
