"""GIFD: a generator searched stage by stage (Fang et al., ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attack import State
from gitbench.attacker.observation import Observation
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.generated import GeneratedOptions, GeneratedSearch, Matching, made, stages_of
from gitbench.attacker.tools.generated_attack import GeneratedAttack
from gitbench.attacker.tools.generator import through
from gitbench.attacker.tools.matching import Distance
from gitbench.attacker.tools.optimisation import Best
from gitbench.attacker.tools.simplex import onto_l1_ball
from gitbench.core.progress import Progress, TimeUp


class GIFD(GeneratedAttack):
    """A generator of public images is searched by its code, then by the features that each of its stages passes on.

    1. The generator of ``gias`` is trained on the public images alone, or taken where ``gias`` has trained it.
    2. Its code is searched by matching gradients; the restart with the lowest matching loss is kept, victim by victim.
    3. The features behind the first stage are searched, from those of the best code, then those behind the second, from the best ones
       before, and so on. After each step they are projected onto an l1 ball around where they started.
    4. The image with the lowest matching loss of all stages and restarts is returned, also when time is up.

    Where we differ from the paper: the generator is small and trained here; restarts are of the code alone, whose best goes on; codes are
    not kept on a sphere; and radii are relative to the l1 norm of the features that a search starts from, since absolute ones belong to one
    generator. Defaults were chosen on held-out public images (docs/attacks.md).
    """

    name = "gifd"
    profiles = {
        "quick": {
            "latent_iterations": 40, "restarts": 1, "iterations": 80, "lr": 1.0, "radii": (2.0, 3.0, 4.0),
            "channels": 16, "epochs": 10, "limit": 2048,
        },
        "paper": {
            "latent_iterations": 1000, "restarts": 4, "iterations": 12_000, "distance": "cosine", "tv": 1e-4,
            "channels": 64, "epochs": 200, "generator_lr": 2e-4, "adversarial": 0.01, "limit": 50_000,
        },
    }  # fmt: skip

    @dataclass(frozen=True, kw_only=True)
    class Options(GeneratedOptions):
        """Of :class:`GIFD`.

        Args:
            lr: of the search for features, all stages together, in units of the features' mean absolute value.
            radii: of the l1 balls, stage by stage, in units of the l1 norm of the features that the search starts from; the last one counts
                for all that follow. ``()`` searches without balls.
            staged: False searches the code alone, for as many iterations.
        """

        schedule: str = "ramp"
        tv: float = 1e-3
        lr: float = 0.3
        distance: Distance = "weighted"
        radii: Sequence[float] = (0.3, 0.6, 0.9)
        staged: bool = True

        def __post_init__(self) -> None:
            super().__post_init__()
            if not all(isinstance(radius, int | float) and radius > 0 for radius in self.radii):
                raise ValueError(f"expected radii to be numbers > 0, or () for no balls, got {self.radii!r}")

    options: Options

    def memory(self, observation: Observation) -> int:
        """The generator with a few copies of each image's features, and a few gradients of each victim."""
        images = observation.victims * observation.batch_size
        own = self.decoder.entries(observation)
        return 4 * (2 * own + 8 * images * sum(self.decoder.widths(observation)) + 6 * observation.entries * observation.victims)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> Candidates:
        options = self.options
        more = 0 if options.staged else options.iterations // options.restarts
        first = self.search_codes(observation, state, generator=generator, progress=progress, more=more)
        codes = first.codes
        images, code = codes.best.found
        best, falling = Best(len(images), images.device), codes.falling.still
        best.offer(codes.best.losses, images)
        if options.staged:
            falling = self._stages(first.matching, first.whole.network, (code, *first.classes), best, progress)
        return Candidates(best.found[0].clamp(0, 1), still_improving=falling)

    def _stages(self, matching: Matching, network: nn.Module, features: tuple[torch.Tensor, ...], best: Best, progress: Progress) -> bool:
        """Search one stage's features after the other's; whether the last search was still falling."""
        options, stages = self.options, stages_of(network)
        falling = False
        for stage in range(1, len(stages)):
            with torch.no_grad():
                features = behind(stages[stage - 1], features)
            radius = options.radii[min(stage, len(options.radii)) - 1] if options.radii else None
            done = [options.iterations * end // (len(stages) - 1) for end in (stage - 1, stage)]
            if done[0] == done[1]:
                continue
            search = FeatureSearch(
                matching, options, stages[stage:], features, progress, stage=stage, radius=radius, iterations=done[1] - done[0]
            )
            try:
                search.run()
            except TimeUp:  # nothing was found in this stage: what was found before is there
                return True
            images, *found = search.best.found
            best.offer(search.best.losses, images)
            features, falling = tuple(found), search.falling.still
            if search.out_of_time:
                break
        return falling


class FeatureSearch(GeneratedSearch):
    """Over what one stage passes on to the next: the best images, and their features, are kept.

    Args:
        matching: losses ``(V,)`` of images.
        options: of the attack.
        stages: those behind, which make the images.
        features: where it starts, each ``(V, B, ...)``.
        progress: told after each step.
        stage: how many stages lie before.
        radius: of the l1 ball around the start, in units of its own l1 norm; None for no ball.
        iterations: steps.
    """

    def __init__(
        self, matching: Matching, options: GIFD.Options, stages: Sequence[nn.Module], features: tuple[torch.Tensor, ...],
        progress: Progress, *, stage: int, radius: float | None, iterations: int,
    ) -> None:  # fmt: skip
        device = features[0].device
        super().__init__(
            f"gifd: stage {stage}", Best(len(features[0]), device), iterations=iterations, schedule=options.schedule, progress=progress
        )
        self.matching, self.tv = matching, options.tv
        self.out_of_time = False
        self._stages, self._features, self._lr = stages, features, options.lr
        self._scales = [feature.abs().mean(dim=tuple(range(2, feature.ndim)), keepdim=True).clamp_min(1e-8) for feature in features]
        self._radii = None if radius is None else [radius * feature.flatten(2).shape[2] for feature in features]

    def begin(self, restart: int) -> None:
        self.start(*(torch.zeros_like(feature) for feature in self._features), lr=self._lr)

    def _moved(self) -> list[torch.Tensor]:
        rows = zip(self._features, self.points, self._scales, strict=True)
        return [feature + scale * point for feature, point, scale in rows]

    def images(self) -> torch.Tensor:
        return made(self._stages, self._moved())

    def keep(self, images: torch.Tensor, losses: torch.Tensor) -> None:
        self.best.offer(losses, images, *self._moved())

    def project(self) -> None:
        if self._radii is None:
            return
        for point, radius in zip(self.points, self._radii, strict=True):
            rows = point.flatten(0, 1).flatten(1)
            point.copy_(onto_l1_ball(rows, rows.new_full((len(rows),), radius)).reshape(point.shape))

    def interrupted(self) -> None:
        super().interrupted()
        self.out_of_time = True


def behind(stage: nn.Module, features: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """What a stage returns of features ``(V, B, ...)``, in the same form."""
    count = features[0].shape[:2]
    return tuple(found.unflatten(0, count) for found in through([stage], *(feature.flatten(0, 1) for feature in features)))
