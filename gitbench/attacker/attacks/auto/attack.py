"""Auto: the attack that a defense must survive. It runs what can run here, and keeps what explains the update best."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Attack, Fits, Fitted, State, load_attack
from gitbench.attacker.attacks.auto.bottleneck import before_the_bottleneck
from gitbench.attacker.attacks.auto.explained import best_explained, parts_on
from gitbench.attacker.attacks.auto.played import with_played_victims
from gitbench.attacker.attacks.auto.preparation import Behind
from gitbench.attacker.attacks.auto.search import EnsembleSearch, SearchBudget, inputs_of
from gitbench.attacker.attacks.gias import GIAS
from gitbench.attacker.attacks.gifd import GIFD
from gitbench.attacker.attacks.git.attack import Git
from gitbench.attacker.attacks.gradinversion import GradInversion
from gitbench.attacker.attacks.lti import LTI
from gitbench.attacker.attacks.recursion.attack import Recursion
from gitbench.attacker.attacks.ridge import Ridge
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import AttackOptions
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.last_layer import can_be_solved
from gitbench.attacker.tools.priors import Gaussian
from gitbench.clients.activation import switches
from gitbench.core.errors import AttackError, ModelError, NotGrantedError
from gitbench.core.progress import Progress, TimeUp
from gitbench.identity.threat import Knowledge

_MORE: Mapping[str, type[Attack]] = {kind.name: kind for kind in (GIAS, GIFD, GradInversion)}
"""Attacks that run beside the others where they are asked for."""
_WITHOUT_PARAMETERS = ("git", "lti", "ridge")  # best first, where nothing can be matched for want of parameters


_BUDGETS: Mapping[str, SearchBudget] = {
    "quick": SearchBudget(posterior=40, ig=20, played=16, own=40),
    "standard": SearchBudget(posterior=200, ig=300, played=32, own=200),
    "paper": SearchBudget(posterior=1000, ig=4800, played=64, own=1000),
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
            also: attacks on images that run too, each with its defaults: ``('gifd',)``. What they find are further candidates.
                Where a model that draws is cut before the layer that does, they do not run.
        """

        seconds: float | None = None
        profile: str = "standard"
        also: Sequence[str] = ()

        def __post_init__(self) -> None:
            wrong = [name for name in self.also if name not in _MORE]
            if isinstance(self.also, str) or wrong:
                raise ValueError(f"expected also to name attacks out of {', '.join(_MORE)}, such as ('gifd',), got {self.also!r}")
            if self.seconds is not None and not (math.isfinite(self.seconds) and self.seconds > 0):
                raise ValueError(f"expected seconds > 0, or None for no limit, got {self.seconds}")
            self.check_choice("profile", tuple(_BUDGETS))

        @property
        def needs(self) -> frozenset[Knowledge]:
            return frozenset().union(*(_MORE[name].requires for name in self.also))

    options: Options

    @functools.cached_property
    def _priors(self) -> dict[str, Attack]:
        more = [_MORE[name] for name in self.options.also]
        kinds: list[type[Attack]] = [Ridge, Recursion, LTI, Git, *more]  # cheapest first
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
        if others and self.options.also:
            raise AttackError(f"{self!r} was asked for attacks on images, and these are inputs of another kind: leave out also=.")
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
            return inputs_of(priors[name].run(known, own, generator=generator, progress=progress))

        if "parameters" not in observation.granted:
            best = next((name for name in _WITHOUT_PARAMETERS if name in priors), None)
            if best is None:
                raise NotGrantedError("The attack auto needs parameters or public data, and the threat model grants neither.")
            return candidate(best)
        prior = Gaussian.stored(state, "recursion.image") if "recursion.image.mean" in state else None
        search = EnsembleSearch(attacked, prior=prior, generator=generator, progress=progress, seconds=self.options.seconds)
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
