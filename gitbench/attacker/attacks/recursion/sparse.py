"""Batches behind a first linear layer with a ReLU: its gradient has the batch's rank, and each example switches units off.

After SPEAR (Dimitrov et al., arXiv 2403.03945). ``G = D X``, with an example's image in a row of ``X`` and its ``δ`` in a column of
``D``, and the same span is known from ``G = L R``: ``D = L Q`` and ``X = Q⁻¹ R``. What tells a column ``q`` of ``Q`` from all other
directions are the units that its example switches off, ``L_j q = 0``: ``r - 1`` of them determine it, the others confirm it.

SPEAR draws them blindly. The parameters are known here, and say more. A unit that is on for the whole batch has ``w_jᵀ Σδ`` as
its bias's gradient, ``w_j`` its weights in the second layer and ``Σδ`` the second bias's gradient: such units are recognised, and
their rows give ``T = Δ Q⁻¹``, ``Δ`` the second layer's ``δ``. With it a unit that is on tells as much as one that is off:
``(L_j - w_jᵀ T) q = 0``. What too few of them leave open of ``T`` is ``t = N T q`` for an example, a few more unknowns beside
``q``. And the states that are tried are those of mixtures of the victim's images, which are known as the rows of ``R``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain
from gitbench.attacker.layers.passes import activated
from gitbench.attacker.tools.priors import Gaussian

Tensors = Mapping[str, torch.Tensor]

_RANK = 1e-6  # singular values below this share of the largest are float32's rounding
_SAME = 1e-5  # relative error up to which a bias's gradient is that of a unit which is always on
_DETERMINED = 1e-2  # relative singular value above which the always-on units determine a direction of the second layer's ``δ``
_ROUNDING = 3e-7  # what float32 leaves of ``L q``'s zeros, in units of its root mean square, where the images are orthogonal
_ZERO = (1e-4, 1e-2)  # in the same units: bounds of what is taken for zero
_MORE = 1  # equations that a direction must meet beyond those that it was solved from
_APART = 1e-3  # sine of the angle under which two directions are one
_ROUND = 2048  # samples drawn at once,
_ENTRIES = 2**24  # or as many as have so many entries in their equations
_KEPT = 64  # directions of each round that are looked at closer
_POOL = 256  # directions that are kept between rounds
_STEPS = 5  # of reweighted least squares
_DAMPED = 1e-9  # share of the mean eigenvalue
_TINY = 1e-30


@dataclass(frozen=True)
class Factors:
    """``G = left @ right`` and ``left @ whole`` the bias's gradient; ``left (m, r)`` has orthonormal columns."""

    left: torch.Tensor
    right: torch.Tensor
    whole: torch.Tensor


@dataclass(frozen=True)
class Batches:
    """Candidates, sorted by label; what the rank does not show (an example that sends nothing) comes last, as the prior's mean.

    Args:
        inputs: of the first layer, ``(V, B, n)``; the prior's mean where none was found.
        labels: ``(V, B)``.
        found: ``(V,)``.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    found: torch.Tensor


@dataclass(frozen=True)
class _Equations:
    """What each of the units that tell examples apart says of ``(q, t)``: one of two rows times it is zero.

    ``t (d,)`` is the part of the example's second ``δ`` that the units which are always on leave open.

    Args:
        off: ``(u, r + d)``, where the unit is off.
        on: ``(u, r + d)``, where it is on; of unknown value where the second layer's ``δ`` is not seen.
        known: whether ``on`` is known.
        units: ``(u,)``, their indices.
    """

    off: torch.Tensor
    on: torch.Tensor
    known: bool
    units: torch.Tensor

    @property
    def needed(self) -> int:
        """Equations that determine a direction."""
        return self.off.shape[1] - 1

    def met(self, directions: torch.Tensor, zero: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Which units are off and which on for directions ``(N, r + d)``, each ``(N, u)``; in doubt the smaller residual decides."""
        off, on = self.residuals(directions)
        return (off < zero) & (off <= on), (on < zero) & (on < off)

    def residuals(self, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of both rows of every unit, each ``(N, u)``; without end where a row is not known."""
        off, on = (directions @ self.off.T).abs(), (directions @ self.on.T).abs()
        return off, on if self.known else torch.full_like(on, math.inf)


def applies(chain: Chain | None) -> bool:
    """Whether the first layer is linear, with a bias, and a ReLU (leaky or not) behind it."""
    return chain is not None and not chain.layers[0].is_conv and chain.layers[0].bias and _slope(chain) is not None


def sparse_batches(
    chain: Chain,
    weights: Tensors,
    update: Tensors,
    prior: Gaussian,
    *,
    batch_size: int,
    samples: int,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> Batches:
    """Candidate batches.

    Args:
        chain: for which :func:`applies` is true.
        weights: ``{name.weight, name.bias}`` of all layers, in float64.
        update: ``{name: (V, *shape)}``, in float64, at any scale.
        prior: of the first layer's input.
        batch_size: examples of a victim.
        samples: systems that are solved for a victim at most.
        generator: for the units that are drawn.
        tell: told how many victims are done.
    """
    first = chain.layers[0]
    victims, inputs = len(update[f"{first.name}.weight"]), math.prod(first.input_shape)
    device = prior.mean.device
    images = prior.mean.expand(victims, batch_size, inputs).clone()
    labels = torch.zeros(victims, batch_size, dtype=torch.long, device=device)
    found = torch.zeros(victims, dtype=torch.bool, device=device)
    for victim in range(victims):
        tell(victim)
        own = {name: tensor[victim] for name, tensor in update.items()}
        factors = factorise(own[f"{first.name}.weight"], own[f"{first.name}.bias"], most=batch_size)
        if factors is None:
            continue
        mixing = _Recovery(chain, weights, own, factors, prior).mixing(samples, generator)
        if mixing is None:
            continue
        rows, deltas = unmixed(factors, mixing)
        if not bool(rows.isfinite().all()):
            continue
        classes, counts = _labelled(chain, weights, rows, deltas, batch_size)
        slots = torch.arange(len(rows), device=device).repeat_interleave(counts)
        order = classes[slots].argsort(stable=True)
        images[victim, : len(slots)], labels[victim, : len(slots)] = rows[slots][order], classes[slots][order]
        found[victim] = True
    return Batches(images, labels, found)


def factorise(gradient: torch.Tensor, bias: torch.Tensor, *, most: int) -> Factors | None:
    """The span of the examples' ``δ`` and of their inputs; None where the rank says that this is no batch's gradient.

    Args:
        gradient: ``(m, n)``.
        bias: its layer's bias's, ``(m,)``.
        most: rank at most; more is a defense's noise.
    """
    left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
    rank = int((sizes > _RANK * sizes[0]).sum())
    if not 0 < rank <= most or rank >= len(gradient) or not bool(sizes[0] > 0):
        return None
    left = left[:, :rank]
    return Factors(left, sizes[:rank, None] * right[:rank], left.T @ bias)


def unmixed(factors: Factors, mixing: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs ``(r, n)`` and ``δ (r, m)`` of the examples, from ``Q (r, r)``.

    The columns of ``Q`` may have any length: that the bias's gradient is ``D 1`` tells the right one.
    """
    scale, singular = torch.linalg.solve_ex(mixing, factors.whole)
    scaled = mixing * scale
    rows, _ = torch.linalg.solve_ex(scaled, factors.right)
    if int(singular) or not bool((scale != 0).all()):
        rows = torch.full_like(rows, math.nan)
    return rows, (factors.left @ scaled).T


@dataclass(frozen=True)
class _Proposal:
    """Images that the prior might give, among the mixtures ``p R`` of the victim's images with ``p`` on the plane where ``p · whole = 1``.

    Whitened by the prior's second moments, different images are nearly orthogonal. So directions are drawn alike in that space, and
    those of images that are found already are left out.

    Args:
        metric: ``R Σ⁻¹ Rᵀ (r, r)``.
        whole: ``(r,)``.
    """

    metric: torch.Tensor
    whole: torch.Tensor

    @classmethod
    def of(cls, prior: Gaussian, factors: Factors) -> _Proposal:
        rows = torch.cat([factors.right, prior.mean[None]])
        turned = (rows if prior.directions is None else rows @ prior.directions) / prior.spread.sqrt()
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


class _Recovery:
    """The search for one victim's ``Q``."""

    def __init__(self, chain: Chain, weights: Tensors, update: Tensors, factors: Factors, prior: Gaussian) -> None:
        first = chain.layers[0]
        self._weight, self._bias = weights[f"{first.name}.weight"], weights[f"{first.name}.bias"]
        self._factors, self._proposal = factors, _Proposal.of(prior, factors)
        self._rank = factors.left.shape[1]
        self._reached = factors.right @ self._weight.T
        live = factors.left.norm(dim=1) > _RANK
        sizes = factors.right.norm(dim=1)
        self._zero = min(max(_ROUNDING * float(sizes[0] / sizes[-1]), _ZERO[0]), _ZERO[1]) / math.sqrt(max(1, int(live.sum())))
        self._equations = _equations(chain, weights, update, factors, live)
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
        """Directions ``(N, r + d)``, each solved from as many units as it takes, in the state in which a proposed image has them."""
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
        """Those that meet most equations after some steps of :meth:`_settled`, each solved again from all that it meets."""
        directions = self._settled(directions)
        enough = min(self._equations.needed + _MORE, len(self._equations.units))
        kept = self._distinct(directions[self._score(directions) >= enough])[:_KEPT]
        return self._solved(kept, *self._equations.met(kept, self._zero))

    def _settled(self, directions: torch.Tensor) -> torch.Tensor:
        """The sum of the units' residuals, of the smaller of the two each, lowered from ``directions (N, r + d)``.

        Reweighted least squares, with one step of inverse iteration each. Where a unit or two of a sample were in another state, this
        finds the others.
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


def _equations(chain: Chain, weights: Tensors, update: Tensors, factors: Factors, live: torch.Tensor) -> _Equations:
    second, slope = chain.layers[1], _slope(chain) or 0.0
    left, bias = factors.left, update[f"{chain.layers[0].name}.bias"]
    outgoing = weights[f"{second.name}.weight"].T  # (m, m2)
    always, never = torch.zeros_like(live), torch.zeros_like(live)
    if second.bias:
        total = update[f"{second.name}.bias"]
        expected, size = outgoing @ total, outgoing.norm(dim=1) * total.norm()
        always = live & ((bias - expected).abs() <= _SAME * size)
        never = live & ((bias - slope * expected).abs() <= _SAME * slope * size)
    fixed = (always | never).nonzero().flatten()
    span, sizes, _ = torch.linalg.svd(update[f"{second.name}.weight"], full_matrices=False)
    sides = outgoing @ span[:, sizes > _RANK * sizes[0]]
    turned, strengths, rows = torch.linalg.svd(sides[fixed])
    rank = int((strengths > _DETERMINED * strengths.amax()).sum()) if len(strengths) else 0
    values = left[fixed] / torch.where(always[fixed], 1.0, slope)[:, None]
    told = (sides @ rows[:rank].T / strengths[:rank]) @ (turned[:, :rank].T @ values)
    open_sides = sides @ rows[rank:].T
    open_sides = open_sides / open_sides.norm(dim=0).clamp_min(_TINY)
    units = (live & ~always & ~never).nonzero().flatten()
    on = torch.cat([left - told, -open_sides], dim=1)[units]
    off = torch.cat([left - slope * told, -slope * open_sides], dim=1)[units]
    if on.shape[1] - 1 + _MORE <= len(units) or slope:
        return _Equations(off, on, True, units)
    return _Equations(left[units], left[units], False, units)


def _slope(chain: Chain) -> float | None:
    """Of the first activation where it is negative; None for another kind."""
    activation = chain.layers[0].activation
    if isinstance(activation, nn.LeakyReLU):
        return float(activation.negative_slope)
    return 0.0 if isinstance(activation, nn.ReLU) else None


def _labelled(
    chain: Chain, weights: Tensors, rows: torch.Tensor, deltas: torch.Tensor, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each image, ``(r,)``, and how many examples it stands for: those whose ``δ`` the model gives."""
    outputs, nothing = [rows], rows.new_zeros(())
    complete = {f"{layer.name}.bias": nothing.expand(layer.output_shape) for layer in chain.layers} | dict(weights)
    for layer in chain.layers:
        outputs.append(activated(layer, complete, outputs[-1]))
    probabilities = outputs[-1].softmax(1)
    classes = probabilities.shape[1]
    delta = probabilities[:, None] - torch.eye(classes, dtype=rows.dtype, device=rows.device)  # (r, classes, classes)
    for index in range(len(chain.layers) - 2, -1, -1):
        behind = operators.backward(chain.layers[index + 1], weights[f"{chain.layers[index + 1].name}.weight"], delta.flatten(0, 1))
        slopes = operators.derivative(chain.layers[index].activation, outputs[index + 1])
        delta = behind.reshape(len(rows), classes, -1) * slopes[:, None]
    products = torch.einsum("rkm,rm->rk", delta, deltas)
    found = (products / delta.norm(dim=2).clamp_min(_TINY)).argmax(1)
    sizes = products.gather(1, found[:, None])[:, 0] / delta.square().sum(2).gather(1, found[:, None])[:, 0].clamp_min(_TINY)
    counts = torch.ones_like(found)
    for _ in range(batch_size - len(rows)):
        excess = batch_size * sizes - counts
        if float(excess.max()) < 0.5:
            break
        counts[excess.argmax()] += 1
    return found, counts
