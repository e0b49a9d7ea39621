"""The search for ``Q``, whose columns tell a batch's examples apart: directions that meet an equation of most units."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gitbench.attacker.attacks.recursion.sparse_units import MORE, Factors, Tensors, unit_equations, unmixed
from gitbench.attacker.layers.chain import Chain
from gitbench.attacker.tools.priors import Gaussian

_LIVE = 1e-6  # of a unit's row: below it, the unit sends nothing but rounding
_ROUNDING = 3e-7  # what float32 leaves of ``L q``'s zeros, in units of its root mean square, where the images are orthogonal
_ZERO = (1e-4, 1e-2)  # in the same units: bounds of what is taken for zero
_APART = 1e-3  # sine of the angle under which two directions are one
_ROUND = 2048  # samples drawn at once,
_ENTRIES = 2**24  # or as many as have so many entries in their equations
_KEPT = 64  # directions of each round that are looked at closer
_POOL = 256  # directions that are kept between rounds
_STEPS = 5  # of reweighted least squares
_DAMPED = 1e-9  # share of the mean eigenvalue
_TINY = 1e-30


@dataclass(frozen=True)
class Proposal:
    """Draws mixtures ``p R`` of the victim's images, with ``p · whole = 1``, that are likely under the prior.

    Whitened by the prior's second moments, different images are nearly orthogonal. So all directions are equally likely in
    that space, but for those of images that are found already.

    Args:
        metric: ``R Σ⁻¹ Rᵀ (r, r)``.
        whole: ``(r,)``.
    """

    metric: torch.Tensor
    whole: torch.Tensor

    @classmethod
    def of(cls, prior: Gaussian, factors: Factors) -> Proposal:
        rows = torch.cat([factors.right, prior.mean[None]])
        turned = (rows if prior.directions is None else prior.directions.coordinates(rows)) / prior.spread.sqrt()
        images, centre = turned[:-1], turned[-1]
        shift = images @ centre
        return cls(images @ images.T - torch.outer(shift, shift) / (1 + centre @ centre), factors.whole)

    def mixtures(self, count: int, taken: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Rows ``p (count, r)``, with ``p q = 0`` for the columns ``q`` in ``taken (t, r)``, ``t < r``."""
        basis = torch.linalg.qr(taken.T, mode="complete")[0][:, len(taken) :]
        metric = basis.T @ self.metric @ basis
        _, root = torch.linalg.eigh(metric)
        size = (root * (metric @ root)).sum(0).clamp_min(_TINY).sqrt()
        drawn = torch.randn(count, len(size), generator=generator, dtype=size.dtype).to(size.device)
        mixtures = drawn / size @ (basis @ root).T
        total = mixtures @ self.whole
        scaled: torch.Tensor = mixtures / torch.where(total.abs() > _TINY, total, _TINY)[:, None]
        return scaled


class Recovery:
    """The search for one victim's ``Q``."""

    def __init__(self, chain: Chain, weights: Tensors, update: Tensors, factors: Factors, prior: Gaussian) -> None:
        first = chain.layers[0]
        self._weight, self._bias = weights[f"{first.name}.weight"], weights[f"{first.name}.bias"]
        self._factors, self._proposal = factors, Proposal.of(prior, factors)
        self._rank = factors.left.shape[1]
        self._reached = factors.right @ self._weight.T
        live = factors.left.norm(dim=1) > _LIVE
        sizes = factors.right.norm(dim=1)
        self._zero = min(max(_ROUNDING * float(sizes[0] / sizes[-1]), _ZERO[0]), _ZERO[1]) / math.sqrt(max(1, int(live.sum())))
        self._equations = unit_equations(chain, weights, update, factors, live)
        self._round = max(1, min(_ROUND, _ENTRIES // max(1, self._equations.off.numel())))

    def mixing(self, samples: int, generator: torch.Generator) -> torch.Tensor | None:
        """``Q (r, r)``; None where nothing was found that spans all examples."""
        if self._rank == 1:
            return self._factors.left.new_ones(1, 1)
        if len(self._equations.units) < self._equations.needed:
            return None
        pool = self._factors.left.new_zeros(0, self._equations.needed + 1)
        best, agreement = None, -1.0
        for _ in range(-(-samples // self._round)):
            fresh = self._refined(self._drawn(pool, generator))
            pool = self._distinct(torch.cat([pool, fresh]))
            found = self._spanning(pool)
            if found is None:
                continue
            agrees = self._agreement(found)
            if agrees > agreement:
                best, agreement = found, agrees
            if agreement == 1:
                break
        return None if best is None else best[: self._rank]

    def _drawn(self, pool: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Directions ``(N, r + d)``, each solved from as few units as determine it, in the states that a drawn mixture gives them."""
        equations, needed = self._equations, self._equations.needed
        sure = pool[self._score(pool) == len(equations.units)][: self._rank - 1, : self._rank]
        images = self._proposal.mixtures(self._round, sure, generator)
        on = images @ self._reached[:, equations.units] + self._bias[equations.units] > 0
        keys = torch.rand(on.shape, generator=generator, dtype=equations.off.dtype).to(on.device)
        if not equations.known:
            keys, on = keys + on, torch.zeros_like(on)
        chosen = keys.topk(needed, largest=False).indices
        states = on.gather(1, chosen)
        rows = torch.where(states[..., None], equations.on[chosen], equations.off[chosen])
        rows = rows / rows.norm(dim=2, keepdim=True).clamp_min(_TINY)
        probe = torch.randn(self._round, 1, needed + 1, generator=generator, dtype=rows.dtype).to(rows.device)
        aim = rows.new_zeros(self._round, needed + 1)
        aim[:, -1] = 1
        solved, singular = torch.linalg.solve_ex(torch.cat([rows, probe], dim=1), aim)
        return self._scaled(solved[(singular == 0) & solved.isfinite().all(1)])

    def _scaled(self, directions: torch.Tensor) -> torch.Tensor:
        """Of length one in ``q``, and so in ``L q``."""
        scaled: torch.Tensor = directions / directions[:, : self._rank].norm(dim=1, keepdim=True).clamp_min(_TINY)
        return scaled

    def _refined(self, directions: torch.Tensor) -> torch.Tensor:
        """The directions that meet most equations after :meth:`_settled`, each solved again from all equations that it meets."""
        directions = self._settled(directions)
        enough = min(self._equations.needed + MORE, len(self._equations.units))
        kept = self._distinct(directions[self._score(directions) >= enough])[:_KEPT]
        return self._solved(kept, *self._equations.met(kept, self._zero))

    def _settled(self, directions: torch.Tensor) -> torch.Tensor:
        """Directions ``(N, r + d)`` with a smaller sum of residuals, where each unit counts with the smaller of its two.

        By reweighted least squares, with one step of inverse iteration each. It repairs directions that were solved with a unit
        or two in the wrong state.
        """
        if not self._equations.known:
            return directions
        off, on = (rows / rows.norm(dim=1, keepdim=True).clamp_min(_TINY) for rows in (self._equations.off, self._equations.on))
        eye = torch.eye(off.shape[1], dtype=off.dtype, device=off.device)
        for step in range(_STEPS):
            rests = (directions @ off.T).abs(), (directions @ on.T).abs()
            least = torch.minimum(*rests)
            floor = 2.0**-step * least.median(dim=1, keepdim=True).values + _TINY
            rows = torch.where((rests[1] < rests[0])[..., None], on, off) / (least.square() + floor.square()).pow(0.25)[..., None]
            matrix = rows.mT @ rows
            size = matrix.diagonal(dim1=1, dim2=2).mean(1)
            solved, _ = torch.linalg.solve_ex(matrix + _DAMPED * size[:, None, None] * eye, directions)
            directions = solved / solved.norm(dim=1, keepdim=True).clamp_min(_TINY)
        return self._scaled(directions[directions.isfinite().all(1)])

    def _solved(self, directions: torch.Tensor, off: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
        if not len(directions):
            return directions
        rows = self._equations.off * off[..., None] + self._equations.on * on[..., None]
        solved: torch.Tensor = torch.linalg.svd(rows, full_matrices=True)[2][:, -1]
        return self._scaled(solved)

    def _score(self, directions: torch.Tensor) -> torch.Tensor:
        off, on = self._equations.met(directions, self._zero)
        return (off | on).sum(1)

    def _distinct(self, directions: torch.Tensor) -> torch.Tensor:
        """Best first, and each once."""
        directions = directions[self._score(directions).argsort(descending=True, stable=True)]
        vectors = directions[:, : self._rank]
        close = (vectors @ vectors.T).abs() > math.sqrt(1 - _APART**2)
        return directions[~close.tril(-1).any(1)][:_POOL]

    def _spanning(self, pool: torch.Tensor) -> torch.Tensor | None:
        """The best ``r`` that are independent in ``q``, as columns."""
        basis = pool.new_zeros(0, self._rank)
        chosen = []
        for direction in pool:
            vector = direction[: self._rank]
            rest = vector - (vector @ basis.T) @ basis
            rest = rest - (rest @ basis.T) @ basis
            if float(rest.norm()) > _APART:
                basis = torch.cat([basis, rest[None] / rest.norm()])
                chosen.append(direction)
            if len(chosen) == self._rank:
                return torch.stack(chosen, dim=1)
        return None

    def _agreement(self, mixing: torch.Tensor) -> float:
        """Share of the units' states in which the images, sent through the layer, agree with the directions behind them."""
        rows, _ = unmixed(self._factors, mixing[: self._rank])
        if not bool(rows.isfinite().all()):
            return 0.0
        equations = self._equations
        on = (rows @ self._weight.T + self._bias > 0)[:, equations.units]
        off_rest, on_rest = equations.residuals(mixing.T)
        agrees = torch.where(on, on_rest < self._zero if equations.known else off_rest >= self._zero, off_rest < self._zero)
        return float(agrees.double().mean())
