"""What an attack can be told: a frozen class for each, the one place of names, types, defaults and checks.

The names and defaults of its fields are read from the source, too, so that a SPEC can be checked without an import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from gitbench.identity.threat import Knowledge


@dataclass(frozen=True, kw_only=True)
class AttackOptions:
    """Base of all options, and those of an attack that has none."""

    @property
    def needs(self) -> frozenset[Knowledge]:
        """Knowledge that these options ask for, beyond what the attack requires anyway."""
        return frozenset()

    def values(self) -> dict[str, object]:
        """The options by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def check_choice(self, name: str, choices: Sequence[str]) -> None:
        """Refuse a value that is not among the choices.

        Raises:
            ValueError: naming the option, the choices and what was found.
        """
        if getattr(self, name) not in choices:
            raise ValueError(f"expected {name} to be one of {', '.join(choices)}, got {getattr(self, name)!r}")

    def check_least(self, least: int, *names: str) -> None:
        """Refuse what is below ``least``.

        Raises:
            ValueError: naming the option and what was found.
        """
        for name in names:
            if not getattr(self, name) >= least:  # nor NaN
                raise ValueError(f"expected {name} >= {least}, got {getattr(self, name)!r}")

    def check_positive(self, *names: str) -> None:
        """Refuse what is zero or less.

        Raises:
            ValueError: naming the option and what was found.
        """
        for name in names:
            if not getattr(self, name) > 0:
                raise ValueError(f"expected {name} > 0, got {getattr(self, name)!r}")

    def check_share(self, *names: str) -> None:
        """Refuse what is no share between 0 and 1.

        Raises:
            ValueError: naming the option and what was found.
        """
        for name in names:
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"expected {name} in (0, 1), got {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class AdaptiveOptions(AttackOptions):
    """Of an attack that uses the defense's definition where it is granted.

    Args:
        adapt: False withholds the definition: the attacker does not know the defense.
    """

    adapt: bool = True


@dataclass(frozen=True, kw_only=True)
class LabelOptions(AdaptiveOptions):
    """Of an attack that matches gradients for labels.

    Args:
        labels: ``inferred`` from the update, or ``known`` where the threat model grants them.
    """

    labels: str = "inferred"

    @property
    def needs(self) -> frozenset[Knowledge]:
        return frozenset({"labels"}) if self.labels == "known" else frozenset()


@dataclass(frozen=True, kw_only=True)
class PublicOptions(AdaptiveOptions):
    """Of an attack that learns from public examples.

    Args:
        holdout: share of them that chooses penalties and the epoch.
        limit: at most so many of them.
    """

    holdout: float = 0.1
    limit: int = 20_000

    def __post_init__(self) -> None:
        self.check_least(20, "limit")
        self.check_share("holdout")


@dataclass(frozen=True, kw_only=True)
class GeneratorOptions(PublicOptions):
    """Of an attack that searches a generator of images.

    Args:
        generator: ``module:factory`` or ``path/to/file.py:factory``: a function of ``input_shape`` that returns a generator of your own
            (:class:`gitbench.attacker.tools.generator.Staged`). Empty: ours, trained on the public images.
        latent: dimensions of the code. This and what follows is of ours.
        channels: of its last hidden layer; twice and four times as many before.
        epochs: of its training.
        batch_size: of its training.
        generator_lr: of its training.
        kl: weight, beside the mean squared error of a pixel, of the divergence of a code dimension from N(0, 1).
        adversarial: weight of the adversarial loss; 0 trains none.
        conditional: it is trained with the public labels, and makes an image of a class, beside the code.
    """

    generator: str = ""
    latent: int = 128
    channels: int = 32
    epochs: int = 30
    batch_size: int = 64
    generator_lr: float = 3e-3
    kl: float = 1e-5
    adversarial: float = 0.0
    conditional: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_least(1, "latent", "channels", "epochs", "batch_size")
        self.check_positive("generator_lr")
        self.check_least(0, "kl", "adversarial")
