"""GIAS: gradient inversion with a generative image prior (Jeon et al., arXiv 2110.14962)."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.func import functional_call, vmap

from gitbench.attacker.attack import Attack, Candidates, State
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import PublicOptions
from gitbench.attacker.tools.generator import ADVERSARIAL_BETAS, Autoencoder, Generator
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import DISTANCES, Distance, Objective, total_variation
from gitbench.attacker.tools.optimisation import SCHEDULES, AdamOptimisation, Best
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress
from gitbench.core.random import seeded

Matching = Callable[[torch.Tensor], torch.Tensor]


class GIAS(Attack):
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
    requires = frozenset({"architecture", "parameters", "public"})
    uses = frozenset({"defense"})
    fit_uses = frozenset({"public"})
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

    @dataclass(frozen=True, kw_only=True)
    class Options(PublicOptions):
        """Of :class:`GIAS`.

        Args:
            latent_iterations: steps of the search for the code, per restart.
            latent_lr: its first step size.
            restarts: random codes.
            iterations: steps of the search for the generator's parameters.
            lr: its first step size.
            schedule: ``cosine``, or ``step``: tenfold down after 3/8, 5/8 and 7/8 of the iterations.
            distance: ``layerwise``, ``cosine`` or ``l2``.
            tv: weight of total variation.
            latent: dimensions of the code.
            channels: of the generator's last hidden layer; twice and four times as many before.
            epochs: of the generator's training.
            batch_size: of the generator's training.
            generator_lr: of the generator's training.
            kl: weight, beside the mean squared error of a pixel, of the divergence of a code dimension from N(0, 1).
            adversarial: weight of the adversarial loss; 0 trains none.
        """

        latent_iterations: int = 300
        latent_lr: float = 0.1
        restarts: int = 2
        iterations: int = 1000
        lr: float = 3e-3
        schedule: str = "cosine"
        distance: Distance = "layerwise"
        tv: float = 0.01
        latent: int = 128
        channels: int = 32
        epochs: int = 30
        batch_size: int = 64
        generator_lr: float = 3e-3
        kl: float = 1e-5
        adversarial: float = 0.0

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_choice("schedule", SCHEDULES)
            self.check_choice("distance", DISTANCES)
            self.check_least(1, "latent_iterations", "restarts", "iterations", "latent", "channels", "epochs", "batch_size")
            self.check_positive("latent_lr", "lr", "generator_lr")
            self.check_least(0, "tv", "kl", "adversarial")

    options: Options

    def memory(self, observation: Observation) -> int:
        """A private generator for each image with its gradient and Adam's moments, and a few gradients of each victim."""
        with torch.device("meta"):
            own = sum(parameter.numel() for parameter in self._generator(observation).parameters())
        victims = observation.update.victims
        return 4 * (6 * own * victims * observation.batch_size + 6 * observation.entries * victims)

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        options, public = self.options, observation.public
        count = min(options.limit, len(public))
        held = max(1, round(options.holdout * count))
        if count <= held:
            raise AttackError(f"{self!r} needs at least 2 public images to train its generator on, found {count}: use more public data.")
        order = torch.randperm(len(public), generator=generator)[:count].to(public.inputs.device)
        images, kept = public.inputs[order[held:]], public.inputs[order[:held]]
        with seeded(generator):
            network = Autoencoder(self._generator(observation), observation.input_shape, options.latent, options.channels)
        network.to(observation.device)

        def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            return network.loss(images[chosen.to(images.device)], generator, kl=options.kl, adversarial=options.adversarial)

        train_network(
            network, loss=loss, rows=len(images), validate=lambda: network.error(kept), epochs=options.epochs,
            batch_size=options.batch_size, lr=options.generator_lr, generator=generator, progress=progress, what="gias: generator",
            checkpoint=checkpoint, betas=ADVERSARIAL_BETAS if options.adversarial else (0.9, 0.999),
        )  # fmt: skip
        return {name: tensor.detach().clone() for name, tensor in network.generator.state_dict().items()}

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> Candidates:
        network = self._generator(observation)
        network.load_state_dict(dict(state))
        network.to(observation.device).requires_grad_(False)
        matching = functools.partial(Objective(observation, distance=self.options.distance), labels=infer_labels(observation))
        # Victims come first, so that one victim's codes are the same however many others there are.
        shape = (observation.victims, self.options.restarts, observation.batch_size, self.options.latent)
        starts = torch.randn(shape, generator=generator).to(observation.device)
        codes = CodeSearch(matching, self.options, network, starts, progress)
        codes.run()
        parameters = ParameterSearch(matching, self.options, network, codes.best, progress)
        parameters.run()
        return Candidates(parameters.best.found[0].clamp(0, 1), still_improving=parameters.falling.still)

    def _generator(self, observation: Observation) -> Generator:
        return Generator(observation.input_shape, latent=self.options.latent, channels=self.options.channels)


class _GeneratedSearch(AdamOptimisation):
    """Lowers the matching loss plus total variation of images that the generator makes."""

    network: Generator
    matching: Matching
    tv: float

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return self.matching(images)

    def minimised(self, images: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        return losses + self.tv * total_variation(images)


class CodeSearch(_GeneratedSearch):
    """Over the generator's codes: the best images, and their codes ``(V, B, latent)``, are kept.

    Args:
        matching: losses ``(V,)`` of images.
        options: of the attack.
        network: makes the images.
        starts: codes ``(V, restarts, B, latent)``.
        progress: told after each step.
    """

    def __init__(self, matching: Matching, options: GIAS.Options, network: Generator, starts: torch.Tensor, progress: Progress) -> None:
        super().__init__(
            "gias: codes", Best(len(starts), starts.device), iterations=options.latent_iterations, restarts=options.restarts,
            schedule=options.schedule, progress=progress,
        )  # fmt: skip
        self.matching, self.network, self.tv = matching, network, options.tv
        self._starts = starts
        self._lr = options.latent_lr

    def begin(self, restart: int) -> None:
        self.start(self._starts[:, restart], lr=self._lr)

    def images(self) -> torch.Tensor:
        made: torch.Tensor = self.network(self.points[0].flatten(0, 1))
        return made.reshape(*self.points[0].shape[:2], *made.shape[1:])

    def keep(self, images: torch.Tensor, losses: torch.Tensor) -> None:
        self.best.offer(losses, images, self.points[0])


class ParameterSearch(_GeneratedSearch):
    """Over private copies of the generator's parameters, one for each image; no worse a match than the codes' is kept.

    Args:
        matching: losses ``(V,)`` of images.
        options: of the attack.
        network: is copied.
        codes: what :class:`CodeSearch` found.
        progress: told after each step.
    """

    def __init__(self, matching: Matching, options: GIAS.Options, network: Generator, codes: Best, progress: Progress) -> None:
        images, self._codes = codes.found
        super().__init__(
            "gias: parameters", Best(len(images), images.device), iterations=options.iterations,
            schedule=options.schedule, progress=progress,
        )  # fmt: skip
        self.best.offer(codes.losses, images)
        self.matching, self.network, self.tv = matching, network, options.tv
        self._lr = options.lr

    def begin(self, restart: int) -> None:
        count = self._codes.shape[:2].numel()
        self.start(*(parameter.expand(count, *parameter.shape) for parameter in self.network.parameters()), lr=self._lr)

    def images(self) -> torch.Tensor:
        names = [name for name, _ in self.network.named_parameters()]
        made: torch.Tensor = vmap(self._image)(dict(zip(names, self.points, strict=True)), self._codes.flatten(0, 1))
        return made.reshape(*self._codes.shape[:2], *made.shape[1:])

    def _image(self, own: Mapping[str, torch.Tensor], code: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = functional_call(self.network, dict(own), (code[None],))[0]
        return made
