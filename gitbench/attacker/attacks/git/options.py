"""The options of :class:`~gitbench.attacker.attacks.git.attack.Git`, which all its variants read."""

from __future__ import annotations

from dataclasses import dataclass

from gitbench.attacker.options import PublicOptions

VARIANTS = ("auto", "exact", "coarse", "module")


@dataclass(frozen=True, kw_only=True)
class WeightOptions(PublicOptions):
    """How the weights of the exact recursion are had.

    Args:
        weights: ``solved`` or ``trained`` (chains of linear layers).
    """

    weights: str = "solved"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("weights", ("solved", "trained"))


@dataclass(frozen=True, kw_only=True)
class GitOptions(WeightOptions):
    """Options of GIT.

    Args:
        variant: ``exact``, ``coarse``, ``module``, or ``auto``, which takes the exact one where the weights can be solved.
        width: of the exact variant's residual network.
        epochs: passes over the public pairs.
        lr: first step of the exact variant's network.
        draws: of a random defense for each public pair.
        polish: iterations that match all layers' gradients at once, against a defense that adds noise (exact variant).
        coarse_width: hidden width of each step of the other variants.
        sketch: entries to which each layer's gradient is hashed in the other variants.
    """

    variant: str = "auto"
    width: int = 768
    epochs: int = 8
    lr: float = 3e-4
    draws: int = 3
    polish: int = 6
    coarse_width: int = 64
    sketch: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_choice("variant", VARIANTS)
        self.check_least(1, "width", "epochs", "draws", "coarse_width", "sketch")
        self.check_least(0, "polish")
        self.check_positive("lr")
