"""The image that a linear map reads off the last layer's input: a closed form, fitted on public images.

Of a batch the inputs are solved where that can be done (:mod:`gitbench.attacker.tools.last_layer`). Where it fails, as under
strong noise, the row of each example's class is read, and the map is one from what public batches show there. Which misfit is a
failure is learned from held-out public batches, which play victims of the same clients and the same defense.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.assignment import assigned
from gitbench.attacker.tools.features import forward_features, input_inverse, last_features
from gitbench.attacker.tools.last_layer import EXACT, can_be_solved, misfit_of, solved_inputs
from gitbench.attacker.tools.regression import LinearFit, LinearMap
from gitbench.clients.update import Update
from gitbench.core.progress import Progress

_PLAYED = 24  # public batches that say how far a solution can be trusted
_ROUNDED = 0.1  # of what counts as solved: where the images' own inputs fit worse, more than rounding is in the way
_HOPELESS = 1e-4  # where the images' own inputs fit worse, no search from others has found them (lenet, mlp; noise, pruning, drift)
_SOLVED = "start.solved"  # the map from a layer's exact inputs, which a batch's average gradient gives where it can be solved


def fit_linear_image(
    observation: Observation,
    batches: torch.Tensor,
    *,
    holdout: float,
    thorough: bool,
    generator: torch.Generator,
    progress: Progress,
    what: str,
) -> dict[str, torch.Tensor]:
    """Learn the map on public updates. Held-out images choose the penalty, and whether to undo the activation.

    Args:
        observation: needs ``public``; the updates go through the defense where it is granted.
        batches: ``(N, B)`` of public images, sorted by class.
        holdout: share of the images that is held out.
        thorough: as in :func:`gitbench.attacker.tools.regression.fit_linear`, and in float64.
        generator: for the defense.
        progress: told of the updates.
        what: who is asking, for ``progress``.

    Returns:
        What :func:`linear_image` needs; its names begin with ``start.``.
    """
    public, parts = observation.public, []
    chunks = batches.split(observation.chunk)
    for done, rows in enumerate(chunks):
        update = observation.public_updates(rows, generator=generator)
        parts.append(_inputs(observation, update, public.labels[rows], thorough=thorough))
        progress(f"{what}: public updates", done + 1, len(chunks))
    alternatives = [torch.cat(inputs).flatten(0, 1) for inputs in zip(*parts, strict=True)]
    images = public.inputs[batches.flatten()]
    state = _fitted(alternatives, images, holdout=holdout, thorough=thorough, prefix="start")
    if can_be_solved(observation):
        exact, _ = forward_features(observation.model, images)
        state |= _fitted(_alternatives(observation, exact, thorough=thorough), images, holdout=holdout, thorough=thorough, prefix=_SOLVED)
        held = batches[-max(1, min(_PLAYED, round(holdout * len(batches)))) :]
        state |= _trusted(observation, held, state, generator=generator, progress=progress)
    return state


def _trusted(
    observation: Observation, rows: torch.Tensor, state: Mapping[str, torch.Tensor], *, generator: torch.Generator, progress: Progress
) -> dict[str, torch.Tensor]:
    """Up to which misfit a solution serves held-out public batches ``(N, B)`` better than reading rows, and which misfit to aim at."""
    public, thorough = observation.public, state["start.weight"].dtype == torch.float64
    labels, truth = public.labels[rows], public.inputs[rows].flatten(2).double()
    played = observation.with_update(observation.public_updates(rows, generator=generator))
    inputs, _ = forward_features(observation.model, public.inputs[rows.flatten()])
    misfit = misfit_of(played, labels, inputs.unflatten(0, labels.shape))
    aim = {f"{_SOLVED}.tolerance": EXACT, f"{_SOLVED}.goal": EXACT}
    if float(misfit.median()) > _HOPELESS:
        aim = dict.fromkeys(aim, 0.0)
    elif float(misfit.median()) >= _ROUNDED * EXACT:
        solution = solved_inputs(played, labels, progress=progress, tolerance=math.inf, goal=2 * float(misfit.median()))
        read = _errors(_read(played, last_features(played, played.update, labels).double(), state, "start", thorough=thorough), truth)
        exact = _errors(_read(played, solution.inputs, state, _SOLVED, thorough=thorough), truth)
        order = solution.misfit.argsort()
        # Of each number of batches that may count as solved, from none to all, what the batches lose in all.
        losses = torch.cat([exact.new_zeros(1), (exact.log() - read.log())[order].cumsum(0)])
        best = int(losses.argmin())
        trusted = 0.0 if best == 0 else float(solution.misfit[order[best - 1]])
        aim = {f"{_SOLVED}.tolerance": trusted, f"{_SOLVED}.goal": 2 * float(misfit.median())}
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in aim.items()}


def _errors(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Mean squared error ``(V,)`` of images ``(V, B, P)``, in the best order."""
    found = found.double().clamp(0, 1)
    return (found - assigned(found, truth)).square().mean((1, 2)).clamp_min(1e-12)


def _fitted(
    alternatives: list[torch.Tensor], images: torch.Tensor, *, holdout: float, thorough: bool, prefix: str
) -> dict[str, torch.Tensor]:
    """The best of the maps from alternative inputs ``(N, F)`` to ``N`` images."""
    pixels = images.flatten(1)
    held = torch.arange(len(pixels), device=pixels.device) >= len(pixels) - max(1, round(holdout * len(pixels)))
    fits = [LinearFit(inputs, pixels, held=held, bounds=(0, 1), thorough=thorough) for inputs in alternatives]
    best = min(range(len(fits)), key=lambda index: fits[index].error)
    return {**fits[best].map.tensors(prefix), f"{prefix}.inverse": torch.tensor(best)}


def linear_image(observation: Observation, labels: torch.Tensor, state: Mapping[str, torch.Tensor], *, progress: Progress) -> torch.Tensor:
    """Images ``(V, B, C, H, W)`` in [0, 1] of an observation's victims.

    Args:
        observation: with its update.
        labels: ``(V, B)``, sorted in each batch.
        state: of :func:`fit_linear_image`.
        progress: told where a batch is solved.
    """
    thorough = state["start.weight"].dtype == torch.float64
    found = last_features(observation, observation.update, labels).double()
    images = _read(observation, found, state, "start", thorough=thorough)
    if f"{_SOLVED}.weight" in state:
        tolerance, goal = (float(state[f"{_SOLVED}.{name}"]) for name in ("tolerance", "goal"))
        if tolerance > 0:
            solution = solved_inputs(observation, labels, progress=progress, tolerance=tolerance, goal=goal)
            exact = _read(observation, solution.inputs, state, _SOLVED, thorough=thorough)
            images = torch.where((solution.misfit <= tolerance)[:, None, None], exact, images)
    return images.float().clamp(0, 1).reshape(*labels.shape, *observation.input_shape)


def _read(
    observation: Observation, inputs: torch.Tensor, state: Mapping[str, torch.Tensor], prefix: str, *, thorough: bool
) -> torch.Tensor:
    """Pixels ``(V, B, P)`` that the stored map reads off the last layer's inputs ``(V, B, F)``."""
    chosen = _alternatives(observation, inputs, thorough=thorough)[int(state[f"{prefix}.inverse"])]
    return LinearMap.stored(state, prefix)(chosen)


def _inputs(observation: Observation, update: Update, labels: torch.Tensor, *, thorough: bool) -> list[torch.Tensor]:
    """What the update tells of the last layer's inputs, ``(V, B, F)`` each."""
    return _alternatives(observation, last_features(observation, update, labels).double(), thorough=thorough)


def _alternatives(observation: Observation, inputs: torch.Tensor, *, thorough: bool) -> list[torch.Tensor]:
    """The last layer's inputs, and those of the activation before it where that has an inverse.

    After a sigmoid or a tanh the second are closer to linear in the pixels.
    """
    inverse = input_inverse(observation)
    found = [inputs] if inverse is None else [inputs, inverse(inputs)]
    return [one if thorough else one.float() for one in found]
