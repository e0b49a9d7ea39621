"""The images behind those that were differentiated, where a defense changes images first."""

from __future__ import annotations

import functools

import torch

from gitbench.attacker.attack import Attack, Fits, Fitted, State, load_attack
from gitbench.attacker.attacks.auto.averages import mixed_labels, unmixed
from gitbench.attacker.attacks.auto.mirrored import middle_of, mixes, unmasked
from gitbench.attacker.attacks.recursion.estimate import estimate
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AttackOptions
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, changes_batch
from gitbench.clients.update import Batch
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator

# All of these were chosen, where there was a choice, on held-out public images (benchmarks/images_behind.py).
_DRAWS = 64  # of the transformation, for each victim
ERRORS = (1.0, 0.3, 0.1, 0.03)
"""That are granted to a pixel of the transformed image, one after the other."""
_HISTORY = 10
_AT_ONCE = 2**21  # pixels of candidates


class Behind(Attack):
    """Part of ``auto``: the image that was differentiated is reconstructed, and then what lies behind it.

    The update is the plain gradient of the changed image, so that ``recursion`` reconstructs that, told nothing of the defense but the
    label, which may be a mixture. Of images that were averaged with public ones these are taken out
    (:func:`~gitbench.attacker.attacks.auto.averages.unmixed`), after signs that hide the average
    (:func:`~gitbench.attacker.attacks.auto.mirrored.unmasked`); of images that were transformed what was drawn is tried
    (:func:`untransformed`).
    """

    name = "gitbench.attacker.attacks.auto.preparation:Behind"
    requires = frozenset({"architecture", "parameters", "public", "defense"})

    @staticmethod
    def applies(observation: Observation) -> bool:
        """Whether the update is that of an image which the defense made of a single private one, once."""
        single = observation.batch_size == 1 and observation.repeats == 1
        return single and Behind.requires <= observation.granted and changes_batch(observation.defense)

    def __init__(self, *, profile: str, iterations: int) -> None:
        self.options = AttackOptions()
        self._recursion = load_attack("recursion(adapt=False)", profile=profile)
        self._iterations = iterations

    def __repr__(self) -> str:
        return "behind"

    def memory(self, observation: Observation) -> int:
        return self._recursion.memory(observation)

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        seen = self._recursion.seen_of(observation)
        return self._recursion._fitted(seen, generator=generator, progress=progress, fits=fits)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        plain, labels = observation.oblivious(), mixed_labels(observation)
        if labels is not None:
            plain = plain.of_victims(torch.arange(len(labels), device=labels.device), labels=labels)
        options = self._recursion.options
        # Beyond [0, 1] too: what was made of an image need be none.
        found = estimate(plain, state, options=options, generator=generator, progress=progress).believed(state)
        prior, middle = Gaussian.stored(state, "image"), middle_of(observation)
        if middle is not None:
            return unmasked(found, middle, observation, prior, progress=progress)
        if mixes(observation.defense):
            return unmixed(found, observation, prior)
        return untransformed(found, observation, prior, iterations=self._iterations, progress=progress)


def untransformed(
    prepared: torch.Tensor, observation: Observation, prior: Gaussian, *, iterations: int, progress: Progress
) -> torch.Tensor:
    """The likeliest images given what a transformation made of them.

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
    search = _Draws(observation, Whitened(prior), max(1, iterations // len(ERRORS)))
    at_once = max(1, _AT_ONCE // prepared[0].numel() // _DRAWS)
    parts = torch.arange(len(prepared), device=prepared.device).split(at_once)
    found = []
    for done, rows in enumerate(parts):
        found.append(search.best(prepared[rows], seed=done))
        progress("auto: images behind", done + 1, len(parts))
    return torch.cat(found)


class _Draws:
    def __init__(self, observation: Observation, prior: Whitened, iterations: int) -> None:
        self._defense, self._model, self._public = observation.defense, observation.model, observation.public
        self._prior, self._iterations = prior, iterations

    def best(self, prepared: torch.Tensor, *, seed: int) -> torch.Tensor:
        """Of a few victims."""
        aim = prepared.repeat_interleave(_DRAWS, dim=0)
        drawn = _Drawn(self._defense, self._model, self._public, seed)

        points = torch.zeros(len(aim), aim[0].numel(), device=aim.device)
        for error in ERRORS:
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
