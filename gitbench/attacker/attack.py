"""The attack: from an observation to a reconstruction. It never sees the truth and never scores itself."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, final

import torch

from gitbench.attacker.granted import check_knowledge
from gitbench.attacker.learning import Checkpoint, NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AdaptiveOptions, AttackOptions
from gitbench.attacker.playing import Play, played
from gitbench.attacker.reconstruction import Candidates, Reconstruction
from gitbench.core.component import Component
from gitbench.core.errors import AttackError, GitbenchError, NotGrantedError, SpecError
from gitbench.core.memory import available_memory
from gitbench.core.progress import Progress, silent
from gitbench.core.spec import Part
from gitbench.identity.loading import build_part, checked_spec, load_part
from gitbench.identity.threat import Knowledge

State = Mapping[str, torch.Tensor]
Fit = Callable[[torch.Generator, Checkpoint], State]
_GIB = 2**30
_KNOWLEDGE_FIELDS = ("requires", "uses", "fit_uses")
_PRIOR, _REFINER = "prior.", "refiner."  # of a hybrid's state
_ONCE = ("is not implemented", "double backward", "does not require grad")  # what torch says of a second derivative that it does not have


@dataclass(frozen=True)
class Fitted:
    """What an attack learned, and the seconds that learning it took (when it was done, if it is taken from a cache)."""

    state: State
    seconds: float


class Fits(Protocol):
    """Keeps what attacks learned, so that they learn it once."""

    def get(self, attack: Attack, observation: Observation, fit: Fit) -> Fitted:
        """The state of ``attack``, kept or learned now.

        Args:
            attack: no hybrid: a hybrid asks for its prior.
            observation: what the attack is fitted on; it holds no update.
            fit: learns it, with a generator and a checkpoint that are this call's to choose.
        """


class Attack(Component):
    """Base of all attacks: subclasses define :meth:`run` and say what they read.

    What it can be told are the fields of its class :attr:`Options`; their defaults are the ``standard`` budget, which
    :attr:`profiles` changes for the others. A subclass may define a constructor of its own instead.
    """

    modalities: tuple[str, ...] | None = ("image",)
    """Names of the kinds of data that the attack can do; None for one that does whatever can be optimised."""
    requires: frozenset[Knowledge] = frozenset()
    """Knowledge without which the attack cannot run."""
    uses: frozenset[Knowledge] = frozenset()
    """Knowledge that it reads when it is granted."""
    adapt: bool = True
    """False for the attacker that knows neither the defense nor what clients do: both are then withheld, even where they are granted."""
    fit_uses: frozenset[Knowledge] | None = None
    """What of it :meth:`fit` reads, where that is less: states are shared between cells that differ in the rest only, in their models too
    where it leaves out ``architecture``."""
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Profile name to options that replace the defaults."""
    Options: ClassVar[type[AttackOptions]] = AttackOptions
    """A frozen, keyword-only dataclass: names, types, defaults and checks of the options."""
    options: Any
    """The options that this attack was built with; a subclass with a class ``Options`` of its own declares the type."""

    def __init__(self, **options: Any) -> None:
        chosen = self.options = self.Options(**options)
        if isinstance(chosen, AdaptiveOptions):
            self.adapt = chosen.adapt
        if chosen.needs:
            self.requires = self.requires | chosen.needs

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in _KNOWLEDGE_FIELDS:
            check_knowledge(cls, name, getattr(cls, name))

    def __setattr__(self, name: str, value: object) -> None:
        if name in _KNOWLEDGE_FIELDS:
            check_knowledge(type(self), name, value)
        super().__setattr__(name, value)

    @final
    def __call__(
        self, observation: Observation, *, generator: torch.Generator, progress: Progress = silent, fits: Fits | None = None
    ) -> Reconstruction:
        """Attack all victims of an observation.

        Args:
            observation: the update and what is known.
            generator: for the attack's randomness. With ``fits`` it is not used for fitting: a state
                that is taken from there leaves the rest as it would have been.
            progress: told what is going on.
            fits: where to take what the attack learns from, and to keep it; None learns it anew.

        Raises:
            NotGrantedError: the observation lacks what the attack requires.
            AttackError: the attack raised, needs more memory than there is, or returned something
                malformed; the message names it.
        """
        kind = observation.modality.name
        if self.modalities is not None and kind not in self.modalities:
            raise AttackError(f"The attack {self!r} is one on {' and '.join(self.modalities)} data, and this is {kind} data.")
        missing = self.requires - observation.granted
        if missing:
            raise NotGrantedError(f"The attack {self!r} needs {', '.join(sorted(missing))}, which the threat model does not grant.")
        seen = self.seen_of(observation)
        try:
            self._check_memory(seen)
            fitted = self._fitted(seen.without_update(), generator=generator, progress=progress, fits=fits)
            start = time.perf_counter()
            found = self.run(seen, fitted.state, generator=generator, progress=progress)
        except GitbenchError:
            raise
        except Exception as error:
            if any(said in str(error) for said in _ONCE):
                raise AttackError(
                    f"The attack {self!r} differentiates the update, and a layer of {type(observation.architecture).__name__} has no "
                    f"second derivative ({str(error).splitlines()[0]}). Use ridge, git(variant='module') or lti, which do without."
                ) from error
            raise AttackError(f"The attack {self!r} raised {type(error).__name__}: {error}") from error
        candidates = found if isinstance(found, Candidates) else Candidates(found)
        self._check(candidates.inputs, observation)
        seconds = time.perf_counter() - start
        return Reconstruction(candidates.inputs.detach(), fitted.seconds, seconds, candidates.still_improving, candidates.flags)

    def seen_of(self, observation: Observation) -> Observation:
        """What of an observation this attack sees: what it names, and a plain gradient where it does not adapt."""
        seen = observation.restricted(self.requires | self.uses)
        return seen if self.adapt else seen.oblivious()

    def memory(self, observation: Observation) -> int:
        """Bytes that :meth:`fit` and :meth:`run` take at their peak, beyond data and model; 0 if little.

        An attack that would not fit is refused before it starts: the system would kill the whole run.
        """
        return 0

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        """Train on the public data alone. The observation holds no update.

        Args:
            observation: what is known.
            generator: for everything random, so that the same seed gives the same state.
            progress: told what is going on.
            checkpoint: for :func:`gitbench.attacker.learning.train_network`.

        Returns:
            What :meth:`run` needs, and leaves as it is: tensors by name. They are kept and shared.
        """
        return {}

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor | Candidates:
        """Reconstruct: ``(V, B, *shape)``, valid inputs; of images ``(V, B, C, H, W)`` in [0, 1]."""
        raise TypeError(f"The attack {self!r} must define run(self, observation, state, *, generator, progress).")

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        if self.fit_uses is not None:
            observation = observation.restricted(self.fit_uses)
            if "architecture" not in self.fit_uses:
                observation = observation.without_model()

        def fit(generator: torch.Generator, checkpoint: Checkpoint) -> State:
            return self.fit(observation, generator=generator, progress=progress, checkpoint=checkpoint)

        return self._kept(observation, fit, generator=generator, fits=None if type(self).fit is Attack.fit else fits)

    def _kept(self, observation: Observation, fit: Fit, *, generator: torch.Generator, fits: Fits | None) -> Fitted:
        """What ``fit`` learns, or learned before."""

        def checked(generator: torch.Generator, checkpoint: Checkpoint) -> State:
            state = fit(generator, checkpoint)
            self._check_state(state)
            return state

        if fits is not None:
            return fits.get(self, observation, checked)
        start = time.perf_counter()
        return Fitted(checked(generator, NoCheckpoint()), time.perf_counter() - start)

    def _check_memory(self, observation: Observation) -> None:
        needed, available = self.memory(observation), available_memory(observation.device)
        if available is not None and needed > available:
            raise AttackError(
                f"The attack {self!r} needs about {needed / _GIB:.1f} GiB, {available / _GIB:.1f} GiB are available: "
                "lower limit= (its public examples), the batch size or the number of victims."
            )

    def _check_state(self, state: object) -> None:
        if not isinstance(state, Mapping):
            found = type(state).__name__
        else:
            wrong = {name: tensor for name, tensor in state.items() if not isinstance(tensor, torch.Tensor)}
            found = ", ".join(f"{name}: {type(value).__name__}" for name, value in wrong.items())
        if found:
            raise AttackError(f"The fit() of the attack {self!r} returned something else: expected tensors by name, got {found}.")

    def _check(self, inputs: object, observation: Observation) -> None:
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        if not isinstance(inputs, torch.Tensor) or inputs.shape != shape:
            found = tuple(inputs.shape) if isinstance(inputs, torch.Tensor) else type(inputs).__name__
            raise AttackError(f"The attack {self!r} returned {found}, expected a tensor {shape}.")
        problem = observation.modality.problem(inputs)
        if problem:
            raise AttackError(f"The attack {self!r} returned what is no {observation.modality.noun}: {problem}.")


class Refiner(Attack):
    """An attack that can start from another attack's reconstruction: the right side of ``+``."""

    @final
    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor | Candidates:
        play = functools.partial(played, observation, view=self.seen_of)
        return self.refine_learned(observation, None, state, play=play, generator=generator, progress=progress)

    def refine(
        self, observation: Observation, start: torch.Tensor | None, *, generator: torch.Generator, progress: Progress
    ) -> torch.Tensor | Candidates:
        """Reconstruct from ``start`` ``(V, B, *shape)``, or from scratch when it is None."""
        raise TypeError(f"The attack {self!r} must define refine(self, observation, start, *, generator, progress).")

    def refine_learned(
        self, observation: Observation, start: torch.Tensor | None, state: State, *, play: Play, generator: torch.Generator,
        progress: Progress,
    ) -> torch.Tensor | Candidates:  # fmt: skip
        """What is called: override it in place of :meth:`refine` for what :meth:`fit` learned, and to try the attack before on public data.

        Args:
            observation: as for :meth:`run`.
            start: as for :meth:`refine`.
            state: of :meth:`fit`, whatever attack came before.
            play: needs ``public``; take the batches from :attr:`Observation.kept`, on which no attack was fitted.
            generator: for everything random.
            progress: told what is going on.
        """
        return self.refine(observation, start, generator=generator, progress=progress)


class Hybrid(Attack):
    """A prior whose reconstruction starts a refiner: ``ridge+ig``."""

    def __init__(self, *, prior: Attack, refiner: Refiner) -> None:
        self.prior = prior
        self.refiner = refiner
        self.requires = prior.requires | refiner.requires
        self.uses = prior.uses | refiner.uses
        both = [part.modalities for part in (prior, refiner) if part.modalities is not None]
        self.modalities = tuple(name for name in both[0] if all(name in each for each in both)) if both else None

    def __repr__(self) -> str:
        return f"{self.prior!r}+{self.refiner!r}"

    def memory(self, observation: Observation) -> int:
        return max(part.memory(part.seen_of(observation)) for part in (self.prior, self.refiner))

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        def learned(part: Attack) -> State:
            return part.fit(part.seen_of(observation), generator=generator, progress=progress, checkpoint=checkpoint)

        return _joined(learned(self.prior), learned(self.refiner))

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        # Each part's own state, under its own name: the part alone and all its hybrids share it.
        def learned(part: Attack) -> Fitted:
            return part._fitted(part.seen_of(observation), generator=generator, progress=progress, fits=fits)

        prior, refiner = learned(self.prior), learned(self.refiner)
        return Fitted(_joined(prior.state, refiner.state), prior.seconds + refiner.seconds)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor | Candidates:
        def reconstructed(observation: Observation) -> torch.Tensor:
            found = self.prior.run(self.prior.seen_of(observation), _part(state, _PRIOR), generator=generator, progress=progress)
            return found.inputs if isinstance(found, Candidates) else found

        own, start = self.refiner.seen_of(observation), reconstructed(observation)
        play = functools.partial(played, observation, view=self.refiner.seen_of, before=reconstructed)
        return self.refiner.refine_learned(own, start, _part(state, _REFINER), play=play, generator=generator, progress=progress)


def _joined(prior: State, refiner: State) -> State:
    """The states of both parts of a hybrid as one."""
    return {f"{_PRIOR}{name}": tensor for name, tensor in prior.items()} | {f"{_REFINER}{name}": tensor for name, tensor in refiner.items()}


def _part(state: State, prefix: str) -> State:
    """The inverse of :func:`_joined`."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


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
    built = [_build(part, profile) for part in checked_spec("attack", attack).parts]
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
    found = {key: value for key, value in vars(attack).items() if not key.startswith("_") and key not in ("requires", "uses")}
    if isinstance(found.get("options"), AttackOptions):
        found |= found.pop("options").values()
    return {key: repr(value) for key, value in sorted(found.items())}


def _build(part: Part, profile: str) -> Attack:
    cls = load_part("attack", part)
    budget = cls.profiles.get(profile, {}) if isinstance(cls, type) and issubclass(cls, Attack) else {}
    attack: Attack = build_part("attack", part, Attack, **budget)
    return attack
