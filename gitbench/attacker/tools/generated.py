"""Searches for images that a generator makes and whose update is the observed one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.options import GeneratorOptions
from gitbench.attacker.tools.generator import Staged, through
from gitbench.attacker.tools.matching import DISTANCES, Distance, total_variation
from gitbench.attacker.tools.optimisation import SCHEDULES, AdamOptimisation, Best
from gitbench.core.progress import Progress

Matching = Callable[[torch.Tensor], torch.Tensor]
"""Losses ``(V,)`` of images ``(V, B, C, H, W)``."""


@dataclass(frozen=True, kw_only=True)
class GeneratedOptions(GeneratorOptions):
    """Of an attack that searches a generator by matching gradients.

    Args:
        latent_iterations: steps of the search for the code, per restart.
        latent_lr: its first step size.
        restarts: random codes.
        iterations: steps of the search that follows.
        lr: its first step size.
        schedule: ``cosine``; ``step``: tenfold down after 3/8, 5/8 and 7/8 of the iterations; ``ramp``: up over the first twentieth and
            down along a cosine over the last three quarters.
        distance: ``layerwise``, ``weighted``, ``cosine`` or ``l2``: :class:`gitbench.attacker.tools.matching.Objective`.
        tv: weight of total variation.
        mapping: of a generator whose classes are not the task's, which class stands for a label is read off the update; False
            numbers them as the task's.
    """

    latent_iterations: int = 300
    latent_lr: float = 0.1
    restarts: int = 2
    iterations: int = 1000
    lr: float = 3e-3
    schedule: str = "cosine"
    distance: Distance = "layerwise"
    tv: float = 0.01
    mapping: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("schedule", SCHEDULES)
        self.check_choice("distance", DISTANCES)
        self.check_least(1, "latent_iterations", "restarts", "iterations")
        self.check_positive("latent_lr", "lr")
        self.check_least(0, "tv")


class GeneratedSearch(AdamOptimisation):
    """Lowers the matching loss plus total variation of images that a generator makes; judged by the matching loss alone."""

    matching: Matching
    tv: float

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return self.matching(images)

    def minimised(self, images: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return losses + self.tv * total_variation(images)


class CodeSearch(GeneratedSearch):
    """Over the generator's codes: the best images, and their codes ``(V, B, latent)``, are kept.

    Args:
        matching: losses ``(V,)`` of images.
        options: of the attack.
        network: makes the images; a :class:`gitbench.attacker.tools.generator.Staged`.
        starts: codes ``(V, restarts, B, latent)``.
        progress: told after each step.
        classes: what the first stage takes beside the codes, each ``(V, B, ...)``.
        what: the search is called where progress is told.
    """

    def __init__(
        self,
        matching: Matching,
        options: GeneratedOptions,
        network: nn.Module,
        starts: torch.Tensor,
        progress: Progress,
        *,
        classes: tuple[torch.Tensor, ...] = (),
        what: str = "gias",
    ) -> None:
        super().__init__(
            f"{what}: codes", Best(len(starts), starts.device), iterations=options.latent_iterations, restarts=options.restarts,
            schedule=options.schedule, progress=progress,
        )  # fmt: skip
        self.matching, self.tv = matching, options.tv
        self._stages, self._classes = stages_of(network), classes
        self._starts = starts
        self._lr = options.latent_lr

    def begin(self, restart: int) -> None:
        self.start(self._starts[:, restart], lr=self._lr)

    def images(self) -> torch.Tensor:
        return made(self._stages, (*self.points, *self._classes))

    def keep(self, images: torch.Tensor, losses: torch.Tensor) -> None:
        self.best.offer(losses, images, self.points[0])


class Whole(nn.Module):
    """All stages of a generator as one module: codes ``(N, latent)``, and classes where it has any, to images.

    Args:
        network: a :class:`gitbench.attacker.tools.generator.Staged`.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        staged: Staged = network  # type: ignore[assignment]
        self.network = network
        self.latent = staged.latent

    def forward(self, codes: torch.Tensor, *classes: torch.Tensor) -> torch.Tensor:
        return through(stages_of(self.network), codes, *classes)[0]


def stages_of(network: nn.Module) -> Sequence[nn.Module]:
    """The stages of a generator that was checked to have them."""
    staged: Staged = network  # type: ignore[assignment]
    return staged.stages


def made(stages: Sequence[nn.Module], features: Sequence[torch.Tensor]) -> torch.Tensor:
    """The images ``(V, B, C, H, W)`` of features ``(V, B, ...)``."""
    (images,) = through(stages, *(feature.flatten(0, 1) for feature in features))
    return images.reshape(*features[0].shape[:2], *images.shape[1:])
