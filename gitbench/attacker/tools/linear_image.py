"""The image that a linear map reads off the last layer's input: a closed form, fitted on public images."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import input_inverse, last_features
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.clients.update import Update
from gitbench.core.progress import Progress


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
    pixels = public.inputs[batches.flatten()].flatten(1)
    held = torch.arange(len(pixels), device=pixels.device) >= len(pixels) - max(1, round(holdout * len(pixels)))
    alternatives = [torch.cat(inputs).flatten(0, 1) for inputs in zip(*parts, strict=True)]
    maps = [fit_linear(inputs, pixels, held=held, bounds=(0, 1), thorough=thorough) for inputs in alternatives]
    best = min(range(len(maps)), key=lambda index: maps[index].error)
    return {**maps[best].tensors("start"), "start.inverse": torch.tensor(best)}


def linear_image(observation: Observation, labels: torch.Tensor, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Images ``(V, B, C, H, W)`` in [0, 1] of an observation's victims.

    Args:
        observation: with its update.
        labels: ``(V, B)``, sorted in each batch.
        state: of :func:`fit_linear_image`.
    """
    read = LinearMap.stored(state, "start")
    thorough = read.weight.dtype == torch.float64
    inputs = _inputs(observation, observation.update, labels, thorough=thorough)[int(state["start.inverse"])]
    return read(inputs).float().clamp(0, 1).reshape(*labels.shape, *observation.input_shape)


def _inputs(observation: Observation, update: Update, labels: torch.Tensor, *, thorough: bool) -> list[torch.Tensor]:
    """The last layer's inputs, and those of the activation before it where that has an inverse: ``(V, B, F)`` each.

    After a sigmoid or a tanh the second are closer to linear in the pixels.
    """
    inverse = input_inverse(observation)
    found = last_features(observation, update, labels).double()
    alternatives = [found] if inverse is None else [found, inverse(found)]
    return [one if thorough else one.float() for one in alternatives]
