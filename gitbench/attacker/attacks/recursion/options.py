"""The options of :class:`~gitbench.attacker.attacks.recursion.attack.Recursion`, which its parts read."""

from __future__ import annotations

from dataclasses import dataclass

from gitbench.attacker.options import AdaptiveOptions


@dataclass(frozen=True, kw_only=True)
class RecursionOptions(AdaptiveOptions):
    """Options of the recursion.

    Args:
        limit: at most so many public images.
        iterations: of the minimisation, one gradient each.
        cg: conjugate gradient steps of a layer that is too wide to be solved victim by victim.
        match: relative error of the model that is granted to the minimisation.
        holdout: share of the public images that chooses the linear map's penalty.
        rehearsal: public images that play victims.
        prior: of the image, from public images: their ``covariance``, or their ``spectrum``, which is faster and knows less.
        samples: systems that are solved at most for a batch behind a ReLU, to tell its examples apart; 0 leaves that out.
    """

    limit: int = 20_000
    iterations: int = 300
    cg: int = 10
    match: float = 3e-3
    holdout: float = 0.1
    rehearsal: int = 16
    prior: str = "covariance"
    samples: int = 2**16

    def __post_init__(self) -> None:
        self.check_choice("prior", ("covariance", "spectrum"))
        self.check_least(1, "limit", "rehearsal")
        self.check_least(0, "iterations", "cg", "samples")
        self.check_positive("match")
        self.check_share("holdout")
