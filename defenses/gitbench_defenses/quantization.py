"""Quantization by stochastic rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update


class Quantization(Defense):
    """QSGD: stochastic rounding to few levels, without bias (Alistarh et al., arXiv 1610.02132).

    Of each tensor of each victim, with norm ``n``, an entry ``x`` becomes ``n * sign(x) * k / s``, where ``s = 2**bits - 1`` and ``k`` is
    ``s |x| / n`` rounded up or down at random, such that the mean is ``x``. So there are ``s`` levels above zero and zero itself: ``bits``
    bits for the size, and one more for the sign. The norm is sent as it is. It promises no privacy: Yue et al. (arXiv 2206.04055) call the
    security of quantized updates false, and the rounding of several rounds of one batch averages out.

    Args:
        bits: of an entry's size, 1 to 16.
        norm: ``l2`` is the tensor's Euclidean norm, as published: most entries of a large tensor become zero. ``max`` is its largest
            absolute value: the levels are spread over what is there.
    """

    name = "quantization"

    def __init__(self, *, bits: int, norm: Literal["l2", "max"] = "l2") -> None:
        if not isinstance(bits, int) or not 1 <= bits <= 16:
            raise ValueError(f"expected bits in 1..16, got {bits!r}")
        if norm not in ("l2", "max"):
            raise ValueError(f"expected norm 'l2' or 'max', got {norm!r}")
        self.bits = bits
        self.norm = norm

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(hides=True)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return update.map(lambda _, tensor: self._quantized(tensor, generator))

    def expected(self, update: Update, *, observed: Update) -> Update:
        return update  # what is sent on average

    def combined(self, updates: Iterable[Update]) -> Update:
        # The mean is without bias. What a defense to the left knows of its noise (its median, say) is lost by rounding.
        return Update.mean(updates)

    def _quantized(self, tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        levels = 2**self.bits - 1
        flat = tensor.flatten(1)
        norms: torch.Tensor = flat.norm(dim=1, keepdim=True) if self.norm == "l2" else flat.abs().amax(1, keepdim=True)
        places = (flat.abs() / norms.clamp_min(torch.finfo(tensor.dtype).tiny)).clamp_max(1) * levels
        drawn = torch.rand(flat.shape, generator=generator, dtype=tensor.dtype, device=generator.device).to(tensor.device)
        below = places.floor()
        chosen = below + (drawn < places - below)
        found: torch.Tensor = norms * flat.sign() * chosen / levels
        return found.reshape(tensor.shape)
