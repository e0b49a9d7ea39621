"""Batches whose last layer is solved: each example's own inputs of that layer are matched beside all layers' gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import forward_features, passed
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.optimisation import AdamOptimisation, Best
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.activation import switches
from gitbench.clients.client import expected_update
from gitbench.clients.model import last_linear
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator, randn_like

# These four were chosen on held-out public batches, the weight and the rate in plain units (docs/attacks.md).
_FLOOR = 1e-2  # of the deviations of a tensor's entries over public images: no direction counts as certain
_WEIGHT = 3.0  # of the prior, where the size of the departures is not known
_RATE = 0.05
_STAGES = ((1e-1, 0.2), (1e-2, 0.8))  # deviation that is granted, share of the iterations

_LEAST = 1e-8  # mean square of a departure that is as good as none
_SMOOTH = 5  # steps of L-BFGS for one of Adam
_HISTORY = 50
_PROBES = 16  # random directions that show how curved the posterior is
_SHOWN = 4608  # public images that show how a tensor varies
_LARGEST = 4096  # entries of a tensor whose covariance is kept whole
_TINY = 1e-20

Norm = Callable[[torch.Tensor], torch.Tensor]
"""Departures ``(V, n)`` in units in which those between public images are about a standard normal."""


class OwnInputs:
    """The posterior of a batch's images given its update and each example's own inputs of the last layer.

    A batch's gradient mixes its examples. The inputs of the last layer (:mod:`gitbench.attacker.tools.last_layer`) do not: they
    are matched as if they were one more layer, and stand for the gradient of the last layer, which says no more.
    Departures are measured in units of how public images differ, direction by direction. In plain units a few directions
    would hold nearly all of a gradient's norm, and a search would see the others late.

    Args:
        observation: of victims whose batches are solved; needs ``parameters`` and ``public``. The defense may add no noise.
        labels: ``(V, B)``.
        inputs: of the last layer, ``(V, B, F)``, in the order of the labels.
        prior: of one image.
    """

    def __init__(self, observation: Observation, labels: torch.Tensor, inputs: torch.Tensor, prior: Gaussian) -> None:
        name, _ = last_linear(observation.model)
        known = {f"{name}.weight", f"{name}.bias"}
        self._model, self._labels, self._inputs = observation.model, labels, inputs.float()
        self._observed, self._expectation, self._client = observation.update, observation.expectation, observation.client
        self._norms, self._input_norm = _norms(observation, tuple(key for key in self._observed.tensors if key not in known))
        self.prior = Whitened(prior)
        self.shape = (*labels.shape, *observation.input_shape)

    def departures(self, images: torch.Tensor) -> list[torch.Tensor]:
        """How far images ``(V, B, C, H, W)`` are from what is known: ``(V, n)`` of each tensor; differentiable."""
        features, _ = passed(self._model, images.flatten(0, 1))
        own = self._input_norm(features - self._inputs.flatten(0, 1)).reshape(len(images), -1)
        update = expected_update(
            self._model, images, self._labels, expectation=self._expectation, observed=self._observed, client=self._client
        )
        return [*(norm((update.tensors[key] - self._observed.tensors[key]).flatten(1)) for key, norm in self._norms.items()), own]

    def value(self, images: torch.Tensor) -> torch.Tensor:
        """Of ``(V, B, C, H, W)``, ``(V,)``: the negative log posterior where each tensor's departure has a size that is not known."""
        shares = [part.shape[1] / 2 * (part.square().mean(1) + _LEAST).log() for part in self.departures(images)]
        return torch.stack(shares).sum(0) + _WEIGHT / 2 * self.prior.coordinates(images).square().sum(1)

    def search(self, start: torch.Tensor, *, iterations: int, progress: Progress) -> torch.Tensor:
        """Images ``(V, B, C, H, W)`` of a higher posterior than those to start from, not cut to [0, 1].

        Args:
            start: in the order of the labels.
            iterations: of Adam, which gets over the kinks where units switch; a smooth network takes five times as many of L-BFGS.
            progress: told after each of them.
        """
        if not switches(self._model):
            return self._descended(start, _SMOOTH * iterations, progress)
        search = _Following(self, start, iterations, progress)
        search.run()
        return search.best.found[0]

    def _descended(self, start: torch.Tensor, iterations: int, progress: Progress) -> torch.Tensor:
        """By L-BFGS, with a size of the departures that falls."""
        points, done = self.prior.coordinates(start), 0
        for deviation, share in _STAGES:
            steps = max(1, round(share * iterations))
            before, done = done, done + steps

            def tell(step: int, before: int = before) -> None:
                progress("auto: own inputs", before + step, iterations)

            points = self._stage(points, deviation, steps, tell)
        return self.prior.images(points, self.shape)

    def _stage(self, points: torch.Tensor, deviation: float, iterations: int, tell: Callable[[int], None]) -> torch.Tensor:
        def objective(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                images = self.prior.images(points, self.shape).detach().requires_grad_()
                misfit = torch.cat(self.departures(images), dim=1).square().sum(1) / deviation**2
                (slope,) = torch.autograd.grad(misfit.sum() / 2, images)
            return misfit.detach() / 2 + points.square().sum(1) / 2, self.prior.slope(slope) + points

        curvature = 1 + self._squares(self.prior.images(points, self.shape)) / deviation**2
        return descend(points, objective, lambda slopes: slopes / curvature, iterations, history=_HISTORY, tell=tell)

    def _squares(self, images: torch.Tensor) -> torch.Tensor:
        """An estimate of the sums of the Jacobian's squares over the departures, one for each coordinate: ``(V, B n)``."""
        generator, parts = make_generator(0, "own inputs"), []
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            departures = torch.cat(self.departures(images), dim=1)
            for _ in range(_PROBES):
                probe = randn_like(departures.detach(), generator)
                (slope,) = torch.autograd.grad(departures, images, probe, retain_graph=True)
                parts.append(self.prior.slope(slope).square())
        return torch.stack(parts).mean(0)


class _Following(AdamOptimisation):
    """Adam in the prior's own coordinates."""

    def __init__(self, known: OwnInputs, start: torch.Tensor, iterations: int, progress: Progress) -> None:
        best = Best(len(start), start.device)
        super().__init__("auto: own inputs", best, iterations=iterations, progress=progress, schedule="cosine")
        self._known, self._start = known, start

    def begin(self, restart: int) -> None:
        self.start(self._known.prior.coordinates(self._start), lr=_RATE)

    def images(self) -> torch.Tensor:
        return self._known.prior.images(self.points[0], self._known.shape)

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return self._known.value(images)


@torch.no_grad()
def _norms(observation: Observation, names: tuple[str, ...]) -> tuple[dict[str, Norm], Norm]:
    """How to measure departures of each of some tensors of an update, and of the last layer's inputs of an image."""
    public, single = observation.public, observation.undefended()
    rows = torch.randperm(len(public), generator=make_generator(0, "own inputs"))[:_SHOWN, None]
    found, features = {name: _Variation() for name in names}, _Variation()
    for chunk in rows.split(observation.chunk):
        update = single.public_gradients(chunk, generator=make_generator(0, "own inputs"))
        for name, variation in found.items():
            variation.see(update.tensors[name].flatten(1))
    features.see(forward_features(observation.model, public.inputs[rows[:, 0]])[0])
    examples = observation.batch_size  # a gradient is their average
    return {name: variation.norm(examples) for name, variation in found.items()}, features.norm(1)


class _Variation:
    """How rows ``(N, n)`` vary that come in chunks: their covariance, or the variances alone of what is too long."""

    def __init__(self) -> None:
        self._count, self._total, self._products = 0, torch.zeros(()), torch.zeros(())

    def see(self, rows: torch.Tensor) -> None:
        products = rows.square().sum(0) if rows.shape[1] > _LARGEST else rows.T @ rows
        self._count += len(rows)
        self._total = self._total.to(products.device) + rows.sum(0).double()
        self._products = self._products.to(products.device) + products.double()

    def norm(self, examples: int) -> Norm:
        """For averages of so many rows."""
        mean = self._total / self._count
        if self._products.ndim == 1:
            variance = (self._products / self._count - mean.square()).clamp_min(0) / examples
            deviation = (variance + _FLOOR**2 * variance.mean() + _TINY).sqrt().float()
            return lambda departure: departure / deviation
        covariance = (self._products / self._count - torch.outer(mean, mean)) / examples
        covariance.diagonal().add_(_FLOOR**2 * covariance.diagonal().mean() + _TINY)
        eye = torch.eye(len(mean), dtype=torch.float64, device=mean.device)
        inverse = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), eye, upper=False).T.float()
        return lambda departure: departure @ inverse
