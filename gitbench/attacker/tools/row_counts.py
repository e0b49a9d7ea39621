"""How often each token is in a batch, from the rows of the embedding's gradient: those of a sequence are much alike."""

from __future__ import annotations

import itertools

import torch

from gitbench.core.random import make_generator

_STARTS, _ROUNDS = 20, 20
_SPREAD = 0.2  # of the vectors of a kind around their mean, at the start, as a share of that
_FEW = 3  # tokens that a kind has alone, from which that is estimated
_FLOOR = 0.1  # of the mean variance of kinds
_KINDS = 4  # of sequences that are told apart: those of one class are much alike
_MOST = 6  # occurrences of a token
_LENGTHS = 0.2  # of the misfit of one entry, for each token that a sequence is too long or too short


def likely_counts(rows: torch.Tensor, *, batch: int, length: int) -> torch.Tensor:
    """Counts ``(T,)`` of the tokens of a batch, which add up to its size.

    What flows back to a token's vector is mostly that of its sequence as a whole, the slope of the loss by a mean over positions. A
    row is the sum of its occurrences: of a combination of few sequences, or kinds of sequences, each with a mean of its own. Means, and
    which row is a sum of which, are found in turn from several starts (a k-means of sums); the best has likely rows, and sequences of
    the right length where each is a kind.

    Args:
        rows: of the tokens that are there, ``(T, d)``.
        batch: sequences.
        length: of each, in tokens.
    """
    generator, kinds = make_generator(0, "row counts"), min(batch, _KINDS)
    combinations = _combinations(kinds).to(rows)
    found = [_fitted(rows, _drawn(rows, kinds, generator), combinations, batch * length) for _ in range(_STARTS)]
    uneven = [misfit + _LENGTHS * float((often.sum(0) - length).abs().sum()) * (kinds == batch) for misfit, often in found]
    return found[uneven.index(min(uneven))][1].sum(1).long()


def _combinations(kinds: int) -> torch.Tensor:
    """How often a token may be in sequences of each kind ``(N, K)``."""
    rows = []
    for times in range(1, _MOST + 1):
        for chosen in itertools.combinations_with_replacement(range(kinds), times):
            rows.append(torch.bincount(torch.tensor(chosen), minlength=kinds))
    return torch.stack(rows)


def _drawn(rows: torch.Tensor, kinds: int, generator: torch.Generator) -> torch.Tensor:
    """Rows that are far from each other, in place of the means ``(K, d)``."""
    chosen = [int(torch.randint(len(rows), (), generator=generator))]
    for _ in range(kinds - 1):
        apart = torch.cdist(rows, rows[chosen]).amin(1).square().cpu()
        weights = apart if float(apart.max()) > 0 else torch.ones_like(apart)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
    return rows[chosen]


def _fitted(rows: torch.Tensor, means: torch.Tensor, combinations: torch.Tensor, slots: int) -> tuple[float, torch.Tensor]:
    """Misfit, and how often each token is in sequences of each kind ``(T, K)``."""
    totals, kinds = combinations.sum(1).long(), combinations.shape[1]
    variances, before = _SPREAD**2 * means.square().sum(1), torch.empty(0)
    misfit, often = torch.inf, torch.ones(len(rows), kinds)
    for _ in range(_ROUNDS):
        blur = combinations @ variances.clamp_min(_FLOOR * float(variances.mean()) + 1e-30)
        apart = torch.cdist(rows, combinations @ means).square()
        misfits = apart / blur + blur.log()
        chosen = _chosen(misfits, totals, slots)
        often = combinations[chosen]
        misfit = float(misfits.gather(1, chosen[:, None]).sum())
        if torch.equal(chosen, before):
            break
        before = chosen
        weighted = often / blur[chosen, None]
        ridge = 1e-9 * float(weighted.max()) * torch.eye(kinds, dtype=rows.dtype, device=rows.device)
        means = torch.linalg.solve(weighted.T @ often + ridge, weighted.T @ rows)
        left = apart.gather(1, chosen[:, None])[:, 0]
        alone = (often == 1) & (totals[chosen] == 1)[:, None]
        own = (left @ alone.to(left)) / alone.sum(0).clamp_min(1)
        variances = torch.where(alone.sum(0) >= _FEW, own, _SPREAD**2 * means.square().sum(1))
    return misfit, often


def _chosen(misfits: torch.Tensor, totals: torch.Tensor, slots: int) -> torch.Tensor:
    """The likeliest combination of each token ``(T,)``; one after the other is changed where it costs least, until they fill the batch.

    Args:
        misfits: of each token ``(T, N)`` with each combination.
        totals: of each combination, at least one.
        slots: of the batch.
    """
    most = int(totals.max())
    each = [misfits.masked_fill(totals != times, torch.inf) for times in range(1, most + 1)]
    least, which = torch.stack([one.amin(1) for one in each], 1), torch.stack([one.argmin(1) for one in each], 1)
    times = least.argmin(1)
    missing = slots - int((times + 1).sum())
    while missing:
        moved = (times + (1 if missing > 0 else -1)).clamp(0, most - 1)
        cost = (least.gather(1, moved[:, None]) - least.gather(1, times[:, None]))[:, 0].masked_fill(moved == times, torch.inf)
        row = int(cost.argmin())
        if not cost[row].isfinite():
            break
        times[row], missing = moved[row], missing + (-1 if missing > 0 else 1)
    return which.gather(1, times[:, None])[:, 0]
