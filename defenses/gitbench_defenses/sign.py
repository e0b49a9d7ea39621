"""Signs of the update."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update

_TEMPERATURE = 0.5


class Sign(Defense):
    """signSGD: sends each entry's sign, -1, 0 or 1 (Bernstein et al., arXiv 1802.04434).

    With ``scaled`` each tensor of each victim is sent as ``mean(|g|) * sign(g)``, the compressor of EF-signSGD (Karimireddy et al.,
    arXiv 1901.09847), here without its error feedback. It promises no privacy: LTI learns to read images from signs (Wu et al., arXiv
    2210.10880).

    An adaptive attacker's own gradient passes through ``tanh(g / (T * mean(|g|)))`` of each tensor, times ``mean(|g|)`` where ``scaled``,
    which has a slope where the sign has none. The temperature ``T`` is 0.5: lower is nearer to the sign, higher is smoother.

    Args:
        scaled: keep each tensor's mean absolute value.
    """

    name = "sign"

    def __init__(self, *, scaled: bool = False) -> None:
        if scaled not in (True, False):
            raise ValueError(f"expected scaled True or False, got {scaled!r}")
        self.scaled = scaled

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(hides=True)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        return update.map(lambda _, tensor: tensor.sign() * (_size(tensor) if self.scaled else 1))

    def expected(self, update: Update, *, observed: Update) -> Update:
        return update.map(lambda _, tensor: self._smooth(tensor))

    def combined(self, updates: Iterable[Update]) -> Update:
        # Signs of a noisy gradient average to its size as well; what a defense to the left knows of its noise does not hold for signs.
        return Update.mean(updates)

    def _smooth(self, tensor: torch.Tensor) -> torch.Tensor:
        size = _size(tensor)
        signs = torch.tanh(tensor / (_TEMPERATURE * size).clamp_min(torch.finfo(tensor.dtype).tiny))
        return signs * size if self.scaled else signs


def _size(tensor: torch.Tensor) -> torch.Tensor:
    """Mean absolute value of each victim's tensor, in a shape that it can be multiplied by."""
    return tensor.abs().mean(dim=tuple(range(1, tensor.ndim)), keepdim=True)
