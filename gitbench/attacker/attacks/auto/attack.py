"""Auto: the attack that a defense must survive. It runs what can run here, and keeps what explains the update best."""

from __future__ import annotations

import contextlib
import functools
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Attack, Candidates, Fits, Fitted, State, load_attack
from gitbench.attacker.attacks.auto.bottleneck import before_the_bottleneck
from gitbench.attacker.attacks.auto.criterion import Criterion
from gitbench.attacker.attacks.auto.explained import best_explained, parts_on
from gitbench.attacker.attacks.auto.own_inputs import OwnInputs
from gitbench.attacker.attacks.auto.played import with_played_victims
from gitbench.attacker.attacks.auto.preparation import Behind
from gitbench.attacker.attacks.git.attack import Git
from gitbench.attacker.attacks.ig import IG
from gitbench.attacker.attacks.lti import LTI
from gitbench.attacker.attacks.recursion.attack import Recursion
from gitbench.attacker.attacks.ridge import Ridge
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AttackOptions
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.last_layer import can_be_solved, solved_inputs
from gitbench.attacker.tools.priors import Gaussian
from gitbench.attacker.tools.rehearsal import rehearse
from gitbench.attacker.tools.trust import fitted_shares
from gitbench.clients.activation import switches
from gitbench.clients.model import classes_of
from gitbench.core.errors import AttackError, ModelError, NotGrantedError
from gitbench.core.progress import Progress, TimeUp

_WITHOUT_PARAMETERS = ("git", "lti", "ridge")  # best first, where nothing can be matched for want of parameters
_MOST_CLASSES = 20  # of which each is tried where labels cannot be read
_SURE = 0.99  # of rehearsed batches whose labels are read right
_EXPLAINED = 4.0  # squared deviations of an entry


@dataclass(frozen=True)
class _Budget:
    """Iterations of each search (``own``: with own inputs), and how many public batches play victims beside the victims."""

    posterior: int
    ig: int
    played: int
    own: int


_BUDGETS: Mapping[str, _Budget] = {
    "quick": _Budget(posterior=40, ig=20, played=16, own=40),
    "standard": _Budget(posterior=200, ig=300, played=32, own=200),
    "paper": _Budget(posterior=1000, ig=4800, played=64, own=1000),
}


class Auto(Attack):
    """An ensemble without anything to tune, after AutoAttack (Croce and Hein, arXiv 2003.01690).

    ``ridge``, ``recursion``, ``lti`` and ``git`` run where they can. Each victim goes on from the candidate that explains its
    update best, by the criterion of :class:`gitbench.attacker.attacks.auto.criterion.Criterion`: the candidate's gradient, sent
    through the defense, against the observed update in units of the noise that rehearsing the defense
    shows. Two searches lower that criterion, and ``ig`` goes its own way. A batch whose last layer can be solved is searched
    with each example's own inputs of that layer: once more, or, where units switch, in place of those searches.

    Public images that nothing was fitted on play victims beside the victims. On them the truth is known, and
    they say in which shares the candidates are believed. A victim whose update is matched to numerical precision needs no such
    doubt. The victims' own truth is not looked at.

    Without ``parameters`` nothing can be matched: the strongest attack on public pairs that can be had is all.

    On text the parts are others (:mod:`gitbench.attacker.attacks.auto.explained`).
    """

    name = "auto"
    modalities = ("image", "text")
    requires = frozenset({"architecture"})
    uses = frozenset({"parameters", "public", "defense", "labels", "batchnorm_statistics"})
    profiles = {"quick": {"profile": "quick"}, "paper": {"profile": "paper"}}

    @dataclass(frozen=True, kw_only=True)
    class Options(AttackOptions):
        """Of :class:`Auto`.

        Args:
            seconds: after which the search ends, training apart; None takes every step once. What more of them find is believed
                only where it helped the images that play victims.
            profile: budget of the attacks within.
        """

        seconds: float | None = None
        profile: str = "standard"

        def __post_init__(self) -> None:
            if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
                raise ValueError(f"expected seconds > 0, or None for no limit, got {self.seconds}")
            self.check_choice("profile", tuple(_BUDGETS))

    options: Options

    @functools.cached_property
    def _priors(self) -> dict[str, Attack]:
        kinds: tuple[type[Attack], ...] = (Ridge, Recursion, LTI, Git)  # cheapest first
        return {kind.name: load_attack(kind.name, profile=self.options.profile) for kind in kinds}

    @functools.cached_property
    def _before(self) -> Attack:
        return load_attack("recursion(adapt=False)", profile=self.options.profile)

    @functools.cached_property
    def _behind(self) -> Attack:
        return Behind(profile=self.options.profile, iterations=_BUDGETS[self.options.profile].posterior)

    def memory(self, observation: Observation) -> int:
        """Of the least demanding part: one that does not fit is left out (:meth:`_fitted`)."""
        attacked, parts = self._attacked(observation)
        return min((prior.memory(prior.seen_of(attacked)) for prior in parts.values()), default=0)

    def _attacked(self, observation: Observation) -> tuple[Observation, dict[str, Attack]]:
        """What is attacked, and the parts that can run there."""
        cut = before_the_bottleneck(observation)
        # Its labels are no classes, which the other parts need.
        return (observation, self._that_can_run(observation)) if cut is None else (cut, {"recursion": self._before})

    def _that_can_run(self, observation: Observation) -> dict[str, Attack]:
        kind = observation.modality.name
        fit = {name: prior for name, prior in self._priors.items() if prior.modalities is None or kind in prior.modalities}
        found = {name: prior for name, prior in fit.items() if prior.requires <= observation.granted}
        return found | {"behind": self._behind} if Behind.applies(observation) else found

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        """The states of all parts under their own names, so that they share what they learn with the attacks alone."""
        state: dict[str, torch.Tensor] = {}
        seconds = 0.0
        attacked, parts = self._attacked(observation)
        for name, prior in parts.items():
            with contextlib.suppress(AttackError, ModelError):  # one that cannot be had here (its memory, a layer) is none
                share = prior.seen_of(attacked)
                prior._check_memory(share)
                found = prior._fitted(share, generator=generator, progress=progress, fits=fits)
                state |= {f"{name}.{key}": tensor for key, tensor in found.state.items()}
                state[f"{name}."] = torch.tensor(1)
                seconds += found.seconds
        return Fitted(state, seconds)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor | Candidates:
        others = parts_on(observation.modality.name, profile=self.options.profile)
        if others:
            return best_explained(others, observation, generator=generator, progress=progress)
        attacked, played, budget = observation, None, _BUDGETS[self.options.profile]
        if "parameters" in observation.granted:
            attacked, played = with_played_victims(observation, budget.played, generator)
        attacked, parts = self._attacked(attacked)
        priors = {name: prior for name, prior in parts.items() if f"{name}." in state}

        def candidate(name: str) -> torch.Tensor:
            prefix = f"{name}."
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix) and key != prefix}
            # Granted labels are no part's own to ask for: what would infer them takes them.
            known = attacked.restricted(priors[name].requires | priors[name].uses | {"labels"})
            return _inputs(priors[name].run(known, own, generator=generator, progress=progress))

        if "parameters" not in observation.granted:
            best = next((name for name in _WITHOUT_PARAMETERS if name in priors), None)
            if best is None:
                raise NotGrantedError("The attack auto needs parameters or public data, and the threat model grants neither.")
            return candidate(best)
        prior = Gaussian.stored(state, "recursion.image") if "recursion.image.mean" in state else None
        search = _Search(attacked, prior=prior, generator=generator, progress=progress, seconds=self.options.seconds)
        with contextlib.suppress(TimeUp):  # what was found by then is returned
            found: dict[str, torch.Tensor] = {}
            for name in priors:
                found[name] = candidate(name)
                search.consider(found[name])
            solvable = "ridge" in found and can_be_solved(attacked)
            if solvable and switches(attacked.model):  # there the other searches take long and come less near
                search.own_inputs(found["ridge"], budget)
            search.run(budget)
            if solvable:  # of those that were searched already, nothing is left
                search.own_inputs(found["ridge"], budget)
        return search.mixed(played)


class _Search:
    """The candidates of every victim, and the best of them so far."""

    def __init__(
        self, observation: Observation, *, prior: Gaussian | None, generator: torch.Generator, progress: Progress, seconds: float | None
    ) -> None:
        self._observation = observation
        self._generator = generator
        self._clock = _Stopwatch(seconds, progress)
        self._bounded = seconds is not None
        self.rehearsal = rehearse(observation, generator=generator)
        self.criterion = Criterion(observation, self.rehearsal, prior)
        self._classes = classes_of(observation.architecture)
        self.labels = self._inferred()
        self._sure = "labels" in observation.granted or self.rehearsal.labels >= _SURE
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        self.best = torch.full(shape, 0.5, device=observation.device)
        if "public" in observation.granted:
            self.best[:] = observation.public.inputs.mean(0)
        self.candidates = [self.best.clone()]  # each of all victims
        self.energy = torch.full(shape[:1], math.inf, device=observation.device)
        self.misfit = self.energy.clone()
        self._searched = torch.zeros_like(self.misfit, dtype=torch.bool)
        self._keep(self.best.clone(), self._all_rows)

    def _inferred(self) -> torch.Tensor:
        """Labels ``(V, B)``; any, where they cannot be read and all are tried."""
        try:
            return infer_labels(self._observation)
        except ModelError:
            if self._observation.batch_size > 1 or self._classes > _MOST_CLASSES:
                raise
            return torch.zeros(self._observation.update.victims, 1, dtype=torch.long, device=self._observation.device)

    @property
    def _all_rows(self) -> torch.Tensor:
        return torch.arange(len(self.best), device=self.best.device)

    @property
    def unmatched(self) -> torch.Tensor:
        """Victims whose update is not matched to numerical precision, and that :meth:`own_inputs` has not searched."""
        return (~self.criterion.matched(self.misfit) & ~self._searched).nonzero().flatten()

    @property
    def unexplained(self) -> torch.Tensor:
        """Those among them that leave more than the noise."""
        found = self.unmatched
        return found[self.misfit[found] > _EXPLAINED * self.criterion.entries[found]]

    def consider(self, inputs: torch.Tensor, rows: torch.Tensor | None = None) -> None:
        """Candidates ``(N, B, C, H, W)`` of some victims; the best so far are those of the others."""
        rows = self._all_rows if rows is None else rows
        found, every = inputs.clamp(0, 1), self.best.clone()
        every[rows] = found
        self._keep(found, rows)
        self.candidates.append(every)

    def run(self, budget: _Budget) -> None:
        """Every step once; again with other starts as long as there is time, if time is the limit."""
        if len(self.unmatched):
            self._minimise(self.unmatched, budget.posterior, whitened=True)
        # Where noise explains the rest, what follows would only fit the noise.
        steps: tuple[Callable[[torch.Tensor, _Budget], None], ...] = (self._pixels, self._ig, self._pixels)
        for step in steps:
            if len(self.unexplained):
                step(self.unexplained, budget)
        while self._bounded and len(self.unexplained):
            self._restart(self.unexplained, budget)

    def own_inputs(self, start: torch.Tensor, budget: _Budget) -> None:
        """Of batches whose last layer can be solved: go on from images ``(V, B, C, H, W)`` that were read off it."""
        noisy = any(self.rehearsal.deviation.values()) or self.rehearsal.scale != "known" or not self.rehearsal.sloped
        if noisy or not len(self.unmatched):
            return
        solution = solved_inputs(self._observation, self.labels, progress=self._clock)
        rows = self.unmatched[solution.solved[self.unmatched]]
        if not len(rows):
            return
        observation = self._observation.of_victims(rows, labels=self.labels[rows])
        known = OwnInputs(observation, self.labels[rows], solution.inputs[rows], self.criterion.image)
        found = known.search(start[rows], iterations=budget.own, progress=self._clock).clamp(0, 1)
        with torch.no_grad():
            better = known.value(found) < known.value(self.best[rows])
        self.best[rows[better]] = found[better]
        self._searched[rows] = True

    def mixed(self, played: torch.Tensor | None) -> torch.Tensor:
        """The candidates of the victims, in the shares that serve those that are played best.

        Args:
            played: the truth of the last victims, which are played; None where there are none.
        """
        if played is None or not len(played):
            return self.best
        candidates = torch.stack([*self.candidates, self.best])
        shares = fitted_shares(candidates[:, -len(played) :], played)
        mixed = torch.einsum("k,kvbchw->vbchw", shares, candidates)
        matched = self.criterion.matched(self.misfit)[:, None, None, None, None]
        return torch.where(matched, self.best, mixed)[: -len(played)].clamp(0, 1)

    @torch.no_grad()
    def _keep(self, inputs: torch.Tensor, rows: torch.Tensor) -> None:
        for labels in self._labels_to_try(rows):
            misfit = self.criterion.misfit(inputs, labels, rows=rows)
            energy = self.criterion.energy(misfit, rows=rows) + self.criterion.prior(inputs)
            better = energy < self.energy[rows]
            chosen = rows[better]
            self.best[chosen], self.labels[chosen] = inputs[better], labels[better]
            self.energy[chosen], self.misfit[chosen] = energy[better], misfit[better]

    def _labels_to_try(self, rows: torch.Tensor) -> list[torch.Tensor]:
        if self._sure or self._observation.batch_size > 1 or self._classes > _MOST_CLASSES:
            return [self.labels[rows]]
        return [torch.full_like(self.labels[rows], label) for label in range(self._classes)]

    def _pixels(self, rows: torch.Tensor, budget: _Budget) -> None:
        self._minimise(rows, budget.posterior, whitened=False)

    def _minimise(self, rows: torch.Tensor, iterations: int, *, whitened: bool) -> None:
        def tell(done: int) -> None:
            self._clock("auto: posterior", done, iterations)

        found = self.criterion.minimised(
            self.best[rows], self.labels[rows], rows=rows, iterations=iterations, whitened=whitened, tell=tell
        )  # fmt: skip
        self.consider(found, rows)
        self._clock("auto", 1, 1)

    def _ig(self, rows: torch.Tensor, budget: _Budget) -> None:
        self._refine(rows, budget.ig, self.best[rows])

    def _restart(self, rows: torch.Tensor, budget: _Budget) -> None:
        self._refine(rows, budget.ig, None)

    def _refine(self, rows: torch.Tensor, iterations: int, start: torch.Tensor | None) -> None:
        observation = self._observation.of_victims(rows, labels=self.labels[rows])
        if not self.rehearsal.sloped:
            observation = observation.undefended()
        refiner = IG(iterations=iterations, labels="known")
        self.consider(_inputs(refiner.refine(observation, start, generator=self._generator, progress=self._clock)), rows)
        self._clock("auto", 1, 1)


def _inputs(found: torch.Tensor | Candidates) -> torch.Tensor:
    return found.inputs if isinstance(found, Candidates) else found


class _Stopwatch:
    """Tells progress on, and ends the search when its own time is over."""

    def __init__(self, seconds: float | None, progress: Progress) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds
        self._progress = progress

    def __call__(self, what: str, done: int, total: int) -> None:
        self._progress(what, done, total)
        if self._end is not None and time.monotonic() >= self._end:
            raise TimeUp
