"""GIAS: gradient inversion with a generative image prior (Jeon et al., arXiv 2110.14962)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call, vmap

from gitbench.attacker.attack import State
from gitbench.attacker.observation import Observation
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.generated import GeneratedOptions, GeneratedSearch, Matching, Whole
from gitbench.attacker.tools.generated_attack import GeneratedAttack
from gitbench.attacker.tools.optimisation import Best
from gitbench.core.progress import Progress


class GIAS(GeneratedAttack):
    """A generator of public images: its latent code is searched first, then its parameters, for each image.

    1. A DCGAN generator is trained on the public images alone.
    2. Its input ``z ~ N(0, 1)`` is optimised by matching gradients, the generator frozen; the restart with
       the lowest matching loss is kept, victim by victim.
    3. The code is frozen and a *private copy* of the generator's parameters is optimised for each image, so
       images that the generator cannot make are reached too. The iterate with the lowest matching loss is
       returned, also when time is up: never a worse match than that of step 2.

    Where we differ from the paper: its generators are trained by adversarial training alone on 50,000 or more
    images. From a few thousand public images that does not converge in any time a CPU has, so ours is the
    decoder of a variational autoencoder, whose prior is N(0, 1) too, and ``adversarial`` adds the DCGAN's loss
    on top. It has no BatchNorm, which would tie the images of a batch to each other. The code keeps its best
    iterate as well. The ``paper`` settings are the lengths and rates of the reference code for its DCGAN.
    """

    name = "gias"
    profiles = {
        "quick": {"latent_iterations": 40, "restarts": 1, "iterations": 80, "channels": 16, "epochs": 10, "limit": 2048},
        "paper": {
            "latent_iterations": 1000,
            "latent_lr": 0.1,
            "restarts": 4,
            "iterations": 8000,
            "lr": 1e-3,
            "schedule": "step",
            "distance": "cosine",
            "tv": 1e-6,
            "channels": 64,
            "epochs": 200,
            "generator_lr": 2e-4,
            "adversarial": 0.01,
            "limit": 50_000,
        },
    }

    Options = GeneratedOptions

    def memory(self, observation: Observation) -> int:
        """A private generator for each image with its gradient and Adam's moments, and a few gradients of each victim."""
        own = self.decoder.entries(observation)
        victims = observation.update.victims
        return 4 * (6 * own * victims * observation.batch_size + 6 * observation.entries * victims)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> Candidates:
        first = self.search_codes(observation, state, generator=generator, progress=progress)
        parameters = ParameterSearch(first.matching, self.options, first.whole.network, first.codes.best, progress, classes=first.classes)
        parameters.run()
        return Candidates(parameters.best.found[0].clamp(0, 1), still_improving=parameters.falling.still)


class ParameterSearch(GeneratedSearch):
    """Over private copies of the generator's parameters, one for each image; no worse a match than the codes' is kept.

    Args:
        matching: losses ``(V,)`` of images.
        options: of the attack.
        network: is copied.
        codes: what :class:`CodeSearch` found.
        progress: told after each step.
        classes: what the first stage takes beside the codes, each ``(V, B, ...)``.
    """

    def __init__(
        self,
        matching: Matching,
        options: GeneratedOptions,
        network: nn.Module,
        codes: Best,
        progress: Progress,
        *,
        classes: tuple[torch.Tensor, ...] = (),
    ) -> None:
        images, self._codes = codes.found
        self._classes = classes
        super().__init__(
            "gias: parameters", Best(len(images), images.device), iterations=options.iterations,
            schedule=options.schedule, progress=progress,
        )  # fmt: skip
        self.best.offer(codes.losses, images)
        self.matching, self.network, self.tv = matching, Whole(network), options.tv
        self._lr = options.lr

    def begin(self, restart: int) -> None:
        count = self._codes.shape[:2].numel()
        self.start(*(parameter.expand(count, *parameter.shape) for parameter in self.network.parameters()), lr=self._lr)

    def images(self) -> torch.Tensor:
        names = [name for name, _ in self.network.named_parameters()]
        given = (one.flatten(0, 1) for one in (self._codes, *self._classes))
        made: torch.Tensor = vmap(self._image)(dict(zip(names, self.points, strict=True)), *given)
        return made.reshape(*self._codes.shape[:2], *made.shape[1:])

    def _image(self, own: Mapping[str, torch.Tensor], *given: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = functional_call(self.network, dict(own), tuple(one[None] for one in given))[0]
        return made
