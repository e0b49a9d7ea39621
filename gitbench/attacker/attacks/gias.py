"""GIAS: gradient inversion with a generative image prior (Jeon et al., arXiv 2110.14962)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional

from gitbench.attacker.attack import Attack, Candidates, State
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import DISTANCES, Distance, Falling, Objective, check_choice, total_variation
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress, TimeUp
from gitbench.core.random import seeded

_SCALES = 3  # of the generator: it starts at an eighth of the image's sides
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
        entries = sum(parameter.numel() for parameter in observation.architecture.parameters())
        victims = observation.update.victims
        return 4 * (6 * own * victims * observation.batch_size + 6 * entries * victims)

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
            network = _Autoencoder(self._generator(observation), observation.input_shape, self.options.latent, self.options.channels)
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
        objective = Objective(observation, distance=self.options.distance)
        matching = functools.partial(objective, labels=infer_labels(observation))
        codes, images, losses = self._search_codes(network, observation, matching, generator, progress)
        falling, steps = Falling(self.options.iterations), itertools.count()

        def watched(images: torch.Tensor) -> torch.Tensor:
            found = matching(images)
            falling.see(next(steps), found)
            return found

        images = self._search_parameters(network, codes, images, losses, watched, progress)
        return Candidates(images, still_improving=falling.still)

    def _search_codes(
        self,
        network: Generator,
        observation: Observation,
        matching: Callable[[torch.Tensor], torch.Tensor],
        generator: torch.Generator,
        progress: Progress,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes ``(V, B, latent)``, their images and their matching losses ``(V,)``."""
        victims, batch = observation.update.victims, observation.batch_size
        # Victims come first, so that one victim's codes are the same however many others there are.
        starts = torch.randn(victims, self.options.restarts, batch, self.options.latent, generator=generator).to(observation.device)
        codes = starts[:, 0].clone()
        best = _Best(victims, observation.device)
        for restart in range(self.options.restarts):

            def images_of(points: tuple[torch.Tensor, ...]) -> torch.Tensor:
                made: torch.Tensor = network(points[0].flatten(0, 1))
                return made.reshape(victims, batch, *made.shape[1:])

            def keep(points: tuple[torch.Tensor, ...], better: torch.Tensor) -> None:
                codes[better] = points[0].detach()[better]

            in_time = self._descend(
                (starts[:, restart].clone(),),
                images_of,
                matching,
                best,
                keep,
                iterations=self.options.latent_iterations,
                lr=self.options.latent_lr,
                tell=functools.partial(
                    _tell, progress, "gias: codes", restart * self.options.latent_iterations, self.options.restarts * self.options.latent_iterations
                ),
            )
            if not in_time:
                break
        return codes, best.images, best.losses

    def _search_parameters(
        self,
        network: Generator,
        codes: torch.Tensor,
        images: torch.Tensor,
        losses: torch.Tensor,
        matching: Callable[[torch.Tensor], torch.Tensor],
        progress: Progress,
    ) -> torch.Tensor:
        """Images ``(V, B, C, H, W)`` of private generators, none a worse match than ``images`` with ``losses``."""
        names = [name for name, _ in network.named_parameters()]
        flat = codes.flatten(0, 1)
        # One Adam over the stack is one Adam per image: its steps are elementwise.
        copies = tuple(parameter.detach().expand(len(flat), *parameter.shape).clone() for parameter in network.parameters())

        def image_of(own: Mapping[str, torch.Tensor], code: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = functional_call(network, dict(own), (code[None],))[0]
            return made

        def images_of(points: tuple[torch.Tensor, ...]) -> torch.Tensor:
            made: torch.Tensor = vmap(image_of)(dict(zip(names, points, strict=True)), flat)
            return made.reshape(*codes.shape[:2], *made.shape[1:])

        best = _Best(len(codes), codes.device, images=images, losses=losses)
        self._descend(
            copies,
            images_of,
            matching,
            best,
            None,
            iterations=self.options.iterations,
            lr=self.options.lr,
            tell=functools.partial(_tell, progress, "gias: parameters", 0, self.options.iterations),
        )
        return best.images.clamp(0, 1)

    def _descend(
        self,
        points: tuple[torch.Tensor, ...],
        images_of: Callable[[tuple[torch.Tensor, ...]], torch.Tensor],
        matching: Callable[[torch.Tensor], torch.Tensor],
        best: _Best,
        keep: Callable[[tuple[torch.Tensor, ...], torch.Tensor], None] | None,
        *,
        iterations: int,
        lr: float,
        tell: Callable[[int], None],
    ) -> bool:
        """Adam on the matching loss plus total variation; ``best`` sees every point, the last included.

        Returns:
            Whether all iterations were made before time was up.

        Raises:
            TimeUp: time was up before ``best`` had seen anything.
        """
        for point in points:
            point.requires_grad_(True)
        optimizer = torch.optim.Adam(points, lr=lr)
        schedule = self._schedule(optimizer, iterations)
        try:
            for iteration in range(iterations + 1):
                images = images_of(points)
                losses = matching(images)
                better = best.offer(images, losses)
                if keep is not None:
                    keep(points, better)
                if iteration == iterations:
                    break
                gradients = torch.autograd.grad((losses + self.options.tv * total_variation(images)).sum(), points)
                for point, gradient in zip(points, gradients, strict=True):
                    point.grad = gradient
                optimizer.step()
                schedule.step()
                tell(iteration + 1)
        except TimeUp:
            if best.empty:
                raise
            return False
        return True

    def _schedule(self, optimizer: torch.optim.Optimizer, iterations: int) -> torch.optim.lr_scheduler.LRScheduler:
        if self.options.schedule == "cosine":
            return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        milestones = [iterations * eighths // 8 for eighths in (3, 5, 7)]
        return torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)


class _Best:
    """The images with the lowest matching loss, victim by victim."""

    def __init__(
        self, victims: int, device: torch.device, *, images: torch.Tensor | None = None, losses: torch.Tensor | None = None
    ) -> None:
        self._images = images
        self.losses = torch.full((victims,), math.inf, device=device) if losses is None else losses.clone()

    @property
    def empty(self) -> bool:
        return self._images is None

    @property
    def images(self) -> torch.Tensor:
        assert self._images is not None
        return self._images

    def offer(self, images: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
        """Keep what is better; returns for which victims ``(V,)`` it was."""
        images, losses = images.detach(), losses.detach()
        if self._images is None:
            self._images = images.clone()
        better = losses < self.losses  # False for NaN
        self._images = torch.where(better[:, None, None, None, None], images, self._images)
        self.losses = torch.where(better, losses, self.losses)
        return better


class Generator(nn.Module):
    """The DCGAN's generator without BatchNorm, for images of any size: codes ``(N, latent)`` to images in [0, 1].

    It starts at an eighth of the sides, rounded up, and crops what is too much.

    Args:
        shape: ``(C, H, W)`` of the images.
        latent: dimensions of the code.
        channels: of the last hidden layer.
    """

    def __init__(self, shape: tuple[int, int, int], *, latent: int, channels: int) -> None:
        super().__init__()
        colours, self.height, self.width = shape
        widths = _widths(channels)
        side = 2**_SCALES
        rows, columns = -(-self.height // side), -(-self.width // side)
        layers: list[nn.Module] = [nn.Linear(latent, widths[0] * rows * columns), nn.ReLU(), nn.Unflatten(1, (widths[0], rows, columns))]
        for before, after in itertools.pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.ConvTranspose2d(widths[-1], colours, 4, stride=2, padding=1), nn.Sigmoid())

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        images: torch.Tensor = self.layers(codes)
        return images[..., : self.height, : self.width]


class _Autoencoder(nn.Module):
    """A variational autoencoder around the generator, and the discriminator of adversarial training."""

    def __init__(self, generator: Generator, shape: tuple[int, int, int], latent: int, channels: int) -> None:
        super().__init__()
        self.generator = generator
        self.encoder = _convolutions(shape, channels, 2 * latent)
        self.discriminator = _convolutions(shape, channels, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images through their mean codes."""
        made: torch.Tensor = self.generator(self.encoder(images).chunk(2, dim=1)[0])
        return made

    def loss(self, images: torch.Tensor, noise: torch.Tensor, *, kl: float) -> torch.Tensor:
        """Squared error of a pixel plus ``kl`` times the divergence of a code dimension from N(0, 1)."""
        mean, logarithm = self.encoder(images).chunk(2, dim=1)
        logarithm = logarithm.clamp(-10, 10)  # of the variance
        made = self.generator(mean + (logarithm / 2).exp() * noise)
        divergence = (mean.square() + logarithm.exp() - 1 - logarithm) / 2
        total: torch.Tensor = (made - images).square().mean() + kl * divergence.mean()
        return total

    def adversarial_loss(self, images: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """The DCGAN's two losses as one sum: each network gets the gradient of its own loss alone."""
        made = self.generator(codes)
        judge = functional.softplus(-self.discriminator(images)).mean() + functional.softplus(self.discriminator(made.detach())).mean()
        frozen = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        return judge + functional.softplus(-functional_call(self.discriminator, frozen, (made,))).mean()


def _convolutions(shape: tuple[int, int, int], channels: int, outputs: int) -> nn.Sequential:
    """The generator backwards: from images to ``outputs`` numbers."""
    before, height, width = shape
    layers: list[nn.Module] = []
    for after in reversed(_widths(channels)):
        layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        before, height, width = after, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * height * width, outputs))


def _widths(channels: int) -> list[int]:
    return [channels * 2**scale for scale in reversed(range(_SCALES))]


def _tell(progress: Progress, what: str, before: int, total: int, step: int) -> None:
    progress(what, before + step, total)
