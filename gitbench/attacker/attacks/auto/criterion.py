"""The attacker's own criterion: how well a candidate explains the observed update, and how much of an image it is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.lbfgs import BatchedLbfgs
from gitbench.attacker.tools.optimisation import Best
from gitbench.attacker.tools.priors import Gaussian, Whitened, natural, of_samples
from gitbench.attacker.tools.rehearsal import Rehearsal, rescaled
from gitbench.clients.client import batchnorm_statistics, expected_update
from gitbench.core.progress import TimeUp

_PRECISION = 1e-6  # of a tensor's root mean square: what float32 leaves of it
_STATISTIC = 1e-2  # of a BatchNorm statistic's root mean square: granted, so that the few of them leave the update a say
_MATCHED = 1e4  # squared deviations of an entry: a relative error of 1e-4
_IMAGES = 20_000  # public images that the prior is estimated from
_CHUNKS = 20
_HISTORY = 50


class Criterion:
    """Negative logarithm of the posterior density of a candidate, up to a constant.

    The misfit is ``m(x) = Σ_l |G_l(x) - Ĝ_l|² / σ_l²``, where ``G`` is sent through the defense's deterministic part
    and ``σ`` is what :func:`gitbench.attacker.tools.rehearsal.rehearse` saw, float32's rounding at least. With ``n`` entries it counts
    ``m / 2`` up to ``n``, and ``n (1 + log(m / n)) / 2`` beyond: as long as nothing better is known, the noise
    is taken to be what the candidate leaves over, and the prior is heard all the way. The prior is a Gaussian fitted
    to public images, or one of photographs' power spectrum. BatchNorm statistics, where they are granted, are further
    entries of ``Ĝ``.

    Args:
        observation: needs ``parameters``.
        rehearsal: what the defense does.
        prior: of one image, where it is known already.
    """

    def __init__(self, observation: Observation, rehearsal: Rehearsal, prior: Gaussian | None = None) -> None:
        self.rehearsal = rehearsal
        self._model = observation.model
        self._observed = observation.update
        self._expectation = observation.expectation if rehearsal.sloped else None
        self._client = observation.client
        self._variance = {
            name: rehearsal.deviation[name] ** 2 + _PRECISION**2 * tensor.flatten(1).square().mean(1) + 1e-30
            for name, tensor in observation.update.tensors.items()
        }
        self._statistics = _flat(observation.batchnorm_statistics) if "batchnorm_statistics" in observation.granted else {}
        self._variance |= {name: _STATISTIC**2 * seen.square().mean(1) + 1e-30 for name, seen in self._statistics.items()}
        seen = (*observation.update.tensors.values(), *self._statistics.values())
        self.entries = torch.stack([(tensor != 0).flatten(1).sum(1) for tensor in seen]).sum(0).clamp_min(1)
        self.image = prior or _prior(observation)
        """The prior of one image."""
        self._prior = Whitened(self.image)

    def prior(self, inputs: torch.Tensor) -> torch.Tensor:
        """Negative logarithm of the density of images ``(V, B, C, H, W)``, up to a constant: ``(V,)``."""
        return self._prior.coordinates(inputs).square().sum(1) / 2

    def energy(self, misfit: torch.Tensor, *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """What a misfit counts, ``(V,)``."""
        entries = self.entries if rows is None else self.entries[rows]
        ratio = misfit / entries
        return entries / 2 * torch.where(ratio > 1, 1 + ratio.clamp_min(1).log(), ratio)

    def misfit(self, inputs: torch.Tensor, labels: torch.Tensor, *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Squared distance of the updates in units of the noise, ``(V,)``; differentiable.

        About :attr:`entries` for the truth: those that were sent and are not zero.
        """
        return self._departure(inputs, labels, rows).square().sum(1)

    def matched(self, misfit: torch.Tensor) -> torch.Tensor:
        """Whether a candidate explains the update to numerical precision, ``(V,)``; never where there is noise."""
        return (misfit <= _MATCHED * self.entries) & (not any(self.rehearsal.deviation.values()))

    def minimised(
        self,
        start: torch.Tensor,
        labels: torch.Tensor,
        *,
        rows: torch.Tensor,
        iterations: int,
        whitened: bool,
        tell: Callable[[int], None],
    ) -> torch.Tensor:
        """Images of a lower posterior, not cut to [0, 1], by L-BFGS.

        Args:
            start: ``(V, B, C, H, W)``.
            labels: ``(V, B)``.
            rows: which victims these are.
            iterations: one gradient each.
            whitened: search in the prior's own coordinates and take the noise for known: finds what little a noisy or
                thinned out update says. In pixels, with the noise as in :meth:`energy`, more is found of a whole update.
            tell: told how many iterations are done; where it raises :class:`~gitbench.core.progress.TimeUp`, what was
                found by then is returned.
        """
        shape = start.shape
        points = self._prior.coordinates(start) if whitened else start.flatten(1)

        def images(points: torch.Tensor) -> torch.Tensor:
            return self._prior.images(points, shape) if whitened else points.reshape(shape)

        def closure(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                found = images(points).detach().requires_grad_()
                misfit = self.misfit(found, labels, rows=rows)
                # In the prior's own coordinates it is the points' own square.
                values = misfit / 2 if whitened else self.energy(misfit, rows=rows) + self.prior(found)
                (slope,) = torch.autograd.grad(values.sum(), found)
            if not whitened:
                return values.detach(), slope.flatten(1)
            return values.detach() + points.square().sum(1) / 2, self._prior.slope(slope) + points

        optimizer = BatchedLbfgs(points, history=_HISTORY)
        best = Best(len(points), points.device)
        best.offer(best.losses, points)
        everyone = torch.ones(len(points), dtype=torch.bool, device=points.device)
        with contextlib.suppress(TimeUp):
            for iteration in range(iterations):
                points = optimizer.points
                values = optimizer.step(closure, active=everyone)
                best.offer(values, points)
                tell(iteration + 1)
        return images(best.found[0])

    def _departure(self, inputs: torch.Tensor, labels: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
        """Difference of each entry of the update, in deviations: ``(V, D)``."""
        observed = self._observed
        if rows is not None:
            observed = observed[rows]
        update = expected_update(self._model, inputs, labels, expectation=self._expectation, observed=observed, client=self._client)
        own = dict(rescaled(update, observed, self.rehearsal.scale).tensors)
        aims = dict(observed.tensors)
        if self._statistics:
            own |= _flat(batchnorm_statistics(self._model, inputs))
            aims |= {name: seen if rows is None else seen[rows] for name, seen in self._statistics.items()}
        parts = []
        for name, aim in aims.items():
            variance = self._variance[name] if rows is None else self._variance[name][rows]
            parts.append((own[name] - aim).flatten(1) / variance.sqrt()[:, None])
        return torch.cat(parts, dim=1)


def _flat(statistics: Mapping[str, tuple[torch.Tensor, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """BatchNorm statistics by names of their own, each ``(V, channels)``."""
    return {f"{name} {kind}": tensor for name, pair in statistics.items() for kind, tensor in zip(("mean", "var"), pair, strict=True)}


def _prior(observation: Observation) -> Gaussian:
    if "public" not in observation.granted or len(observation.public) < _CHUNKS:
        return natural(observation.input_shape).to(observation.device)
    images = observation.public.inputs[:_IMAGES]
    return of_samples(images.split(max(1, len(images) // _CHUNKS)), hidden=False)
