"""The factors of a first linear layer's gradient, and what each of the layer's units says of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.layers.chain import Chain

Tensors = Mapping[str, torch.Tensor]

MORE = 1
"""Equations that a direction must meet beyond those that it was solved from."""

_RANK = 1e-6  # singular values below this share of the largest are float32's rounding
_SAME = 1e-5  # relative error up to which a bias's gradient is that of a unit which is always on
_DETERMINED = 1e-2  # relative singular value above which the always-on units determine a direction of the second layer's ``δ``
_TINY = 1e-30


@dataclass(frozen=True)
class Factors:
    """Of a layer's gradient of rank ``r``.

    Args:
        left: ``L (m, r)``, with orthonormal columns.
        right: ``R (r, n)``; the weight's gradient is ``L R``.
        whole: ``(r,)``; the bias's gradient is ``L @ whole``.
    """

    left: torch.Tensor
    right: torch.Tensor
    whole: torch.Tensor


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
class UnitEquations:
    """Two equations for each unit that is on for some examples and off for others; every example's ``(q, t)`` meets one of them.

    Args:
        off: ``(u, r + d)``: ``off @ (q, t) = 0`` where the example switches the unit off.
        on: ``(u, r + d)``: the same where it switches it on.
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
        """Of both equations of every unit, each ``(N, u)``; infinite where an equation is not known."""
        off, on = (directions @ self.off.T).abs(), (directions @ self.on.T).abs()
        return off, on if self.known else torch.full_like(on, math.inf)


def unit_equations(chain: Chain, weights: Tensors, update: Tensors, factors: Factors, live: torch.Tensor) -> UnitEquations:
    """The equations of one victim's units, of which ``live (m,)`` send more than rounding.

    Units that are in one state for all examples are recognised, and give ``T``.
    """
    second, slope = chain.layers[1], negative_slope(chain) or 0.0
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
    if on.shape[1] - 1 + MORE <= len(units) or slope:
        return UnitEquations(off, on, True, units)
    return UnitEquations(left[units], left[units], False, units)


def negative_slope(chain: Chain) -> float | None:
    """The slope of a first activation that is a ReLU (leaky or not) below zero; None for another kind."""
    activation = chain.layers[0].activation
    if isinstance(activation, nn.LeakyReLU):
        return float(activation.negative_slope)
    return 0.0 if isinstance(activation, nn.ReLU) else None
