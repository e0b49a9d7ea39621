"""What auto does with its candidates: it keeps what explains each update best, and searches on from there."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gitbench.attacker.attacks.auto.criterion import Criterion
from gitbench.attacker.attacks.auto.own_inputs import OwnInputs
from gitbench.attacker.attacks.auto.signs import from_signs, sends_signs
from gitbench.attacker.attacks.ig import IG
from gitbench.attacker.observation import Observation
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.last_layer import solved_inputs
from gitbench.attacker.tools.priors import Gaussian
from gitbench.attacker.tools.rehearsal import rehearse
from gitbench.attacker.tools.trust import fitted_shares
from gitbench.clients.model import classes_of
from gitbench.core.errors import ModelError
from gitbench.core.progress import Progress, TimeUp

_MOST_CLASSES = 20  # of which each is tried where labels cannot be read
_SURE = 0.99  # of rehearsed batches whose labels are read right
_EXPLAINED = 4.0  # squared deviations of an entry


@dataclass(frozen=True)
class SearchBudget:
    """Iterations of each search (``own``: with own inputs), and how many public batches play victims beside the victims."""

    posterior: int
    ig: int
    played: int
    own: int


class EnsembleSearch:
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

    def run(self, budget: SearchBudget) -> None:
        """Every step once; again with other starts as long as there is time, if time is the limit."""
        if sends_signs(self._observation.update):  # how far a gradient is from its sign says little
            self._from_signs(budget)
            return
        if len(self.unmatched):
            self._minimise(self.unmatched, budget.posterior, whitened=True)
        # Where noise explains the rest, what follows would only fit the noise.
        steps: tuple[Callable[[torch.Tensor, SearchBudget], None], ...] = (self._pixels, self._ig, self._pixels)
        for step in steps:
            if len(self.unexplained):
                step(self.unexplained, budget)
        while self._bounded and len(self.unexplained):
            self._restart(self.unexplained, budget)

    def _from_signs(self, budget: SearchBudget) -> None:
        def tell(done: int, total: int) -> None:
            self._clock("auto: signs of gradients", done, total)

        self.consider(from_signs(self._observation, self.labels, self.criterion.image, iterations=budget.posterior, tell=tell))

    def own_inputs(self, start: torch.Tensor, budget: SearchBudget) -> None:
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

    def _pixels(self, rows: torch.Tensor, budget: SearchBudget) -> None:
        self._minimise(rows, budget.posterior, whitened=False)

    def _minimise(self, rows: torch.Tensor, iterations: int, *, whitened: bool) -> None:
        def tell(done: int) -> None:
            self._clock("auto: posterior", done, iterations)

        found = self.criterion.minimised(
            self.best[rows], self.labels[rows], rows=rows, iterations=iterations, whitened=whitened, tell=tell
        )  # fmt: skip
        self.consider(found, rows)
        self._clock("auto", 1, 1)

    def _ig(self, rows: torch.Tensor, budget: SearchBudget) -> None:
        self._refine(rows, budget.ig, self.best[rows])

    def _restart(self, rows: torch.Tensor, budget: SearchBudget) -> None:
        self._refine(rows, budget.ig, None)

    def _refine(self, rows: torch.Tensor, iterations: int, start: torch.Tensor | None) -> None:
        observation = self._observation.of_victims(rows, labels=self.labels[rows])
        if not self.rehearsal.sloped:
            observation = observation.undefended()
        refiner = IG(iterations=iterations, labels="known")
        self.consider(inputs_of(refiner.refine(observation, start, generator=self._generator, progress=self._clock)), rows)
        self._clock("auto", 1, 1)


def inputs_of(found: torch.Tensor | Candidates) -> torch.Tensor:
    """What an attack found, whatever else it says of it."""
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
