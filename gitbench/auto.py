"""Auto: the attack that a defense must survive. It runs what can run here, and keeps what explains the update best."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping

import torch

from gitbench.attack import Attack, Candidates, Fits, Fitted, Refiner, State
from gitbench.attacks.git import Git
from gitbench.attacks.ig import IG
from gitbench.attacks.lti import LTI
from gitbench.attacks.ridge import Ridge
from gitbench.errors import AttackError, NotGrantedError
from gitbench.labels import infer_labels
from gitbench.lbfgs import BatchedLbfgs
from gitbench.model import last_linear
from gitbench.observation import Observation
from gitbench.posterior import Posterior
from gitbench.progress import Progress, TimeUp
from gitbench.rehearsal import rehearse

_BLIND = ("git", "lti", "ridge")  # best first, where nothing can be matched for want of parameters
_CLASSES = 20  # of which each is tried where labels cannot be read
_SURE = 0.99  # of rehearsed batches whose labels are read right


class Auto(Attack):
    """An ensemble without anything to tune, after AutoAttack (Croce and Hein, arXiv 2003.01690).

    Of ``ridge``, ``lti`` and ``git``, whichever can run here, each victim keeps the candidate that
    explains its update best; from there a maximum a posteriori search and ``ig`` go on, and each victim keeps what
    explains it better still. The criterion is :class:`gitbench.posterior.Posterior`: the candidate's
    gradient, sent through the defense, against the observed update in units of the noise that rehearsing the
    defense shows. The truth is not looked at. A victim whose update is matched to numerical precision is done.

    Without ``parameters`` nothing can be matched: the strongest attack on public pairs that can be had is all.

    Args:
        seconds: after which the search ends, training apart; None takes every step once. More never gives a
            worse match.
        profile: budget of the attacks within.
    """

    name = "auto"
    requires = frozenset({"architecture"})
    uses = frozenset({"parameters", "public", "labels", "defense"})
    profiles = {"quick": {"profile": "quick"}, "paper": {"profile": "paper"}}

    def __init__(self, *, seconds: float | None = None, profile: str = "standard") -> None:
        if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
            raise ValueError(f"expected seconds > 0, or None for no limit, got {seconds}")
        if profile not in _ITERATIONS:
            raise ValueError(f"expected profile to be one of {', '.join(_ITERATIONS)}, got {profile!r}")
        self.seconds = seconds
        self.profile = profile
        kinds: tuple[type[Attack], ...] = (Ridge, LTI, Git)  # cheapest first
        self._priors = {kind.name: kind(**kind.profiles.get(profile, {})) for kind in kinds}

    def memory(self, observation: Observation) -> int:
        return max((prior.memory(self._share(observation, prior)) for prior in self._able(observation).values()), default=0)

    def _able(self, observation: Observation) -> dict[str, Attack]:
        return {name: prior for name, prior in self._priors.items() if prior.requires <= observation.granted}

    @staticmethod
    def _share(observation: Observation, attack: Attack) -> Observation:
        return observation.restricted(attack.requires | attack.uses)

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        """The states of all parts under their own names, so that they share what they learn with the attacks alone."""
        state: dict[str, torch.Tensor] = {}
        seconds = 0.0
        for name, prior in self._able(observation).items():
            with contextlib.suppress(AttackError):  # one that cannot be had here (its memory, a layer) is none
                prior._check_memory(self._share(observation, prior))
                found = prior._fitted(self._share(observation, prior), generator=generator, progress=progress, fits=fits)
                state |= {f"{name}.{key}": tensor for key, tensor in found.state.items()}
                state[f"{name}."] = torch.tensor(1)
                seconds += found.seconds
        return Fitted(state, seconds)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor | Candidates:
        priors = {name: prior for name, prior in self._priors.items() if f"{name}." in state}

        def candidate(name: str) -> torch.Tensor:
            prefix = f"{name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix) and key != prefix}
            found = priors[name].run(self._share(observation, priors[name]), own, generator=generator, progress=progress)
            return found.inputs if isinstance(found, Candidates) else found

        if "parameters" not in observation.granted:
            best = next((name for name in _BLIND if name in priors), None)
            if best is None:
                raise NotGrantedError("The attack auto needs parameters or public data, and the threat model grants neither.")
            return candidate(best)
        search = _Search(observation, generator=generator, progress=progress, seconds=self.seconds)
        for name in priors:
            search.consider(candidate(name))
        with contextlib.suppress(TimeUp):
            search.go(_ITERATIONS[self.profile])
        return Candidates(search.best)


class _Search:
    """The best candidate of every victim so far, and how it is made better."""

    def __init__(self, observation: Observation, *, generator: torch.Generator, progress: Progress, seconds: float | None) -> None:
        self._observation = observation
        self._generator = generator
        self._clock = _Clock(seconds, progress)
        self._bounded = seconds is not None
        self._rehearsal = rehearse(observation, generator=generator)
        self._posterior = Posterior(observation, self._rehearsal)
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        self.best = torch.full(shape, 0.5, device=observation.device)
        if "public" in observation.granted:
            self.best[:] = observation.public.inputs.mean(0)
        self._classes = last_linear(observation.architecture)[1].out_features
        self._labels = (observation.labels if "labels" in observation.granted else infer_labels(observation)).clone()
        self._sure = "labels" in observation.granted or self._rehearsal.labels >= _SURE
        self._energy = torch.full(shape[:1], math.inf, device=observation.device)
        self._misfit = self._energy.clone()
        self.consider(self.best.clone())

    @property
    def open(self) -> torch.Tensor:
        """Victims whose update is not matched yet."""
        return (~self._posterior.matched(self._misfit)).nonzero().flatten()

    @torch.no_grad()
    def consider(self, inputs: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Keep candidates ``(N, B, C, H, W)`` of some victims where they explain the update better."""
        rows = torch.arange(len(self.best), device=self.best.device) if rows is None else rows
        for labels in self._hypotheses(rows):
            misfit = self._posterior.misfit(inputs, labels, rows=rows)
            energy = self._posterior.energy(misfit, rows=rows) + self._posterior.prior(inputs)
            better = energy < self._energy[rows]
            chosen = rows[better]
            self.best[chosen], self._labels[chosen] = inputs[better], labels[better]
            self._energy[chosen], self._misfit[chosen] = energy[better], misfit[better]

    def go(self, iterations: Mapping[str, int]) -> None:
        for step in (self._descend, self._ig, self._descend):
            if len(self.open):
                step(iterations, self.open)
        while self._bounded and len(self.open):
            self._restart(iterations, self.open)

    def _hypotheses(self, rows: torch.Tensor) -> list[torch.Tensor]:
        if self._sure or self._observation.batch_size > 1 or self._classes > _CLASSES:
            return [self._labels[rows]]
        return [torch.full_like(self._labels[rows], label) for label in range(self._classes)]

    def _descend(self, iterations: Mapping[str, int], rows: torch.Tensor) -> None:
        """L-BFGS on the criterion itself."""
        shape, labels = self.best[rows].shape, self._labels[rows]

        def closure(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                inputs = points.reshape(shape).detach().requires_grad_()
                energy = self._posterior(inputs, labels, rows=rows)
                (gradient,) = torch.autograd.grad(energy.sum(), inputs)
            return energy.detach(), gradient.flatten(1)

        optimizer = BatchedLbfgs(self.best[rows].flatten(1), history=50)
        best, lowest = optimizer.points.clone(), self._energy[rows].clone()
        active = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        try:
            for iteration in range(iterations["descend"]):
                points = optimizer.points
                energy = optimizer.step(closure, active=active)
                better = energy < lowest
                best[better], lowest[better] = points[better], energy[better]
                self._clock("auto: posterior", iteration + 1, iterations["descend"])
        finally:
            self.consider(best.reshape(shape).clamp(0, 1), rows)

    def _ig(self, iterations: Mapping[str, int], rows: torch.Tensor) -> None:
        self._refine(IG(iterations=iterations["ig"], labels="known", adapt=self._rehearsal.sloped), rows, self.best[rows])

    def _restart(self, iterations: Mapping[str, int], rows: torch.Tensor) -> None:
        self._refine(IG(iterations=iterations["ig"], labels="known", adapt=self._rehearsal.sloped), rows, None)

    def _refine(self, refiner: Refiner, rows: torch.Tensor, start: torch.Tensor | None) -> None:
        observation = self._observation.of_victims(rows, labels=self._labels[rows])
        found = refiner.refine(observation, start, generator=self._generator, progress=self._clock)
        self.consider(found.inputs if isinstance(found, Candidates) else found, rows)
        self._clock("auto", 1, 1)


class _Clock:
    """Tells progress on, and ends the search when its own time is over."""

    def __init__(self, seconds: float | None, progress: Progress) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._progress = progress

    def __call__(self, what: str, done: int, total: int) -> None:
        self._progress(what, done, total)
        if self._end is not None and time.monotonic() >= self._end:
            raise TimeUp


_ITERATIONS: Mapping[str, Mapping[str, int]] = {
    "quick": {"descend": 50, "ig": 50},
    "standard": {"descend": 200, "ig": 400},
    "paper": {"descend": 1000, "ig": 4800},
}
