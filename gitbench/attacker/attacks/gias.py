"""GIAS: gradient inversion with a generative image prior (Jeon et al., arXiv 2110.14962)."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.func import functional_call, vmap

from gitbench.attacker.attack import Attack, Candidates, State
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import PublicOptions
from gitbench.attacker.tools.generator import Autoencoder, Generator
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import DISTANCES, Distance, Objective, total_variation
from gitbench.attacker.tools.optimisation import SCHEDULES, Best, Falling, adam
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress, TimeUp
from gitbench.core.random import seeded

Matching = Callable[[torch.Tensor], torch.Tensor]
"""Images ``(V, B, C, H, W)`` to their matching losses ``(V,)``."""

_ADVERSARIAL_BETAS = (0.5, 0.999)  # as DCGANs are trained


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

    # ------------------------------------------------------------------ the generator

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        public = observation.public
        count = min(self.options.limit, len(public))
        held = max(1, round(self.options.holdout * count))
        if count <= held:
            raise AttackError(f"{self!r} needs at least 2 public images to train its generator on, found {count}: use more public data.")
        order = torch.randperm(len(public), generator=generator)[:count].to(public.inputs.device)
        images, kept = public.inputs[order[held:]], public.inputs[order[:held]]
        with seeded(generator):
            network = Autoencoder(self._generator(observation), observation.input_shape, self.options.latent, self.options.channels)
        network.to(observation.device)

        def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            batch = images[chosen.to(images.device)]
            noise = torch.randn(2, len(batch), self.options.latent, generator=generator).to(batch.device)
            found = network.loss(batch, noise[0], kl=self.options.kl)
            return found + self.options.adversarial * network.adversarial_loss(batch, noise[1]) if self.options.adversarial else found

        def validate() -> float:
            return sum(float((network(batch) - batch).square().mean()) * len(batch) for batch in kept.split(256)) / len(kept)

        train_network(
            network,
            loss=loss,
            rows=len(images),
            validate=validate,
            epochs=self.options.epochs,
            batch_size=self.options.batch_size,
            lr=self.options.generator_lr,
            generator=generator,
            progress=progress,
            what="gias: generator",
            checkpoint=checkpoint,
            betas=_ADVERSARIAL_BETAS if self.options.adversarial else (0.9, 0.999),
        )
        return {name: tensor.detach().clone() for name, tensor in network.generator.state_dict().items()}

    def _generator(self, observation: Observation) -> Generator:
        return Generator(observation.input_shape, latent=self.options.latent, channels=self.options.channels)

    # ------------------------------------------------------------------ the victims

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> Candidates:
        network = self._generator(observation)
        network.load_state_dict(dict(state))
        network.to(observation.device).requires_grad_(False)
        matching = functools.partial(Objective(observation, distance=self.options.distance), labels=infer_labels(observation))
        codes, best = self._search_codes(network, observation, matching, generator, progress)
        return self._search_parameters(network, codes, best, matching, progress)

    def _search_codes(
        self, network: Generator, observation: Observation, matching: Matching, generator: torch.Generator, progress: Progress
    ) -> tuple[torch.Tensor, Best]:
        """Codes ``(V, B, latent)``, and their images with their matching losses."""
        options, victims, batch = self.options, observation.victims, observation.batch_size
        # Victims come first, so that one victim's codes are the same however many others there are.
        starts = torch.randn(victims, options.restarts, batch, options.latent, generator=generator).to(observation.device)
        best, codes = Best(), Best(starts[:, 0].clone())

        def images_of(code: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = network(code.flatten(0, 1))
            return made.reshape(victims, batch, *made.shape[1:])

        for restart in range(options.restarts):
            code = starts[:, restart].clone()

            def see(images: torch.Tensor, losses: torch.Tensor, code: torch.Tensor = code) -> None:
                best.offer(images, losses)
                codes.offer(code, losses)

            done, total = restart * options.latent_iterations, options.restarts * options.latent_iterations
            tell = functools.partial(_tell, progress, "gias: codes", done, total)
            search = functools.partial(images_of, code)
            if not self._descend((code,), search, matching, see, iterations=options.latent_iterations, lr=options.latent_lr, tell=tell):
                break
        if best.empty:
            raise TimeUp
        return codes.candidates, best

    def _search_parameters(self, network: Generator, codes: torch.Tensor, best: Best, matching: Matching, progress: Progress) -> Candidates:
        """Images ``(V, B, C, H, W)`` of private generators, none a worse match than the best so far."""
        names = [name for name, _ in network.named_parameters()]
        flat = codes.flatten(0, 1)
        copies = tuple(parameter.detach().expand(len(flat), *parameter.shape).clone() for parameter in network.parameters())
        falling, steps = Falling(self.options.iterations), itertools.count()

        def image_of(own: Mapping[str, torch.Tensor], code: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = functional_call(network, dict(own), (code[None],))[0]
            return made

        def images_of() -> torch.Tensor:
            made: torch.Tensor = vmap(image_of)(dict(zip(names, copies, strict=True)), flat)
            return made.reshape(*codes.shape[:2], *made.shape[1:])

        def see(images: torch.Tensor, losses: torch.Tensor) -> None:
            falling.see(next(steps), losses)
            best.offer(images, losses)

        tell = functools.partial(_tell, progress, "gias: parameters", 0, self.options.iterations)
        self._descend(copies, images_of, matching, see, iterations=self.options.iterations, lr=self.options.lr, tell=tell)
        return Candidates(best.candidates.clamp(0, 1), still_improving=falling.still)

    def _descend(
        self,
        points: tuple[torch.Tensor, ...],
        images_of: Callable[[], torch.Tensor],
        matching: Matching,
        see: Callable[[torch.Tensor, torch.Tensor], object],
        *,
        iterations: int,
        lr: float,
        tell: Callable[[int], None],
    ) -> bool:
        """Adam on the matching loss plus total variation; ``see`` is shown every point, the last included.

        Returns:
            Whether all iterations were made before time was up.
        """

        def losses_of() -> torch.Tensor:
            images = images_of()
            losses = matching(images)
            see(images, losses)
            return losses + self.options.tv * total_variation(images)

        if not adam(points, losses_of, iterations=iterations, lr=lr, schedule=self.options.schedule, tell=tell):
            return False
        losses_of()
        return True


def _tell(progress: Progress, what: str, before: int, total: int, step: int) -> None:
    progress(what, before + step, total)
