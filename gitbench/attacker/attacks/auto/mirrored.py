"""Averages whose values have random signs: a photograph is too smooth for the signs to be a secret."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch

from gitbench.attacker.attacks.auto.averages import Parts, mixed_labels, parts_of_averages
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, changes_batch, parts_of
from gitbench.core.progress import Progress

# Chosen on held-out public images (benchmarks/images_behind.py).
_STARTS = 32  # for each victim
_COARSE, _FINE, _LAST = (0.3, 0.2, 0.1, 0.05), (0.1, 0.07, 0.05, 0.035, 0.025), (0.1, 0.05, 0.03, 0.02)
"""Errors that are granted to a pixel, one after the other."""
_STEPS, _LAST_STEPS = 30, 20  # at each of them
_RELAXATION = 0.85
_SPREAD, _LEFT = 0.4, 0.1  # variance of an average, and of what its known parts leave, in units of an image's
ERROR = 0.05  # of a pixel of an average whose signs are mostly known
_ALIKE = 0.15
_ROUNDS = 6
_AT_ONCE = 2**24  # pixels of candidates


@runtime_checkable
class Mirrors(Protocol):
    """A defense that mirrors every value of an image, or leaves it, at random, and where: a middle that is no secret."""

    def mirrored_at(self, public: Split | None) -> torch.Tensor:
        """The middle, of a shape that fits ``(C, H, W)``."""
        ...


def middle_of(observation: Observation) -> torch.Tensor | None:
    """Where values were mirrored, if nothing has changed the images after that."""
    changing = [part for part in parts_of(observation.defense) if changes_batch(part)]
    if not changing or not isinstance(changing[-1], Mirrors):
        return None
    return changing[-1].mirrored_at(observation.public)


def mixes(defense: Defense) -> bool:
    """Whether images of others have a part in what is differentiated."""
    return any(type(part).prepare_batch is not Defense.prepare_batch for part in parts_of(defense))


def unmasked(masked: torch.Tensor, middle: torch.Tensor, observation: Observation, prior: Gaussian, *, progress: Progress) -> torch.Tensor:
    """Images behind signs, and without the public images that they were averaged with: ``(V, 1, C, H, W)`` in [0, 1].

    Where the average is smooth, neighbours have the same sign. Signs are found as a lost phase is (relaxed averaged alternating
    reflections, Luke, Inverse Problems 2005): between what the prior makes of an image, and the distances from the middle, which are
    known. Of many starts the most plausible average counts. Public images in it are found as in
    :func:`~gitbench.attacker.attacks.auto.averages.unmixed`, what is left of it tells more signs, and so on.

    Args:
        masked: ``(V, 1, C, H, W)``; beyond [0, 1] too.
        middle: where values were mirrored.
        observation: with the update, and the public images.
        prior: of one image.
        progress: told which victims are done.
    """
    public, labels, whitened = observation.without_update().public, mixed_labels(observation), Whitened(prior)
    at_once = max(1, _AT_ONCE // masked[0].numel() // _STARTS)
    found = []
    for start in range(0, len(masked), at_once):
        signs = _Signs(masked[start : start + at_once], middle.to(masked), whitened)
        averages = signs.retrieved()
        for _ in range(_ROUNDS):
            averages, parts = signs.turned(averages, public.inputs)
            if not any(parts.rows):
                break
            known = parts.weighted(public.inputs - prior.mean.to(masked).reshape(masked.shape[2:]))
            mixed = torch.tensor([bool(rows) for rows in parts.rows], device=masked.device).reshape(-1, 1, 1, 1, 1)
            averages = torch.where(mixed, signs.refined(averages, known), averages)
        found.append(parts.without(averages, public, None if labels is None else labels[start : start + at_once]))
        progress("auto: signs", min(start + at_once, len(masked)), len(masked))
    return torch.cat(found)


class _Signs:
    """Of some victims, whose values ``middle ± distance`` are known but for the sign."""

    def __init__(self, masked: torch.Tensor, middle: torch.Tensor, prior: Whitened) -> None:
        self._middle, self._prior = middle, prior
        self._distance = (masked - middle).abs()

    def retrieved(self) -> torch.Tensor:
        """The most plausible averages, from many starts: the same for every victim."""
        generator = torch.Generator().manual_seed(0)
        noise = 0.3 * torch.randn(_STARTS, *self._distance.shape[1:], generator=generator).to(self._distance)
        distance = self._distance.repeat_interleave(_STARTS, dim=0)
        start = self._smooth(self._middle + noise.repeat(len(self._distance), 1, 1, 1, 1), 1.0, _SPREAD)
        found = self._reflected(self._signed(start, distance), distance, _SPREAD)
        for error in _FINE:
            for _ in range(_STEPS):
                found = self._signed(self._smooth(found, error, _SPREAD), distance)
        energy = self._prior.coordinates(found).square().sum(1).reshape(-1, _STARTS)
        chosen: torch.Tensor = energy.argmin(1) + torch.arange(len(energy), device=energy.device) * _STARTS
        return found[chosen]

    def turned(self, averages: torch.Tensor, public: torch.Tensor) -> tuple[torch.Tensor, Parts]:
        """All signs turned where public images resemble that more; with those that are in it. Where none is, the more plausible."""
        both = torch.cat([averages, 2 * self._middle - averages])
        parts = parts_of_averages(both, public, self._prior, alike=_ALIKE, error=ERROR)
        as_is, turned = parts.likeness.chunk(2)
        plausible = self._prior.coordinates(both).square().sum(1).chunk(2)
        none = torch.tensor(
            [not one and not other for one, other in zip(parts.rows[: len(averages)], parts.rows[len(averages) :], strict=True)]
        )
        turn = torch.where(none.to(turned.device), plausible[1] < plausible[0], turned > as_is)
        rows = torch.arange(len(averages), device=averages.device) + len(averages) * turn
        return both[rows], Parts([parts.rows[row] for row in rows], [parts.weights[row] for row in rows], parts.likeness[rows])

    def refined(self, averages: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """Signs given the sum of the known parts' departures from the mean image."""
        averages = self._reflected(self._smooth(averages, _COARSE[0], _LEFT, known), self._distance, _LEFT, known)
        for error in _LAST:
            for _ in range(_LAST_STEPS):
                averages = self._signed(self._smooth(averages, error, _LEFT, known), self._distance)
        return averages

    def _reflected(self, found: torch.Tensor, distance: torch.Tensor, spread: float, known: torch.Tensor | float = 0.0) -> torch.Tensor:
        for error in _COARSE:
            for _ in range(_STEPS):
                signed = self._signed(found, distance)
                smooth = self._smooth(2 * signed - found, error, spread, known)
                found = _RELAXATION * (found + smooth - signed) + (1 - _RELAXATION) * signed
        return self._signed(found, distance)

    def _signed(self, images: torch.Tensor, distance: torch.Tensor) -> torch.Tensor:
        return self._middle + torch.where(images >= self._middle, distance, -distance)

    def _smooth(self, images: torch.Tensor, error: float, spread: float, known: torch.Tensor | float = 0.0) -> torch.Tensor:
        """The likeliest images, of ``spread`` times a prior image's variance about the mean and ``known``, seen with an error."""
        heard = 1 - self._prior.inverse_curvature(error / spread**0.5)
        smooth: torch.Tensor = self._prior.images(self._prior.coordinates(images - known) * heard, images.shape) + known
        return smooth
