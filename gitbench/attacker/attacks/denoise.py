"""Denoise: a denoiser of public images as the prior of another attack's reconstruction (plug and play)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Refiner, State
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import PublicOptions
from gitbench.attacker.playing import Play, Played
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.assignment import assigned
from gitbench.attacker.tools.denoiser import Denoiser, denoised, train_denoiser, trained
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.rehearsal import Rehearsal, rehearse, rescaled
from gitbench.attacker.tools.trust import fitted_shares
from gitbench.clients.client import expected_update
from gitbench.core.errors import NotGrantedError
from gitbench.core.progress import Progress, TimeUp

_DEVIATIONS = (0.01, 0.5)  # of the noise that the denoiser is trained with
_BEGIN = 3.0  # the first level, in units of the error that the image before has; not compared with others
_EXACT = 1e-3  # error of a pixel: a quarter of a grey level in 255
_HISTORY = 40  # this and the growth were compared on held-out public images of CIFAR-10, as were the levels and what is granted
_GROWTH = 3.0  # of a step that was cut
_PROBES = 4  # directions in the gradients' space that show the curvature
_TINY = 1e-30
_FEW = 8  # public batches that are played at least, and twice as many as there are victims at most


class Denoise(Refiner):
    """Steps down a ladder of noise levels: at each the image is denoised, and then brought back to what the observed update says.

    1. A convolutional denoiser is trained on the public images alone, with noise of all levels.
    2. At a level ``σ`` the image ``x`` is denoised, ``z = D(x, σ)``, and replaced by the least of
       ``Σ_l |G_l(x) - Ĝ_l|² / 2s_l² + |x - z|² / 2σ²`` (half-quadratic splitting). ``G`` is sent through the defense's deterministic part;
       ``s²`` is the variance of what the defense adds, as rehearsing it shows, and of what an image that is wrong by ``σ`` may leave over.
    3. Public images that nothing was fitted on play victims of the attack before it. Its error on them says at which level to begin, and
       their truth in which shares its image, those of all levels and the mean public image are believed. Where that does not surely help
       them, its image stands.

    Without parameters there is nothing to match: the image is denoised at each level, and mixed likewise. Without an attack before it,
    it starts from the mean public image.
    """

    name = "denoise"
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"parameters", "defense"})
    fit_uses = frozenset({"public"})
    profiles = {
        "quick": {"width": 16, "epochs": 4, "limit": 2048, "iterations": 20, "played": 16},
        "paper": {"width": 64, "epochs": 60, "limit": 50_000, "iterations": 200, "played": 64},
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(PublicOptions):
        """Of :class:`Denoise`.

        Args:
            limit: at most so many public images train the denoiser.
            width: channels of the denoiser's first scale.
            epochs: of its training.
            batch_size: of its training.
            denoiser_lr: of its training.
            levels: standard deviations of the noise, falling, within 0.01 and 0.5.
            iterations: gradient steps at each level.
            granted: relative error of the update that an image may leave, in units of the level.
            played: at most so many public batches play victims; 0 for none: the last level is believed.
            sure: standard errors by which the mixture has to serve the played victims better than the image before, or that image stands.
        """

        limit: int = 6000
        width: int = 32
        epochs: int = 15
        batch_size: int = 32
        denoiser_lr: float = 3e-3
        levels: Sequence[float] = (0.2, 0.14, 0.1, 0.07, 0.05, 0.035, 0.025, 0.0125)
        iterations: int = 60
        granted: float = 1.0
        played: int = 32
        sure: float = 2.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_least(1, "width", "epochs", "batch_size", "iterations")
            self.check_least(0, "played", "sure")
            self.check_positive("denoiser_lr", "granted")
            least, greatest = _DEVIATIONS
            levels = list(self.levels) if isinstance(self.levels, list | tuple) else []
            sound = all(isinstance(level, int | float) and least <= level <= greatest for level in levels)
            if not levels or not sound or levels != sorted(levels, reverse=True):
                raise ValueError(
                    f"expected levels to fall from {greatest} at most to {least} at least, such as (0.2, 0.05), got {self.levels!r}"
                )

    options: Options

    def memory(self, observation: Observation) -> int:
        """Steps and gradients of the search, and a few updates of each victim."""
        pixels = observation.batch_size * math.prod(observation.input_shape)
        return observation.victims * (8 * (_HISTORY + 16) * pixels + 40 * observation.entries)

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        options, images = self.options, observation.public.inputs
        chosen = torch.randperm(len(images), generator=generator)[: options.limit].to(images.device)
        return train_denoiser(
            images[chosen], width=options.width, epochs=options.epochs, batch_size=options.batch_size, lr=options.denoiser_lr,
            holdout=options.holdout, deviations=_DEVIATIONS, generator=generator, progress=progress, checkpoint=checkpoint,
        )  # fmt: skip

    def refine_learned(
        self, observation: Observation, start: torch.Tensor | None, state: State, *, play: Play, generator: torch.Generator,
        progress: Progress,
    ) -> torch.Tensor | Candidates:  # fmt: skip
        if "parameters" in observation.granted:
            rehearsal = rehearse(observation, generator=generator)
        elif start is not None:
            rehearsal = None
        else:
            raise NotGrantedError(
                f"The attack {self!r} needs parameters, which the threat model does not grant, or an attack before it that does without: "
                f"ridge+{self!r}."
            )
        ladder = _Ladder(self.options, trained(state, device=observation.device), rehearsal, progress)
        try:
            return self._believed(ladder, observation, start, play, generator)
        except TimeUp:
            if start is None:
                raise
            return start

    def _believed(
        self, ladder: _Ladder, observation: Observation, start: torch.Tensor | None, play: Play, generator: torch.Generator
    ) -> torch.Tensor:
        """The mixture of the images of all levels that serves played victims best."""
        parts = [play(rows, generator=generator) for rows in self._rows(observation, generator)]
        if not parts:  # nothing says how much to believe
            return ladder.images(observation, start)[-1] if ladder.matches else _first_image(observation, start)
        truth = torch.cat([_aligned(part) for part in parts])
        first = ladder.first(torch.cat([_first_image(part.observation, part.start) for part in parts]), truth)
        if first is None and start is not None:
            return start
        found = torch.cat([ladder.images(part.observation, part.start, first or 0) for part in parts], dim=1)
        if start is None:  # the order within a batch is known now
            truth = assigned(found[-1].flatten(2), truth.flatten(2)).reshape(truth.shape)
        shares = fitted_shares(found, truth).to(found)
        if start is not None and not _helped(_mixed(shares, found), found[0], truth, self.options.sure):
            return start
        return _mixed(shares, ladder.images(observation, start, first or 0)).clamp(0, 1)

    def _rows(self, observation: Observation, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Public batches ``(R, B)`` to play, no more at once than there are victims: memory is reckoned for these."""
        kept, batch = observation.kept, observation.batch_size
        count = min(self.options.played, max(_FEW, 2 * observation.victims), len(kept) // batch)
        if not count:
            return ()
        chosen = kept[torch.randperm(len(kept), generator=generator)[: count * batch]].reshape(count, batch)
        labels = observation.public.labels.cpu()[chosen]
        rows = chosen.gather(1, labels.argsort(dim=1, stable=True))  # sorted, as inferred labels are
        return tuple(rows[first : first + observation.victims] for first in range(0, count, observation.victims))


class _Ladder:
    """Images at each level, of whatever victims.

    Args:
        options: of the attack.
        network: the denoiser.
        rehearsal: what the defense does; None where nothing can be matched.
        progress: told of each level.
    """

    def __init__(self, options: Denoise.Options, network: Denoiser, rehearsal: Rehearsal | None, progress: Progress) -> None:
        self._options, self._network, self._rehearsal, self._progress = options, network, rehearsal, progress

    @property
    def matches(self) -> bool:
        """Whether the images of the levels are brought back to the update."""
        return self._rehearsal is not None

    def first(self, found: torch.Tensor, truth: torch.Tensor) -> int | None:
        """At which level to begin with images ``(R, B, C, H, W)``; None where they are exact already."""
        error = float((found - truth).square().flatten(1).mean(1).sqrt().median())
        if error < _EXACT:
            return None
        levels = self._options.levels
        return next((index for index, level in enumerate(levels) if level <= _BEGIN * error), len(levels) - 1) if self.matches else 0

    def images(self, observation: Observation, start: torch.Tensor | None, first: int = 0) -> torch.Tensor:
        """The start, the mean public image, what each level from ``first`` on leaves, the last denoised again: ``(K, V, B, C, H, W)``."""
        begun, levels = _first_image(observation, start), self._options.levels
        known = [begun, _first_image(observation, None)]
        if self._rehearsal is None:
            return torch.stack([*known, *(denoised(self._network, begun, level) for level in levels)])
        match = _Match(observation, self._rehearsal)
        for index, level in enumerate(levels[first:], start=first):
            aim = denoised(self._network, begun, level)
            begun = match.nearest(aim, begun, level, self._options)
            known.append(begun)
            self._progress("denoise", index + 1, len(levels))
        return torch.stack([*known, denoised(self._network, begun, levels[-1])])


class _Match:
    """What the observed update says of images.

    Args:
        observation: needs ``parameters``.
        rehearsal: what the defense does.
    """

    def __init__(self, observation: Observation, rehearsal: Rehearsal) -> None:
        self._model, self._client, self._rehearsal = observation.model, observation.client, rehearsal
        self._expectation = observation.expectation if rehearsal.sloped else None
        self._labels = infer_labels(observation)
        past = observation.modality.bypassed(self._model)
        self._observed = observation.update
        self._names = [name for name in self._observed.tensors if name not in past]

    def nearest(self, aim: torch.Tensor, start: torch.Tensor, level: float, options: Denoise.Options) -> torch.Tensor:
        """Images in [0, 1] near ``aim``, by ``level``, whose update is near the observed one; searched from ``start``."""
        deviation = self._deviation(options.granted * level)

        def images_of(points: torch.Tensor) -> torch.Tensor:
            return aim + level * points.reshape(aim.shape)

        def objective(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            images = images_of(points).detach().requires_grad_()
            with torch.enable_grad():
                values = self._departure(images, deviation).square().sum(1) / 2
                (slope,) = torch.autograd.grad(values.sum(), images)
            found, gradient = values.detach() + points.square().sum(1) / 2, level * slope.flatten(1) + points
            return torch.where(found.isfinite(), found, math.inf), torch.where(gradient.isfinite(), gradient, 0)

        curvature = 1 + level**2 * self._curvature(start, deviation)
        first = ((start - aim) / level).flatten(1)
        found = descend(first, objective, lambda rows: rows / curvature, options.iterations, history=_HISTORY, growth=_GROWTH)
        return images_of(found).clamp(0, 1)

    def _deviation(self, relative: float) -> dict[str, torch.Tensor]:
        """Of an entry of each tensor, ``(V, 1)``: the defense's noise, and what is granted to the image."""
        found = {}
        for name in self._names:
            size = self._observed.tensors[name].flatten(1).square().mean(1, keepdim=True)
            found[name] = (self._rehearsal.deviation[name] ** 2 + relative**2 * size + _TINY).sqrt()
        return found

    def _departure(self, images: torch.Tensor, deviation: dict[str, torch.Tensor]) -> torch.Tensor:
        """Difference of each entry of the update, in deviations: ``(V, D)``."""
        observed = self._observed
        mine = expected_update(self._model, images, self._labels, expectation=self._expectation, observed=observed, client=self._client)
        mine = rescaled(mine, observed, self._rehearsal.scale)
        return torch.cat([(mine.tensors[name] - observed.tensors[name]).flatten(1) / size for name, size in deviation.items()], dim=1)

    def _curvature(self, images: torch.Tensor, deviation: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of the squared departure, by pixels, averaged over these and a few directions: ``(V, 1)``."""
        generator = torch.Generator().manual_seed(0)
        total = images.new_zeros(len(images), 1)
        for _ in range(_PROBES):
            inputs = images.detach().requires_grad_()
            with torch.enable_grad():
                flat = self._departure(inputs, deviation)
                # The same direction for all victims: what one is given does not depend on the others.
                (slope,) = torch.autograd.grad((flat @ torch.randn(flat.shape[1], generator=generator).to(flat)).sum(), inputs)
            total += slope.flatten(1).square().mean(1, keepdim=True) / _PROBES
        return total.nan_to_num(0.0, 0.0, 0.0)


def _first_image(observation: Observation, start: torch.Tensor | None) -> torch.Tensor:
    """The image before, in [0, 1]; the mean public image where there is none."""
    if start is not None:
        return start.clamp(0, 1)
    return observation.public.inputs.mean(0).expand(observation.victims, observation.batch_size, -1, -1, -1)


def _mixed(shares: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    return torch.einsum("k,k...->...", shares, candidates)


def _helped(mixed: torch.Tensor, before: torch.Tensor, truth: torch.Tensor, sure: float) -> bool:
    """Whether played victims ``(R, B, C, H, W)`` are seen better after than before, on average and beyond what their choice explains."""
    errors = [(found - truth).double().square().flatten(1).mean(1).clamp_min(_TINY).log() for found in (mixed, before)]
    gain = errors[1] - errors[0]
    return len(gain) > 1 and float(gain.mean()) > sure * float(gain.std()) / math.sqrt(len(gain))


def _aligned(part: Played) -> torch.Tensor:
    """The truth of played batches in the order of what was found of them."""
    if part.start is None:
        return part.truth
    return assigned(part.start.flatten(2), part.truth.flatten(2)).reshape(part.truth.shape)
