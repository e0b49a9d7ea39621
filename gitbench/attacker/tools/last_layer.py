"""The inputs of the last linear layer, one for each example of a batch, solved from the batch's averaged gradient.

For a batch of ``B`` the layer's gradients are ``G = sum_b d_b a_b'`` and ``g = sum_b d_b``, where ``a_b`` is an example's
input and ``d_b = (softmax(z_b) - onehot(y_b)) / B``. The server knows the layer's weight ``W`` and bias ``c``, so that it knows
``H = [G, g] [W, c]'`` too, which is ``sum_b d_b z_b'``. With ``g`` these are ``C² + C`` equations in the ``B x C`` logits alone.
From the logits follow the ``d_b``, and from these the inputs, by linear least squares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import forward_features
from gitbench.clients.model import last_linear
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator

_LARGEST = 512  # unknowns (examples times classes): each step factorises a matrix of that side
_SEEN = 2048  # public images whose logits are starts
_STARTS = 16  # at once; victims that none of them solves get as many again
_ROUNDS = 4
_STEPS = 300
EXACT = 3e-14
"""Misfit below which a batch counts as solved, chosen on public images that played victims (benchmarks/solved_batches.py)."""
_STALLED = 8  # steps that lower the residual by less than a thousandth
_DONE = 1e-24
_PROBE = 0.1  # length of the step along which curvature is measured
_CURVED = 0.75  # a step whose second-order part is longer than half this share of it is not taken
_DAMPING = 1e-3
_MOST_DAMPING = 1e10


@dataclass(frozen=True)
class SolvedInputs:
    """What was found, with the lowest residual of all starts.

    Args:
        inputs: of the last layer, ``(V, B, F)``, float64, in the order of the labels.
        misfit: ``(V,)`` squared residual of the equations, relative to their right-hand side.
        solved: ``(V,)`` whether that is no more than rounding to float32 leaves. Where the equations are badly conditioned,
            rounding alone moves the inputs away from the client's own.
    """

    inputs: torch.Tensor
    misfit: torch.Tensor
    solved: torch.Tensor


def can_be_solved(observation: Observation) -> bool:
    """Whether batches of this size and model can be, where the defense leaves the last layer's gradient as it is."""
    batch = observation.batch_size
    if batch == 1 or not {"parameters", "public"} <= observation.granted:
        return False
    model = observation.model
    name, linear = last_linear(model)
    classes = linear.out_features
    if model.training or not {f"{name}.weight", f"{name}.bias"} <= set(observation.sent) or not batch < classes <= _LARGEST // batch:
        return False
    return forward_features(model, observation.public.inputs[:1])[0].ndim == 2


def misfit_of(observation: Observation, labels: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """How badly some inputs of the last layer fit an update, ``(V,)``: :attr:`SolvedInputs.misfit` of theirs.

    Args:
        observation: as for :func:`solved_inputs`.
        labels: ``(V, B)``.
        inputs: ``(V, B, F)``.
    """
    _, layer, target = _equations(observation)
    logits = inputs.double() @ layer[:, :-1].T + layer[:, -1]
    return _Point(logits, functional.one_hot(labels, len(layer)).double(), target).value / target.square().sum((1, 2))


def _equations(observation: Observation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The last layer's gradient ``(V, C, F + 1)``, its own values ``(C, F + 1)``, and their product beside the bias's ``(V, C, C + 1)``."""
    name, linear = last_linear(observation.model)
    tensors = observation.update.tensors
    gradient = torch.cat([tensors[f"{name}.weight"], tensors[f"{name}.bias"][..., None]], dim=2).double()
    layer = torch.cat([linear.weight, linear.bias[:, None]], dim=1).detach().double()
    return gradient, layer, torch.cat([gradient @ layer.T, gradient[..., -1:]], dim=2)


def solved_inputs(
    observation: Observation, labels: torch.Tensor, *, progress: Progress, tolerance: float = EXACT, goal: float | None = None
) -> SolvedInputs:
    """Solve every victim's batch by Levenberg-Marquardt with geodesic acceleration (Transtrum and Sethna, arXiv 1201.5885).

    A start is the logits of a random public image of the right class for each example: two of one class must not
    start alike, where the residual has a saddle.

    Args:
        observation: for which :func:`can_be_solved` holds, with its update.
        labels: ``(V, B)``.
        progress: told after every round of starts.
        tolerance: of the misfit, for a batch to count as solved.
        goal: the misfit at which the search for a better one ends; None for the tolerance.
    """
    gradient, layer, target = _equations(observation)
    scale, goal = target.square().sum((1, 2)), tolerance if goal is None else min(goal, tolerance)
    classes = functional.one_hot(labels, len(layer)).double()
    starts = _Starts(observation, layer)
    inputs = gradient.new_zeros(*labels.shape, layer.shape[1] - 1)
    misfit = torch.full_like(scale, math.inf)
    left = torch.arange(len(labels), device=labels.device)
    for done in range(_ROUNDS):
        logits, residual = _best_of(starts(labels[left]), classes[left], target[left])
        found, own = _from_logits(logits, classes[left], gradient[left]), residual / scale[left]
        better = (own < misfit[left]) & found.isfinite().all(2).all(1)
        inputs[left[better]], misfit[left[better]] = found[better], own[better]
        left = left[misfit[left] >= goal]
        progress("last layer", done + 1, _ROUNDS)
        if not len(left):
            break
    return SolvedInputs(inputs, misfit, misfit < tolerance)


class _Starts:
    """Logits of public images, by class."""

    def __init__(self, observation: Observation, layer: torch.Tensor) -> None:
        public = observation.public
        self._generator = make_generator(0, "last layer")
        chosen = torch.randperm(len(public), generator=self._generator)[:_SEEN].to(public.inputs.device)
        features, _ = forward_features(observation.model, public.inputs[chosen])
        self._logits = features @ layer[:, :-1].T + layer[:, -1]
        self._labels = public.labels[chosen]

    def __call__(self, labels: torch.Tensor) -> torch.Tensor:
        """Random logits ``(V, S, B, C)`` for labels ``(V, B)``; those of any class, where no image has the right one."""
        flat = labels.flatten()
        rows = torch.empty(len(flat), _STARTS, dtype=torch.long, device=labels.device)
        for label in flat.unique():
            own = (self._labels == label).nonzero().flatten()
            own = own if len(own) else torch.arange(len(self._labels), device=labels.device)
            wanted = flat == label
            drawn = torch.randint(len(own), (int(wanted.sum()), _STARTS), generator=self._generator)
            rows[wanted] = own[drawn.to(own.device)]
        return self._logits[rows].reshape(*labels.shape, _STARTS, -1).transpose(1, 2)


def _best_of(starts: torch.Tensor, classes: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The solution ``(V, B, C)`` with the lowest squared residual ``(V,)`` of several starts ``(V, S, B, C)``."""
    count = starts.shape[1]
    logits, residual = minimised(starts.flatten(0, 1), classes.repeat_interleave(count, 0), target.repeat_interleave(count, 0))
    best = residual.reshape(-1, count).argmin(1) + torch.arange(len(starts), device=starts.device) * count
    return logits[best], residual[best]


def _from_logits(logits: torch.Tensor, classes: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """The layer's inputs ``(V, B, F)`` from the logits ``(V, B, C)`` and its gradient ``(V, C, F + 1)``."""
    errors = (logits.softmax(2) - classes) / logits.shape[1]
    found: torch.Tensor = torch.linalg.pinv(errors.transpose(1, 2)) @ gradient
    return found[..., :-1]


def minimised(logits: torch.Tensor, classes: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The logits ``(P, B, C)`` at the end of the search, and the squared residuals ``(P,)``.

    Args:
        logits: where each of ``P`` searches starts, ``(P, B, C)``, float64.
        classes: one-hot labels ``(P, B, C)``.
        target: ``(P, C, C + 1)``: the gradients of the weight, times the weights, and of the bias.
    """
    logits = logits.clone()
    value = _Point(logits, classes, target).value
    damping = torch.full_like(value, _DAMPING)
    stalled = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
    for _ in range(_STEPS):
        left = ((value > _DONE) & (stalled < _STALLED) & (damping < _MOST_DAMPING)).nonzero().flatten()
        if not len(left):
            break
        point = _Point(logits[left], classes[left], target[left])
        step, taken = _step(point, damping[left])
        moved = _Point(logits[left] + step, classes[left], target[left]).value
        better = taken & (moved < value[left])
        chosen = left[better]
        stalled[chosen] = torch.where(moved[better] < 0.999 * value[chosen], 0, stalled[chosen] + 1)
        logits[chosen], value[chosen] = (logits[left] + step)[better], moved[better]
        damping[chosen] = (damping[chosen] / 3).clamp_min(1e-15)
        damping[left[~better]] *= 2
    return logits, value


def _step(point: _Point, damping: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A step ``(P, B, C)`` of all searches, and which of them may take it."""
    shape = point.logits.shape
    normal = point.normal()
    normal = normal + torch.diag_embed(damping[:, None] * normal.diagonal(dim1=1, dim2=2).clamp_min(1e-16))
    factor, failed = torch.linalg.cholesky_ex(normal)

    def solved(right: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_solve(-right.reshape(shape[0], -1, 1), factor).reshape(shape)

    velocity = solved(point.pulled_back(point.residual))
    # The second derivative along the step, by a finite difference; a search that follows it stays in a curved valley.
    ahead = _Point(point.logits + _PROBE * velocity, point.classes, point.target).residual
    curvature = 2 / _PROBE * ((ahead - point.residual) / _PROBE - point.pushed_forward(velocity))
    bend = solved(point.pulled_back(curvature))
    taken = (failed == 0) & (2 * bend.flatten(1).norm(dim=1) <= _CURVED * velocity.flatten(1).norm(dim=1))
    return torch.where(taken[:, None, None], velocity + 0.5 * bend, 0), taken


class _Point:
    """The equations at some logits: their residual ``(P, C, C + 1)`` and its Jacobian, which is never formed."""

    def __init__(self, logits: torch.Tensor, classes: torch.Tensor, target: torch.Tensor) -> None:
        self.logits, self.classes, self.target = logits, classes, target
        self._batch = logits.shape[1]
        self._soft = logits.softmax(2)
        self._errors = (self._soft - classes) / self._batch
        self._extended = torch.cat([logits, torch.ones_like(logits[..., :1])], dim=2)
        self.residual = self._errors.transpose(1, 2) @ self._extended - target

    @property
    def value(self) -> torch.Tensor:
        return self.residual.square().sum((1, 2))

    def pulled_back(self, residual: torch.Tensor) -> torch.Tensor:
        """The transposed Jacobian times ``residual (P, C, C + 1)``: ``(P, B, C)``."""
        products = self._extended @ residual.transpose(1, 2)
        soft = self._soft
        return soft * (products - (soft * products).sum(2, keepdim=True)) / self._batch + self._errors @ residual[..., :-1]

    def pushed_forward(self, step: torch.Tensor) -> torch.Tensor:
        """The Jacobian times ``step (P, B, C)``: ``(P, C, C + 1)``."""
        soft = self._soft
        errors = soft * (step - (soft * step).sum(2, keepdim=True)) / self._batch
        found = errors.transpose(1, 2) @ self._extended
        found[..., :-1] += self._errors.transpose(1, 2) @ step
        return found

    def normal(self) -> torch.Tensor:
        """The transposed Jacobian times the Jacobian, ``(P, B C, B C)``, from its parts of each pair of examples."""
        searches, batch, classes = self.logits.shape
        soft, errors, logits = self._soft, self._errors, self.logits
        slopes = (torch.diag_embed(soft) - soft[..., :, None] * soft[..., None, :]) / batch
        moved = torch.einsum("pbij,pcj->pbci", slopes, errors)
        found = torch.einsum("pbij,pcjk->pbick", slopes, slopes) * (self._extended @ self._extended.transpose(1, 2))[:, :, None, :, None]
        found += torch.einsum("pbci,pbk->pbick", moved, logits) + torch.einsum("pci,pcbk->pbick", logits, moved)
        products = errors @ errors.transpose(1, 2)
        found += products[:, :, None, :, None] * torch.eye(classes, dtype=logits.dtype, device=logits.device)[None, None, :, None, :]
        return found.reshape(searches, batch * classes, batch * classes)
