"""How often each class is in a batch, from what its examples are expected to add up to."""

from __future__ import annotations

import torch

_FLOOR = 1e-6  # of the largest variance: directions that vary less are trusted no more
_FACTORS = ((0.7, 141), (0.01, 41))  # decades to the farthest that is tried, and how many are; around the best of the pass before
_ROOM = 2**24  # entries of one (victims, classes, classes) tensor


def most_likely_counts(
    means: torch.Tensor, noise: torch.Tensor, observed: torch.Tensor, *, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The counts ``n`` that make an observation most likely: ``observed = n @ means + noise``, Gaussian, classes equally frequent.

    The continuous solution with ``sum(n) = batch_size`` is rounded; then one example at a time changes its class, as long as that
    raises the likelihood, the multinomial coefficient of ``n`` included.

    Args:
        means: what one example of each class adds, ``(V or 1, classes, D)``.
        noise: covariance ``(V or 1, D, D)``.
        observed: ``(V, D)``.
        batch_size: the sum of the counts.

    Returns:
        Counts ``(V, classes)`` of integers, and the squared error in units of the noise, per entry: ``(V,)``.
    """
    whiten = _whitening(noise.double())
    means, observed = means.double() @ whiten, (observed.double()[:, None] @ whiten)[:, 0]
    classes = means.shape[1]
    chunk = max(1, _ROOM // classes**2)
    shared = means.shape[0] == 1
    parts = [
        _search((means if shared else means[rows]).expand(len(rows), -1, -1), observed[rows], batch_size)
        for rows in torch.arange(len(observed), device=observed.device).split(chunk)
    ]
    counts = torch.cat(parts)
    error = (observed - (counts[:, None] @ means)[:, 0]).square().mean(1)
    return counts.long(), error


def most_likely_rescaled_counts(
    means: torch.Tensor, noise: torch.Tensor, observed: torch.Tensor, *, batch_size: int, length: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of an observation that was sent at an unknown scale: ``factor * observed = n @ means + noise``.

    Of many factors the one is kept that makes the observation most likely. A large factor spreads observations out, and counts for it.

    Args:
        means: ``(1, classes, D)``.
        noise: ``(1, D, D)``.
        observed: ``(V, D)``.
        batch_size: the sum of the counts.
        length: that an observation has at its own scale, as a median.
    """
    rows = torch.arange(len(observed), device=observed.device)
    middle = length / observed.norm(dim=1).clamp_min(1e-30)
    counts, error = observed, observed  # of the last pass
    for farthest, tried in _FACTORS:
        factors = middle[:, None] * torch.logspace(-farthest, farthest, tried).to(observed)
        stacked = (factors[..., None] * observed[:, None]).flatten(0, 1)
        counts, error = (part.unflatten(0, factors.shape) for part in most_likely_counts(means, noise, stacked, batch_size=batch_size))
        best = (factors.log() - error / 2).argmax(1)  # per entry
        middle, counts, error = factors[rows, best], counts[rows, best], error[rows, best]
    return counts, error


def _whitening(covariance: torch.Tensor) -> torch.Tensor:
    """``T`` with ``Tᵀ covariance T = 1``, the variances raised to the floor."""
    variance = covariance.diagonal(dim1=1, dim2=2)
    scale = variance.clamp_min(variance.amax(1, keepdim=True) * _FLOOR**2).clamp_min(1e-300).sqrt()
    values, vectors = torch.linalg.eigh(covariance / scale[:, :, None] / scale[:, None])
    whitening: torch.Tensor = vectors * values.clamp_min(_FLOOR).rsqrt()[:, None] / scale[:, :, None]
    return whitening


def _search(means: torch.Tensor, observed: torch.Tensor, batch_size: int) -> torch.Tensor:
    gram = means @ means.transpose(1, 2)
    target = (means @ observed[..., None])[..., 0]
    counts = _rounded(gram, target, batch_size)
    diagonal = gram.diagonal(dim1=1, dim2=2)
    same = torch.eye(gram.shape[1], dtype=torch.bool, device=gram.device)
    change = diagonal[:, :, None] + diagonal[:, None] - 2 * gram
    for _ in range(4 * batch_size):
        slope = 2 * ((counts[:, None] @ gram)[:, 0] - target)
        # Of one example that goes from the class of the row to that of the column.
        price = slope[:, None] - slope[:, :, None] + change
        price = price + 2 * ((counts + 1).log()[:, None] - counts.clamp_min(1).log()[:, :, None])
        price = price.masked_fill((counts <= 0)[:, :, None] | same, torch.inf)
        best, where = price.flatten(1).min(1)
        rows = (best < -1e-9).nonzero().flatten()
        if not len(rows):
            break
        counts[rows, where[rows] // gram.shape[1]] -= 1
        counts[rows, where[rows] % gram.shape[1]] += 1
    return counts


def _rounded(gram: torch.Tensor, target: torch.Tensor, batch_size: int) -> torch.Tensor:
    """The least-squares solution that sums to the batch size, without its negative parts, rounded to that sum."""
    count, classes = target.shape
    system = gram.new_ones(count, classes + 1, classes + 1)
    system[:, :classes, :classes] = gram
    system[:, classes, classes] = 0
    right = torch.cat([target, target.new_full((count, 1), batch_size)], dim=1)
    free = (torch.linalg.pinv(system, hermitian=True) @ right[..., None])[:, :classes, 0].clamp_min(0)
    free = free * batch_size / free.sum(1, keepdim=True).clamp_min(1e-12)
    whole: torch.Tensor = free.floor()
    order = (free - whole).argsort(dim=1, descending=True).argsort(dim=1)
    rest = batch_size - whole.sum(1, keepdim=True)
    found: torch.Tensor = whole + (order < rest)
    return found
