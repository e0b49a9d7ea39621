"""Equations in the inputs of a batch's last linear layer, and the search that solves them.

For a batch of ``B`` the layer's gradient is ``[G, g] = D' [A, 1]``, where the rows of ``A`` are the examples' inputs and those of
``D`` are ``d_b = (softmax(W a_b + c) - onehot(y_b)) / B``. It has rank ``B``, so that its rows span the examples' inputs: ``[A, 1] = N R``
for known ``R (B, F + 1)``, and ``N (B, B)`` is all that is left to find. The server knows ``W`` and ``c``, so that ``N`` gives the
logits, these give ``D``, and ``D' N R = [G, g]`` are ``C B`` equations.

Each row of the gradient is of one class, and is rounded at its own size: an equation counts in units of its row.

Where the whole gradient was sent at an unknown scale (clipped, say), ``f D' N R = [G, g]`` with one more unknown. For given ``N``
the best ``f`` is known, so that it is eliminated (variable projection, in the form of Kaufman 1975).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch.nn import functional

from gitbench.attacker.observation import Observation
from gitbench.clients.model import last_linear

_STEPS = 300
_STALLED = 8  # steps that lower the residual by less than a thousandth
_DONE = 1e-18
_PROBE = 0.1  # length of the step along which curvature is measured
_CURVED = 0.75  # a step whose second-order part is longer than half this share of it is not taken
_DAMPING = 1e-3
_MOST_DAMPING = 1e10
_TINY = 1e-30
_SHARED = ("layer", "rescaled")  # by all victims


@dataclass(frozen=True)
class Equations:
    """``w D' N turn = target`` in the mixture ``N (V, B, B)`` of some directions that are the examples' inputs.

    The first direction is the one whose last entry, the bias's constant input, is one. It is zero in all others, and the first
    column of ``N`` is one.

    Args:
        gradient: of the last layer, ``(V, C, F + 1)``.
        layer: its own values ``(C, F + 1)``.
        classes: one-hot labels ``(V, B, C)``.
        weights: of the gradient's rows, ``(V, C)``.
        spanned: an orthonormal basis of the rows, ``(V, B, F + 1)``.
        turn: the directions in that basis, ``(V, B, B)``.
        logits: of the directions, ``(V, B, C)``.
        target: the weighed gradient in the basis, ``(V, C, B)``.
        rescaled: whether the gradient's scale is unknown.
    """

    gradient: torch.Tensor
    layer: torch.Tensor
    classes: torch.Tensor
    weights: torch.Tensor
    spanned: torch.Tensor
    turn: torch.Tensor
    logits: torch.Tensor
    target: torch.Tensor
    rescaled: bool = False

    @classmethod
    def of(cls, observation: Observation, labels: torch.Tensor, *, rescaled: bool = False) -> Equations:
        """Those of an update, for labels ``(V, B)``; ``rescaled`` where it was sent at an unknown scale."""
        name, linear = last_linear(observation.model)
        tensors = observation.update.tensors
        gradient = torch.cat([tensors[f"{name}.weight"], tensors[f"{name}.bias"][..., None]], dim=2).double()
        layer = torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach().double()
        size = gradient.square().mean(2).sqrt()
        weights = torch.where(size > _TINY, 1 / size.clamp_min(_TINY), 0)  # a row that was not sent says nothing
        batch = labels.shape[1]
        left, singular, right = torch.linalg.svd(gradient * weights[..., None], full_matrices=False)
        left, singular, spanned = left[..., :batch], singular[:, :batch], right[:, :batch]
        turn = _first_direction(singular * spanned[..., -1]) * singular[:, None]
        classes = functional.one_hot(labels, len(layer)).double()
        logits, target = turn @ spanned @ layer.T, left * singular[:, None]
        return cls(gradient, layer, classes, weights, spanned, turn, logits, target, rescaled)

    @property
    def scale(self) -> torch.Tensor:
        """Of the misfit, ``(V,)``."""
        return self.target.square().sum((1, 2))

    def of_victims(self, rows: torch.Tensor) -> Equations:
        """Of some of them, which may be named more than once."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return Equations(**{name: part if name in _SHARED else part[rows] for name, part in parts.items()})

    def mixtures_of(self, logits: torch.Tensor) -> torch.Tensor:
        """Those ``(V, S, B, B)`` whose logits are the nearest to some ``(V, S, B, C)``."""
        first, others = self.logits[:, None, :1], self.logits[:, 1:]
        found: torch.Tensor = torch.linalg.pinv(others)[:, None]
        return functional.pad((logits - first) @ found, (1, 0), value=1.0)

    def misfit_of(self, inputs: torch.Tensor) -> torch.Tensor:
        """The squared residual, relative to the right-hand side, of inputs ``(V, B, F)`` of the layer: ``(V,)``."""
        extended = functional.pad(inputs, (0, 1), value=1.0)
        errors = ((extended @ self.layer.T).softmax(2) - self.classes) / inputs.shape[1]
        sent = (errors * self.weights[:, None]).transpose(1, 2) @ (extended @ self.spanned.transpose(1, 2))
        residual = _factor(sent, self)[:, None, None] * sent - self.target
        return residual.square().sum((1, 2)) / self.scale

    def inputs(self, mixtures: torch.Tensor) -> torch.Tensor:
        """The layer's inputs ``(V, B, F)``."""
        point = Point(mixtures, self)
        found: torch.Tensor = torch.linalg.pinv(point.weighed.transpose(1, 2)) @ (self.gradient * self.weights[..., None])
        return found[..., :-1] / point.factor[:, None, None].clamp_min(_TINY)


def _first_direction(constant: torch.Tensor) -> torch.Tensor:
    """Matrices ``(V, B, B)`` that take vectors ``(V, B)`` to ``(1, 0, 0, ...)``: reflections but for their first row's length."""
    length = constant.norm(dim=1, keepdim=True).clamp_min(_TINY)
    first = functional.one_hot(torch.zeros(len(constant), dtype=torch.long, device=constant.device), constant.shape[1]).to(constant)
    # The sign that does not cancel; it is put back with the length.
    sign = torch.where(constant[:, :1] > 0, -1.0, 1.0)
    normal = constant / length - sign * first
    normal = normal / normal.norm(dim=1, keepdim=True)
    eye = torch.eye(constant.shape[1], dtype=constant.dtype, device=constant.device)
    found: torch.Tensor = eye - 2 * normal[:, :, None] * normal[:, None]
    return torch.cat([found[:, :1] * (sign / length)[..., None], found[:, 1:]], dim=1)


def minimised(mixtures: torch.Tensor, equations: Equations) -> tuple[torch.Tensor, torch.Tensor]:
    """The mixtures ``(P, B, B)`` at the end of the search, and their misfits ``(P,)``.

    Args:
        mixtures: where each of ``P`` searches starts, ``(P, B, B)``; their first columns are one.
        equations: of each.
    """
    mixtures = mixtures.clone()
    value, scale = Point(mixtures, equations).value, equations.scale
    damping = torch.full_like(value, _DAMPING)
    stalled = torch.zeros(len(mixtures), dtype=torch.long, device=mixtures.device)
    for _ in range(_STEPS):
        left = ((value > _DONE * scale) & (stalled < _STALLED) & (damping < _MOST_DAMPING)).nonzero().flatten()
        if not len(left):
            break
        part = equations.of_victims(left)
        step, taken = _step(Point(mixtures[left], part), damping[left])
        moved = Point(mixtures[left] + step, part).value
        better = taken & (moved < value[left])
        chosen = left[better]
        stalled[chosen] = torch.where(moved[better] < 0.999 * value[chosen], 0, stalled[chosen] + 1)
        mixtures[chosen], value[chosen] = (mixtures[left] + step)[better], moved[better]
        damping[chosen] = (damping[chosen] / 3).clamp_min(1e-15)
        damping[left[~better]] *= 2
    return mixtures, value / scale


def _step(point: Point, damping: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A step ``(P, B, B)`` of all searches, and which of them may take it."""
    normal = point.normal()
    normal = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2).clamp_min(_TINY))
    factor, failed = torch.linalg.cholesky_ex(normal)

    def solved(right: torch.Tensor) -> torch.Tensor:
        found = torch.cholesky_solve(-right.flatten(1)[..., None], factor)
        return functional.pad(found.reshape(right.shape), (1, 0))

    velocity = solved(point.pulled_back(point.residual))
    # The second derivative along the step, by a finite difference; a search that follows it stays in a curved valley.
    ahead = Point(point.mixtures + _PROBE * velocity, point.equations).residual
    curvature = 2 / _PROBE * ((ahead - point.residual) / _PROBE - point.pushed_forward(velocity))
    bend = solved(point.pulled_back(curvature))
    taken = (failed == 0) & (2 * bend.flatten(1).norm(dim=1) <= _CURVED * velocity.flatten(1).norm(dim=1))
    return torch.where(taken[:, None, None], velocity + 0.5 * bend, 0), taken


class Point:
    """The equations at some mixtures ``(P, B, B)``: their residual ``(P, C, B)`` and its Jacobian, which is never formed."""

    def __init__(self, mixtures: torch.Tensor, equations: Equations) -> None:
        self.mixtures, self.equations = mixtures, equations
        self._batch = mixtures.shape[1]
        self._soft = (mixtures @ equations.logits).softmax(2)
        self.weighed = (self._soft - equations.classes) / self._batch * equations.weights[:, None]
        self._turned = mixtures @ equations.turn
        sent = self.weighed.transpose(1, 2) @ self._turned
        self.factor = _factor(sent, equations)
        """At which it was sent, ``(P,)``."""
        self.residual = self.factor[:, None, None] * sent - equations.target
        self._along = sent / sent.flatten(1).norm(dim=1).clamp_min(_TINY)[:, None, None] if equations.rescaled else None

    @property
    def value(self) -> torch.Tensor:
        """The squared residuals ``(P,)``."""
        return self.residual.square().sum((1, 2))

    def pulled_back(self, residual: torch.Tensor) -> torch.Tensor:
        """The transposed Jacobian, by all columns but the first, times ``residual (P, C, B)``: ``(P, B, B - 1)``."""
        return self._raw_pulled_back(self._across(residual))

    def pushed_forward(self, step: torch.Tensor) -> torch.Tensor:
        """The Jacobian times ``step (P, B, B)``: ``(P, C, B)``."""
        errors = self._sloped(step @ self.equations.logits) * self.equations.weights[:, None]
        return self._across(errors.transpose(1, 2) @ self._turned + self.weighed.transpose(1, 2) @ (step @ self.equations.turn))

    def _raw_pulled_back(self, residual: torch.Tensor) -> torch.Tensor:
        logits = self._sloped(self._turned @ residual.transpose(1, 2) * self.equations.weights[:, None])
        found = logits @ self.equations.logits.transpose(1, 2) + self.weighed @ residual @ self.equations.turn.transpose(1, 2)
        return found[..., 1:]

    def _across(self, entries: torch.Tensor) -> torch.Tensor:
        """Entries ``(P, C, B)`` at the factor, without what another factor would make of them."""
        if self._along is None:
            return entries
        found: torch.Tensor = self.factor[:, None, None] * (entries - self._along * (self._along * entries).sum((1, 2), keepdim=True))
        return found

    def normal(self) -> torch.Tensor:
        """The transposed Jacobian times the Jacobian, ``(P, B (B - 1), B (B - 1))``, from its parts of each pair of examples."""
        searches, batch = self.mixtures.shape[:2]
        turn, turned, weighed = self.equations.turn[:, 1:], self._turned, self.weighed
        soft, logits = self._soft[:, :, None], self.equations.logits[:, None, 1:]
        slopes = soft * (logits - (soft * logits).sum(3, keepdim=True)) / batch * self.equations.weights[:, None, None]
        flat = slopes.flatten(1, 2)
        found: torch.Tensor = (flat @ flat.transpose(1, 2)).unflatten(1, (batch, batch - 1)).unflatten(3, (batch, batch - 1))
        found *= (turned @ turned.transpose(1, 2))[:, :, None, :, None]
        moved = (flat @ weighed.transpose(1, 2)).unflatten(1, (batch, batch - 1))  # (P, b, j, c)
        across = turned @ turn.transpose(1, 2)  # (P, b, k)
        found += torch.einsum("pbjc,pbk->pbjck", moved, across) + torch.einsum("pckb,pcj->pbjck", moved, across)
        found += torch.einsum("pbc,pjk->pbjck", weighed @ weighed.transpose(1, 2), turn @ turn.transpose(1, 2))
        normal = found.reshape(searches, batch * (batch - 1), batch * (batch - 1))
        if self._along is None:
            return normal
        along = self._raw_pulled_back(self._along).flatten(1)
        projected: torch.Tensor = self.factor.square()[:, None, None] * (normal - along[:, :, None] * along[:, None])
        return projected

    def _sloped(self, products: torch.Tensor) -> torch.Tensor:
        """The errors' derivative by the logits, which is symmetric, times ``(P, B, C)``."""
        soft = self._soft
        found: torch.Tensor = soft * (products - (soft * products).sum(2, keepdim=True)) / self._batch
        return found


def _factor(sent: torch.Tensor, equations: Equations) -> torch.Tensor:
    """What brings ``sent (P, C, B)`` nearest to what was seen, ``(P,)``; one where the scale is known."""
    if not equations.rescaled:
        return sent.new_ones(len(sent))
    found: torch.Tensor = (sent * equations.target).sum((1, 2)) / sent.square().sum((1, 2)).clamp_min(_TINY)
    return found.clamp_min(0)
