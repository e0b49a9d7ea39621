"""The images behind those that were differentiated, where a defense transforms images first."""

from __future__ import annotations

import functools

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.data import Split
from gitbench.clients.defense import Composition, Defense
from gitbench.clients.update import Batch
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator

_DRAWS = 64  # of the transformation, for each victim
_ERRORS = (1.0, 0.3, 0.1, 0.03)  # that are granted to a pixel of the transformed image in turn: chosen on held-out public images
_HISTORY = 10
_AT_ONCE = 512  # images


def looks_behind(observation: Observation) -> bool:
    """Whether single images were transformed in a way that can be tried out: by what the defense draws, and nothing but the image."""
    if not {"parameters", "public", "defense"} <= observation.granted or observation.batch_size > 1 or observation.repeats > 1:
        return False
    defense = observation.defense
    parts = defense.defenses if type(defense) is Composition else (defense,)
    alone = all(type(part).prepare_batch is Defense.prepare_batch for part in parts)
    return alone and any(type(part).prepare is not Defense.prepare for part in parts)


def images_behind(
    prepared: torch.Tensor, observation: Observation, prior: Gaussian, *, iterations: int, progress: Progress
) -> torch.Tensor:
    """The likeliest images given what became of them.

    What the client drew is not known. So the transformation is drawn many times for each victim, and for each draw the most plausible
    image is searched that it turns into the transformed one: the least of ``|T(x) - z|² / 2σ² + (x - μ)ᵀ Σ⁻¹ (x - μ) / 2``. The draw
    with the least is believed. Where a draw is wrong, nothing plausible comes near: a bar that a shift left empty, say, is no photograph's.

    Args:
        prepared: the transformed images ``z``, ``(V, 1, C, H, W)``.
        observation: with the defense.
        prior: of one image.
        iterations: of each draw's search.
        progress: told which victims are done.

    Returns:
        ``(V, 1, C, H, W)`` in [0, 1].
    """
    search = _Search(observation, Whitened(prior), max(1, iterations // len(_ERRORS)))
    parts = torch.arange(len(prepared), device=prepared.device).split(max(1, _AT_ONCE // _DRAWS))
    found = []
    for done, rows in enumerate(parts):
        found.append(search.best(prepared[rows], seed=done))
        progress("auto: images behind", done + 1, len(parts))
    return torch.cat(found)


class _Search:
    def __init__(self, observation: Observation, prior: Whitened, iterations: int) -> None:
        self._defense, self._model, self._public = observation.defense, observation.model, observation.public
        self._prior, self._iterations = prior, iterations

    def best(self, prepared: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Of a few victims."""
        aim = prepared.repeat_interleave(_DRAWS, dim=0)
        drawn = _Drawn(self._defense, self._model, self._public, seed)

        points = torch.zeros(len(aim), aim[0].numel(), device=aim.device)
        for error in _ERRORS:
            inverse = self._prior.inverse_curvature(error)
            objective = functools.partial(self._objective, drawn, aim, error)
            points = descend(points, objective, functools.partial(torch.mul, inverse), self._iterations, history=_HISTORY)
        values = objective(points)[0].reshape(len(prepared), _DRAWS).nan_to_num(torch.inf, torch.inf)
        chosen = values.argmin(1) + torch.arange(len(prepared), device=aim.device) * _DRAWS
        return self._prior.images(points[chosen], prepared.shape).clamp(0, 1)

    def _objective(self, drawn: _Drawn, aim: torch.Tensor, error: float, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Values ``(N,)`` and slopes of points ``(N, n)`` in the prior's coordinates."""
        images = self._prior.images(points, aim.shape).detach().requires_grad_()
        with torch.enable_grad():
            values = (drawn(images) - aim).flatten(1).square().sum(1) / (2 * error**2)
            # What is drawn may leave no slope: a pixel's grey level that was rounded, say.
            slope = torch.autograd.grad(values.sum(), images)[0] if values.requires_grad else torch.zeros_like(images)
        gradient = self._prior.slope(slope) + points
        return values.detach() + points.square().sum(1) / 2, gradient.nan_to_num(0.0, 0.0, 0.0)


class _Drawn:
    """The transformation with what it drew once: the same for the same place in a stack."""

    def __init__(self, defense: Defense, model: torch.nn.Module, public: Split, seed: int) -> None:
        self._defense, self._model, self._public, self._seed = defense, model, public, seed

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        labels = torch.zeros(images.shape[:2], dtype=torch.long, device=images.device)
        generator = make_generator(self._seed, "images behind")
        made, _ = self._defense.prepare_batch(Batch(self._model, images, labels), public=self._public, generator=generator)
        return made
