"""The generator that ``gias`` and ``gifd`` search: trained on public images and kept once for both, or the user's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import GeneratorOptions
from gitbench.attacker.tools.generator import ADVERSARIAL_BETAS, Autoencoder, Generator, Staged, through
from gitbench.clients.data import Split
from gitbench.core.errors import AttackError, SpecError
from gitbench.core.progress import Progress
from gitbench.core.spec import Part
from gitbench.identity.loading import load_part


class Decoder(Attack):
    """No attack in itself: what it learns is a generator, and every attack with the same options shares it."""

    name = "gitbench.attacker.tools.decoder:Decoder"
    requires = frozenset({"public"})
    fit_uses = frozenset({"public"})
    Options = GeneratorOptions

    options: GeneratorOptions

    @classmethod
    def of(cls, options: GeneratorOptions) -> Decoder:
        """That of an attack with these options."""
        return cls(**{name: getattr(options, name) for name in GeneratorOptions.__dataclass_fields__})

    def __repr__(self) -> str:
        return "gias"  # the first attack with a generator: what is learned goes by its seed

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        if self.options.generator:
            return {}
        options, public = self.options, observation.public
        count = min(options.limit, len(public))
        held = max(1, round(options.holdout * count))
        if count <= held:
            raise AttackError(f"A generator needs at least 2 public images to be trained on, found {count}: use more public data.")
        order = torch.randperm(len(public), generator=generator)[:count].to(public.inputs.device)
        known = (public.inputs, *self._labels(public))
        rows, kept = ([one[part] for one in known] for part in (order[held:], order[:held]))
        network = Autoencoder.seeded_by(
            generator, observation.input_shape, latent=options.latent, channels=options.channels, classes=self._count(public)
        )
        network.to(observation.device)

        def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            images, *classes = (one[chosen.to(one.device)] for one in rows)
            return network.loss(images, generator, *classes, kl=options.kl, adversarial=options.adversarial)

        train_network(
            network, loss=loss, rows=count - held, validate=lambda: network.error(*kept), epochs=options.epochs,
            batch_size=options.batch_size, lr=options.generator_lr, generator=generator, progress=progress, what="gias: generator",
            checkpoint=checkpoint, betas=ADVERSARIAL_BETAS if options.adversarial else (0.9, 0.999),
        )  # fmt: skip
        return {name: tensor.detach().clone() for name, tensor in network.generator.state_dict().items()}

    def network(self, observation: Observation, state: State) -> nn.Module:
        """The generator, frozen, on the observation's device; it is a :class:`Staged`.

        Raises:
            AttackError: the user's own is none, or makes other images.
            SpecError: there is no such factory.
        """
        if self.options.generator:
            network = self._own(observation)
        else:
            network = self._untrained(observation, classes=state["layers.0.weight"].shape[1] - self.options.latent)
            network.load_state_dict(dict(state))
        return network.to(observation.device).eval().requires_grad_(False)

    def entries(self, observation: Observation) -> int:
        """Of all its parameters."""
        if self.options.generator:
            network = self._own(observation)
        else:
            with torch.device("meta"):
                network = self._untrained(observation, classes=self._count(observation.public))
        return sum(parameter.numel() for parameter in network.parameters())

    def widths(self, observation: Observation) -> list[int]:
        """Entries of what each stage returns of one code."""
        own = bool(self.options.generator)
        network: Any = self._own(observation) if own else self._untrained(observation, classes=self._count(observation.public))
        features: tuple[torch.Tensor, ...] = (torch.zeros(1, network.latent), *_classes(network, 1))
        found = []
        with torch.no_grad():
            for stage in network.stages:
                features = through([stage], *features)
                found.append(sum(feature.numel() for feature in features))
        return found

    def _untrained(self, observation: Observation, *, classes: int) -> nn.Module:
        return Generator(observation.input_shape, latent=self.options.latent, channels=self.options.channels, classes=classes)

    def _count(self, public: Split) -> int:
        """Of the generator's classes: those that the public split has."""
        return len(public.labels.unique()) if self.options.conditional else 0

    def _labels(self, public: Split) -> tuple[torch.Tensor, ...]:
        """The classes of public images as one-hot ``(N, classes)``, where the generator is to have some."""
        if not self.options.conditional:
            return ()
        classes, rows = public.labels.unique(return_inverse=True)
        return (functional.one_hot(rows, len(classes)).float(),)

    def _own(self, observation: Observation) -> nn.Module:
        named, shape = self.options.generator, observation.input_shape
        if ":" not in named:
            raise SpecError(f"Expected generator={named!r} to be 'module:factory' or 'path/to/file.py:factory'.")
        factory = load_part("attack", Part(named))
        try:
            network: Staged = factory(shape)
            with torch.no_grad():
                found = through(network.stages, torch.zeros(2, network.latent), *_classes(network, 2))
        except Exception as error:
            raise AttackError(f"The generator {named!r} cannot be used: its factory, or a stage, raised {error!r}.") from error
        if not isinstance(network, nn.Module) or len(found) != 1 or found[0].shape != (2, *shape):
            raise AttackError(
                f"Expected {named!r} to return a torch.nn.Module whose stages make images {(2, *shape)} of two codes, "
                f"got {type(network).__name__} and {[tuple(one.shape) for one in found]}."
            )
        return network


def _classes(network: object, count: int) -> tuple[torch.Tensor, ...]:
    """Any classes for so many codes, where a generator takes some."""
    classes: int = getattr(network, "classes", 0)
    return (torch.eye(classes)[:1].expand(count, -1),) if classes else ()
