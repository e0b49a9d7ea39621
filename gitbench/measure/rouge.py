"""ROUGE by the library rouge-score, of tokens in the place of words."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from gitbench.measure.token_counts import TextMetric, plain

if TYPE_CHECKING:
    import torch


class _Tokens:
    """What the library takes for a tokenizer: numbers between spaces are the tokens already."""

    def tokenize(self, text: str) -> list[str]:
        return text.split()


class Rouge(TextMetric):
    """Base: the F-measure (Lin 2004), of tokens in the place of words."""

    kind: ClassVar[str]
    """As the library calls it: ``rouge1``, ``rouge2``, ``rougeL``."""

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        import torch
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.kind], tokenizer=_Tokens())
        texts = ([" ".join(map(str, row)) for row in plain(one)] for one in (found, truth))
        shares = [scorer.score(theirs, mine)[self.kind].fmeasure for mine, theirs in zip(*texts, strict=True)]
        return torch.tensor(shares, dtype=torch.float64)
