"""Low precision: each entry is rounded to a shorter format."""

from __future__ import annotations

from typing import Literal

import torch

from gitbench.clients.defense import Defense
from gitbench.clients.update import Update

_FORMATS = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Precision(Defense):
    """Rounds each entry to the nearest number of a 16-bit format, ties to even, as mixed-precision training sends it.

    ``bfloat16`` (Kalamkar et al., arXiv 1905.12322) keeps 8 significant bits of any size, a relative error of at most 2^-9. ``float16``
    (Micikevicius et al., arXiv 1710.03740) keeps 11 of what lies between 6.1e-5 and 65504, fewer below, and nothing below 3e-8; what is
    larger is sent as 65504 with its sign. It promises nothing: the error is in the last digit, and attacks have the others.

    Args:
        dtype: ``bfloat16`` or ``float16``.
    """

    name = "precision"

    def __init__(self, *, dtype: Literal["bfloat16", "float16"] = "bfloat16") -> None:
        if dtype not in _FORMATS:
            raise ValueError(f"expected dtype 'bfloat16' or 'float16', got {dtype!r}")
        self.dtype = dtype

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return update.map(lambda _, tensor: self._rounded(tensor))

    def expected(self, update: Update, *, observed: Update) -> Update:
        # Straight through: the rounded value, with the slope of what was rounded.
        return update.map(lambda _, tensor: self._rounded(tensor.detach()) + (tensor - tensor.detach()))

    def _rounded(self, tensor: torch.Tensor) -> torch.Tensor:
        shorter = _FORMATS[self.dtype]
        largest = torch.finfo(shorter).max
        return tensor.clamp(-largest, largest).to(shorter).to(tensor.dtype)
