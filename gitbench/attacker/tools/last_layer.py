"""The inputs of the last linear layer, one for each example of a batch, solved from the batch's averaged gradient.

What is solved, and how, is in :mod:`gitbench.attacker.tools.batch_equations`. Here is where a search starts, and which of several
solutions is kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.batch_equations import Equations, minimised
from gitbench.attacker.tools.features import forward_features, principal_directions
from gitbench.attacker.tools.rescaling import is_rescaled
from gitbench.clients.model import last_linear
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator

_LARGEST = 1024  # unknowns, the square of a batch's size: each step factorises a matrix of that side
_AT_ONCE = 2**25  # entries of such matrices
_SEEN = 2048  # public images whose logits are starts
_STARTS = 4  # at once; victims that none of them solves get as many again
_ROUNDS = 16
_FEW = 4  # rounds after which a batch that is solved is turned, rather than started anew
_TURNS = 36  # rounds, at most
_LEAST_TURN = 1e-2
EXACT = 3e-12
"""Misfit below which a batch counts as solved, chosen on public images that played victims (benchmarks/solved_batches.py)."""
_ALIKE = 8  # starts that find the best
_SAME = 0.1  # of the log density
_UNSOLVED = 1e30  # takes any misfit to less than any log density
_VARIED = 1e-3  # of the mean deviation: directions in which public images hardly vary say nothing
_TINY = 1e-30


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
    """Whether batches of this size and model can be, where the defense leaves the last layer's gradient as it is, but for its scale."""
    batch = observation.batch_size
    if batch == 1 or batch**2 > _LARGEST or not {"parameters", "public"} <= observation.granted:
        return False
    model = observation.model
    name, linear = last_linear(model)
    if model.training or not {f"{name}.weight", f"{name}.bias"} <= set(observation.sent):
        return False
    if not batch < linear.out_features or batch > linear.in_features:
        return False
    return forward_features(model, observation.public.inputs[:1])[0].ndim == 2


def misfit_of(observation: Observation, labels: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """How badly some inputs of the last layer fit an update, ``(V,)``: :attr:`SolvedInputs.misfit` of theirs.

    Args:
        observation: as for :func:`solved_inputs`.
        labels: ``(V, B)``.
        inputs: ``(V, B, F)``.
    """
    equations = Equations.of(observation, labels, rescaled=is_rescaled(observation))
    return equations.misfit_of(inputs.double())


def solved_inputs(
    observation: Observation, labels: torch.Tensor, *, progress: Progress, tolerance: float = EXACT, goal: float | None = None
) -> SolvedInputs:
    """Solve every victim's batch by Levenberg-Marquardt with geodesic acceleration (Transtrum and Sethna, arXiv 1201.5885).

    A start has the logits of a random public image of the right class for each example: two of one class must not
    start alike, where the residual has a saddle. Where softmax is nearly linear, as in a network that has not been trained, several
    differences between examples of one class can be rotated into each other with next to no residual. Of what solves the equations, the
    inputs that are most like public ones are kept. The search goes on, from such rotations of the best, until the best has been found
    several times.

    Args:
        observation: for which :func:`can_be_solved` holds, with its update.
        labels: ``(V, B)``.
        progress: told after every round of starts.
        tolerance: of the misfit, for a batch to count as solved.
        goal: the misfit that a batch must have for its search to end early; None for the tolerance.
    """
    equations = Equations.of(observation, labels, rescaled=is_rescaled(observation))
    public = _Public(observation, equations.layer)
    best = _Solutions(equations, public, tolerance if goal is None else min(goal, tolerance))
    for done in range(_ROUNDS):
        left = best.unsolved if done >= _FEW else torch.cat([best.unsolved, best.uncertain])
        for rows in best.parts(left):
            best.consider(rows, best.equations.of_victims(rows).mixtures_of(public.starts(labels[rows])))
        progress("last layer", done + 1, _ROUNDS + _TURNS)
    for done in range(_TURNS):  # nothing is left to do in a round whose victims are all certain
        for rows in best.parts(best.uncertain):
            best.consider(rows, public.turned(best.mixtures[rows], equations.classes[rows]))
        progress("last layer", _ROUNDS + done + 1, _ROUNDS + _TURNS)
    return SolvedInputs(best.inputs, best.misfit, best.misfit < tolerance)


class _Solutions:
    """The best solution of each victim so far.

    Args:
        equations: of all victims.
        public: tells which of several solutions is the most plausible.
        goal: the misfit of what counts as a solution.
    """

    def __init__(self, equations: Equations, public: _Public, goal: float) -> None:
        self.equations, self._public, self._goal = equations, public, goal
        self.mixtures = torch.zeros_like(equations.turn)
        self.inputs = self.mixtures @ equations.spanned[..., :-1]
        self.misfit = torch.full_like(equations.scale, math.inf)
        self._merits = torch.full((len(self.misfit), _ALIKE), -math.inf, dtype=self.misfit.dtype, device=self.misfit.device)

    @property
    def unsolved(self) -> torch.Tensor:
        return (self.misfit >= self._goal).nonzero().flatten()

    @property
    def uncertain(self) -> torch.Tensor:
        """Victims that are solved, but whose best solution has not been found often."""
        differ = self._merits[:, -1] < self._merits[:, 0] - _SAME
        return (differ & (self.misfit < self._goal)).nonzero().flatten()

    def parts(self, rows: torch.Tensor) -> Sequence[torch.Tensor]:
        """Some victims in as many parts as memory asks for; none of none."""
        return rows.split(max(1, _AT_ONCE // (_STARTS * self.mixtures.shape[1] ** 4))) if len(rows) else ()

    def consider(self, rows: torch.Tensor, starts: torch.Tensor) -> None:
        """Go on from mixtures ``(N, S, B, B)`` of some victims, and keep what is better than what they have."""
        count = starts.shape[1]
        each = self.equations.of_victims(rows.repeat_interleave(count))
        mixtures, misfits = minimised(starts.flatten(0, 1), each)
        found = each.inputs(mixtures)
        merit = torch.where(misfits < self._goal, self._public.plausibility(found), -_UNSOLVED * misfits)
        merit = torch.where(found.isfinite().all(2).all(1), merit, -math.inf).reshape(-1, count)
        best, kept = merit.max(1)
        better = best > self._merits[rows, 0]
        chosen = (torch.arange(len(rows), device=rows.device) * count + kept)[better]
        self.mixtures[rows[better]], self.inputs[rows[better]] = mixtures[chosen], found[chosen]
        self.misfit[rows[better]] = misfits[chosen]
        self._merits[rows] = torch.cat([self._merits[rows], merit], dim=1).topk(_ALIKE, dim=1).values


class _Public:
    """What public images say of the last layer's inputs and of the logits."""

    def __init__(self, observation: Observation, layer: torch.Tensor) -> None:
        public = observation.public
        self._generator = make_generator(0, "last layer")
        chosen = torch.randperm(len(public), generator=self._generator)[:_SEEN].to(public.inputs.device)
        features, _ = forward_features(observation.model, public.inputs[chosen])
        self._logits = features @ layer[:, :-1].T + layer[:, -1]
        self._labels = public.labels[chosen]
        self._mean = features.mean(0)
        deviations, directions = principal_directions(features - self._mean)
        varied = deviations > _VARIED * deviations.square().mean().sqrt()
        self._whitening = directions[varied].T / deviations[varied]

    def starts(self, labels: torch.Tensor) -> torch.Tensor:
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

    def turned(self, mixtures: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Mixtures ``(V, S, B, B)`` like some ``(V, B, B)``, the differences within a class rotated into each other, a little or far."""
        same = classes @ classes.transpose(1, 2)
        within = (torch.eye(same.shape[1], dtype=same.dtype, device=same.device) - same / same.sum(2, keepdim=True))[:, None]
        shape = (len(mixtures), _STARTS, *same.shape[1:])
        drawn = torch.randn(shape, generator=self._generator, dtype=same.dtype).to(same.device)
        angle = _LEAST_TURN ** torch.rand(*shape[:2], 1, 1, generator=self._generator, dtype=same.dtype).to(same.device)
        found: torch.Tensor = torch.matrix_exp(angle * (within @ (drawn - drawn.transpose(2, 3)) @ within))
        return found @ mixtures[:, None]

    def plausibility(self, inputs: torch.Tensor) -> torch.Tensor:
        """The log density ``(P,)`` of inputs ``(P, B, F)``, less a constant.

        Each example has a contrast of its own, which is not known: a normal distribution would not tell two examples from
        a rotation of both into each other.
        """
        squares: torch.Tensor = ((inputs - self._mean) @ self._whitening).square().mean(2)
        found: torch.Tensor = squares.clamp_min(_TINY).log().sum(1) * (-self._whitening.shape[1] / 2)
        return found
