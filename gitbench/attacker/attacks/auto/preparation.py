"""The images behind those that were differentiated, where a defense transforms images first."""

from __future__ import annotations

import functools
import math

import torch

from gitbench.attacker.layers.operators import least_squares_input
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.data import Split
from gitbench.clients.defense import Composition, Defense, changes_batch
from gitbench.clients.model import last_linear
from gitbench.clients.update import Batch
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator

_DRAWS = 64  # of the transformation, for each victim
_ERRORS = (1.0, 0.3, 0.1, 0.03)  # that are granted to a pixel of the transformed image in turn: chosen on held-out public images
_HISTORY = 10
_AT_ONCE = 512  # images
_PARTS = 3  # that are taken out of an average, at most
_ALIKE = 0.2  # cosine with a public image from which on it is a part: in these coordinates two photographs have less
_CHANCE = 5.0  # deviations of the cosine of two random directions, which small images exceed by chance
_AGREE = 0.1  # of a part's weight by the image and by the label
_LEAST = 0.01  # weight of the private image


def looks_behind(observation: Observation) -> bool:
    """Whether the update is that of an image which the defense made of a single private one, once."""
    if not {"parameters", "public", "defense"} <= observation.granted or observation.batch_size > 1 or observation.repeats > 1:
        return False
    return changes_batch(observation.defense)


def as_prepared(observation: Observation) -> Observation:
    """The same for an attacker who wants the image that was differentiated, with the label that it has, which may be a mixture."""
    plain = observation.oblivious()
    labels = mixed_labels(plain)
    return plain if labels is None else plain.of_victims(torch.arange(len(labels), device=labels.device), labels=labels)


def mixed_labels(observation: Observation) -> torch.Tensor | None:
    """Probabilities ``(V, 1, classes)``: the bias's gradient is softmax minus label, and the last layer's input gives the softmax.

    None where the last layer has no bias, one logit, or a part that is not sent.
    """
    name, linear = last_linear(observation.model)
    if not {f"{name}.bias", f"{name}.weight"} <= set(observation.update.tensors) or linear.out_features == 1:
        return None
    weight, delta = (observation.update.tensors[f"{name}.{part}"].double() for part in ("weight", "bias"))
    logits = least_squares_input(delta, weight) @ linear.weight.detach().double().T + linear.bias.detach().double()
    found = (torch.softmax(logits, dim=1) - delta).nan_to_num(0.0).clamp(1e-9, 1)
    return (found / found.sum(1, keepdim=True)).float()[:, None]


def images_behind(
    prepared: torch.Tensor, observation: Observation, prior: Gaussian, *, iterations: int, progress: Progress
) -> torch.Tensor:
    """The likeliest images given what became of them.

    Where images were mixed with others, see :func:`unmixed`. Else, what the client drew is not known. So the transformation is drawn many
    times for each victim, and for each draw the most plausible image is searched that it turns into the transformed one: the least of
    ``|T(x) - z|² / 2σ² + (x - μ)ᵀ Σ⁻¹ (x - μ) / 2``. The draw with the least is believed. Where a draw is wrong, nothing plausible
    comes near: a bar that a shift left empty, say, is no photograph's.

    Args:
        prepared: the transformed images ``z``, ``(V, 1, C, H, W)``.
        observation: with the defense.
        prior: of one image.
        iterations: of each draw's search.
        progress: told which victims are done.

    Returns:
        ``(V, 1, C, H, W)`` in [0, 1].
    """
    if not _by_drawing(observation.defense):
        return unmixed(prepared, observation, prior)
    search = _Behind(observation, Whitened(prior), max(1, iterations // len(_ERRORS)))
    parts = torch.arange(len(prepared), device=prepared.device).split(max(1, _AT_ONCE // _DRAWS))
    found = []
    for done, rows in enumerate(parts):
        found.append(search.best(prepared[rows], seed=done))
        progress("auto: images behind", done + 1, len(parts))
    return torch.cat(found)


def _by_drawing(defense: Defense) -> bool:
    """Whether images are transformed by themselves, so that what is drawn can be tried."""
    parts = defense.defenses if type(defense) is Composition else (defense,)
    return all(type(part).prepare_batch is Defense.prepare_batch for part in parts)


def unmixed(prepared: torch.Tensor, observation: Observation, prior: Gaussian) -> torch.Tensor:
    """Images that were averaged with public ones, without these.

    Photographs in the coordinates of their prior hardly resemble each other: a public image that resembles the average is a part of it
    (a matched filter). Its weight is that of least squares, and where the label agrees, the label's. Parts are taken out one by one.

    Args:
        prepared: the averages, ``(V, 1, C, H, W)``.
        observation: with the public images.
        prior: of one image.

    Returns:
        ``(V, 1, C, H, W)`` in [0, 1].
    """
    public, labels = observation.without_update().public, mixed_labels(observation.oblivious())  # without those that play victims
    whitened = Whitened(prior)
    library = whitened.coordinates(public.inputs[:, None].float())
    least = max(_ALIKE, _CHANCE / math.sqrt(library.shape[1]))
    lengths = library.norm(dim=1).clamp_min(1e-12)
    mixtures = whitened.coordinates(prepared)
    found = []
    for victim, mixture in enumerate(mixtures):
        parts: list[int] = []
        weights = mixture.new_zeros(0)
        for _ in range(_PARTS):
            left = mixture - weights @ library[parts]
            likeness = (library @ left) / lengths / left.norm().clamp_min(1e-12)
            best = int(likeness.argmax())
            if float(likeness[best]) < least or best in parts:
                break
            parts.append(best)
            weights = torch.linalg.lstsq(library[parts].T, mixture[:, None]).solution[:, 0]
        if labels is not None and len(parts) == 1:
            told = labels[victim, 0, public.labels[parts[0]]]
            weights = torch.where((told - weights[0]).abs() < _AGREE, told, weights)
        own = (1 - weights.sum()).clamp_min(_LEAST)
        found.append((prepared[victim] - torch.einsum("k,kchw->chw", weights, public.inputs[parts].to(prepared))) / own)
    return torch.stack(found).nan_to_num(0.5).clamp(0, 1)


class _Behind:
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
