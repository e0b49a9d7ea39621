"""The attack: from an observation to a reconstruction. It never sees the truth and never scores itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch

from gitbench import registry
from gitbench.component import Component
from gitbench.errors import AttackError, GitbenchError, NotGrantedError, SpecError
from gitbench.observation import Observation
from gitbench.progress import Progress, silent
from gitbench.spec import Part, parse_spec
from gitbench.threat import Knowledge

State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Reconstruction:
    """What an attack makes of an observation.

    Args:
        inputs: ``(V, B, C, H, W)`` in [0, 1]; the order within a batch means nothing.
        fit_seconds: spent on the attack's own training.
        attack_seconds: spent on the victims.
    """

    inputs: torch.Tensor
    fit_seconds: float
    attack_seconds: float


class Attack(Component):
    """Base of all attacks: subclasses define :meth:`run` and say what they read.

    Constructor defaults are the ``standard`` budget; :attr:`profiles` changes them for the others.
    """

    requires: frozenset[Knowledge] = frozenset()
    """Knowledge without which the attack cannot run."""
    uses: frozenset[Knowledge] = frozenset()
    """Knowledge that it reads when it is granted."""
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Profile name to constructor arguments that replace the defaults."""

    @final
    def __call__(self, observation: Observation, *, generator: torch.Generator, progress: Progress = silent) -> Reconstruction:
        """Attack all victims of an observation.

        Raises:
            NotGrantedError: the observation lacks what the attack requires.
            AttackError: the attack raised, or returned something malformed; the message names it.
        """
        missing = self.requires - observation.granted
        if missing:
            raise NotGrantedError(f"The attack {self!r} needs {', '.join(sorted(missing))}, which the threat model does not grant.")
        seen = observation.restricted(self.requires | self.uses)
        start = time.perf_counter()
        try:
            state = self.fit(seen.without_update(), generator=generator, progress=progress)
            fitted = time.perf_counter()
            inputs = self.run(seen, state, generator=generator, progress=progress)
        except GitbenchError:
            raise
        except Exception as error:
            raise AttackError(f"The attack {self!r} raised {type(error).__name__}: {error}") from error
        self._check(inputs, observation)
        return Reconstruction(inputs.detach(), fitted - start, time.perf_counter() - fitted)

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress) -> State:
        """Train on the public data alone. The observation holds no update. Returns what :meth:`run` needs."""
        return {}

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        """Reconstruct: ``(V, B, C, H, W)`` in [0, 1]."""
        raise TypeError(f"The attack {self!r} must define run(self, observation, state, *, generator, progress).")

    def _check(self, inputs: object, observation: Observation) -> None:
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        if not isinstance(inputs, torch.Tensor) or inputs.shape != shape:
            found = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
            raise AttackError(f"The attack {self!r} returned {found}, expected a tensor {shape}.")
        if not torch.isfinite(inputs).all():
            raise AttackError(f"The attack {self!r} returned NaN or infinite pixels, expected values in [0, 1].")
        low, high = float(inputs.min()), float(inputs.max())
        if low < 0 or high > 1:
            raise AttackError(f"The attack {self!r} returned pixels in [{low:.3g}, {high:.3g}], expected [0, 1]. Clamp them.")


class Refiner(Attack):
    """An attack that can start from another attack's reconstruction: the right side of ``+``."""

    @final
    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        return self.refine(observation, None, generator=generator, progress=progress)

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor:
        """Reconstruct from ``start`` ``(V, B, C, H, W)``, or from scratch when it is None."""
        raise TypeError(f"The attack {self!r} must define refine(self, observation, start, *, generator, progress).")


class Hybrid(Attack):
    """A prior whose reconstruction starts a refiner: ``ridge+ig``."""

    def __init__(self, *, prior: Attack, refiner: Refiner) -> None:
        self.prior = prior
        self.refiner = refiner
        self.requires = prior.requires | refiner.requires
        self.uses = prior.uses | refiner.uses

    def __repr__(self) -> str:
        return f"{self.prior!r}+{self.refiner!r}"

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress) -> State:
        return self.prior.fit(self._share(observation, self.prior), generator=generator, progress=progress)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        start = self.prior.run(self._share(observation, self.prior), state, generator=generator, progress=progress)
        return self.refiner.refine(self._share(observation, self.refiner), start, generator=generator, progress=progress)

    @staticmethod
    def _share(observation: Observation, attack: Attack) -> Observation:
        return observation.restricted(attack.requires | attack.uses)


def load_attack(attack: str | Attack, *, profile: str = "standard") -> Attack:
    """Build an attack from its SPEC, with the budget of a profile; ``+`` joins priors and a refiner.

    Args:
        attack: a SPEC, or an instance, which is returned as it is.
        profile: ``quick``, ``standard`` or ``paper``. Options in the SPEC win over it.

    Raises:
        SpecError: unknown name or option, or the right side of ``+`` is no refiner.
    """
    if isinstance(attack, Attack):
        return attack
    spec = parse_spec("attack", attack)
    registry.check(spec)
    built = [_build(part, profile) for part in spec.parts]
    joined = built[0]
    for refiner in built[1:]:
        if not isinstance(refiner, Refiner):
            raise SpecError(
                f"Expected a refiner such as ig on the right of + in {attack!r}, got {refiner!r}, which cannot start from an image."
            )
        joined = Hybrid(prior=joined, refiner=refiner)
    return joined


def settings(attack: Attack) -> dict[str, str]:
    """The attack's options as they took effect, defaults and budget included."""
    if isinstance(attack, Hybrid):
        pairs = ((attack.prior, attack.prior._part.target), (attack.refiner, attack.refiner._part.target))
        return {f"{name}.{key}": value for part, name in pairs for key, value in settings(part).items()}
    return {key: repr(value) for key, value in sorted(vars(attack).items()) if not key.startswith("_") and key not in ("requires", "uses")}


def _build(part: Part, profile: str) -> Attack:
    cls = registry.load("attack", part)
    budget = cls.profiles.get(profile, {}) if isinstance(cls, type) and issubclass(cls, Attack) else {}
    attack: Attack = registry.build("attack", part, Attack, **budget)
    return attack
