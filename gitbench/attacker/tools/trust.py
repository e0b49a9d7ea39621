"""How far to believe several candidates: in the shares that serve public images best, which play victims and whose truth is known."""

from __future__ import annotations

from collections.abc import Callable

import torch

_STEPS = 300  # of the search for shares
_RATE = 0.1


def chosen_shares(candidates: torch.Tensor, truth: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """The row of ``choices`` whose mixture of the candidates has the highest mean PSNR.

    Args:
        candidates: ``(K, R, ...)``, of the victims that are played.
        truth: theirs, ``(R, ...)``.
        choices: shares ``(N, K)``, each row of sum one.
    """
    score = _score_of(candidates, truth)
    return choices[min(range(len(choices)), key=lambda index: float(score(choices[index].to(truth.device))))]


def fitted_shares(candidates: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Shares ``(K,)``, positive and of sum one, with the highest mean PSNR: no worse than the best candidate alone.

    Args:
        candidates: ``(K, R, ...)``, of the victims that are played.
        truth: theirs, ``(R, ...)``.
    """
    score = _score_of(candidates, truth)
    best = chosen_shares(candidates, truth, torch.eye(len(candidates), device=truth.device)).double()
    with torch.enable_grad():
        logits = (0.9 * best + 0.1 / len(best)).log().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=_RATE)
        for _ in range(_STEPS):
            optimizer.zero_grad()
            score(logits.softmax(0)).backward()
            optimizer.step()
        mixed = logits.detach().softmax(0)
    return (mixed if float(score(mixed)) < float(score(best)) else best).float()


def _score_of(candidates: torch.Tensor, truth: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """From shares to the mean logarithm of a victim's squared error: no single victim can spoil it."""
    errors = (candidates - truth).flatten(2).double()
    products = torch.einsum("krp,lrp->rkl", errors, errors) / errors.shape[2]

    def score(shares: torch.Tensor) -> torch.Tensor:
        return torch.einsum("k,rkl,l->r", shares.double(), products, shares.double()).clamp_min(1e-12).log().mean()

    return score
