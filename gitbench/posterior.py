"""The attacker's own criterion: how well a candidate explains the observed update, and how much of an image it is."""

from __future__ import annotations

import torch

from gitbench.client import blaming, gradients
from gitbench.observation import Observation
from gitbench.rehearsal import Rehearsal, rescaled
from gitbench.update import Update

_PRECISION = 1e-6  # of an update's root mean square: what float32 leaves of it
_IMAGES = 4096  # public images that the prior is estimated from
_PIXELS = 4096
_COMPONENTS = 512
_SMOOTH = 0.1  # standard deviation of neighbouring pixels' difference, where nothing better is known
_CONTRAST = 0.3
_MATCHED = 16.0  # squared deviations of an entry


class Prior:
    """How much of an image a candidate is: a Gaussian fitted to public images, or smoothness without them."""

    def __init__(self, observation: Observation) -> None:
        self._components: torch.Tensor | None = None
        pixels = torch.Size(observation.input_shape).numel()
        if "public" not in observation.granted or pixels > _PIXELS or len(observation.public) < 2:
            return
        flat = observation.public.inputs[:_IMAGES].flatten(1)
        self._mean = flat.mean(0)
        values, vectors = torch.linalg.eigh(torch.cov(flat.T))
        # Shrunk a little towards the mean variance: directions that no public image varies in are rare, not impossible.
        values = values.clamp_min(0) + float(values.clamp_min(0).mean()) / len(flat)
        self._components = vectors[:, -_COMPONENTS:]
        self._deviations = values[-_COMPONENTS:].sqrt()
        rest = values[:-_COMPONENTS]
        self._rest = float(rest.mean().sqrt()) if len(rest) else float(self._deviations.min())

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """Negative logarithm of the density, up to a constant: ``(V, B, C, H, W)`` to ``(V,)``."""
        if self._components is None:
            down, across = inputs.diff(dim=-2), inputs.diff(dim=-1)
            rough = down.square().sum((1, 2, 3, 4)) + across.square().sum((1, 2, 3, 4))
            return rough / (4 * _SMOOTH**2) + (inputs - 0.5).square().sum((1, 2, 3, 4)) / (2 * _CONTRAST**2)
        centred = inputs.flatten(2) - self._mean
        coordinates = centred @ self._components
        beyond = centred.square().sum(2) - coordinates.square().sum(2)
        energy: torch.Tensor = ((coordinates / self._deviations).square().sum(2) + beyond / self._rest**2).sum(1) / 2
        return energy


class Posterior:
    """Negative logarithm of the posterior density of a candidate, up to a constant.

    The misfit is ``m(x) = Σ_l |G_l(x) - Ĝ_l|² / σ_l²``, where ``G`` is sent through the defense's deterministic part
    and ``σ`` is what :func:`gitbench.rehearsal.rehearse` saw, float32's rounding at least. With ``n`` entries it counts
    ``m / 2`` up to ``n``, and ``n (1 + log(m / n)) / 2`` beyond: as long as nothing better is known, the noise
    is taken to be what the candidate leaves over, and the :class:`Prior` is heard all the way.

    Args:
        observation: needs ``parameters``.
        rehearsal: what the defense does.
    """

    def __init__(self, observation: Observation, rehearsal: Rehearsal) -> None:
        self.rehearsal = rehearsal
        self.prior = Prior(observation)
        self._model = observation.model
        self._observed = observation.update
        self._defense = observation.defense if "defense" in observation.granted and rehearsal.sloped else None
        self._variance = {
            name: rehearsal.deviation[name] ** 2
            + _PRECISION**2 * tensor.flatten(1).square().mean(1)
            + 1e-30
            for name, tensor in observation.update.tensors.items()
        }  # fmt: skip
        sent = observation.update.tensors.values()
        self.entries = torch.stack([(tensor != 0).flatten(1).sum(1) for tensor in sent]).sum(0).clamp_min(1)

    def __call__(self, inputs: torch.Tensor, labels: torch.Tensor, *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """``(V,)`` of candidates ``(V, B, C, H, W)`` with labels ``(V, B)``; differentiable.

        Args:
            rows: which victims these are; all of them when None.
        """
        return self.energy(self.misfit(inputs, labels, rows=rows), rows=rows) + self.prior(inputs)

    def energy(self, misfit: torch.Tensor, *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """What a misfit counts, ``(V,)``."""
        entries = self.entries if rows is None else self.entries[rows]
        ratio = misfit / entries
        return entries / 2 * torch.where(ratio > 1, 1 + ratio.clamp_min(1).log(), ratio)

    def misfit(self, inputs: torch.Tensor, labels: torch.Tensor, *, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Squared distance of the updates in units of the noise, ``(V,)``.

        About :attr:`entries` for the truth: those that were sent and are not zero.
        """
        need = self._defense is not None and self._defense.needs_per_example
        update = gradients(self._model, inputs, labels, per_example=need)
        observed = self._observed
        if rows is not None:
            observed = Update({name: tensor[rows] for name, tensor in observed.tensors.items()})
        if self._defense is not None:
            with blaming(self._defense):
                update = self._defense.expected(update, observed=observed)
        update = rescaled(update, observed, self.rehearsal.scale)
        total = inputs.new_zeros(len(inputs))
        for name, tensor in observed.tensors.items():
            variance = self._variance[name] if rows is None else self._variance[name][rows]
            total = total + (update.tensors[name] - tensor).flatten(1).square().sum(1) / variance
        return total

    def matched(self, misfit: torch.Tensor) -> torch.Tensor:
        """Whether a candidate explains the update to numerical precision, ``(V,)``; never where there is noise."""
        return (misfit <= _MATCHED * self.entries) & (not any(self.rehearsal.deviation.values()))
