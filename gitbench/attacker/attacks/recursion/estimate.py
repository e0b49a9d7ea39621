"""From an observation to images: the better of the walk and a linear image, then the posterior given all layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attacks.recursion.departure import ROUNDING, Departure, divided, scales
from gitbench.attacker.attacks.recursion.options import RecursionOptions
from gitbench.attacker.attacks.recursion.posterior import Posterior
from gitbench.attacker.attacks.recursion.sparse import Batches, applies, sparse_batches
from gitbench.attacker.attacks.recursion.walk import KnownWalk
from gitbench.attacker.layers.chain import Chain, read_chain
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.linear_image import linear_image
from gitbench.attacker.tools.priors import Gaussian
from gitbench.clients.activation import switches
from gitbench.clients.normalize import Normalize
from gitbench.clients.update import Update
from gitbench.core.progress import Progress
from gitbench.core.random import randn_like

State = Mapping[str, torch.Tensor]

_MATCHED = 1e-3  # relative error of every tensor of the update at which nothing is left to look for
_TINY = 1e-12
_APART = 0.02  # standard deviation of what is added to the images of a batch at the start
# Where units switch, gradients jump: from far away, the update must be matched loosely at first.
_STAGES = ((3.0, 0.2), (1.0, 0.4), (0.5, 0.4))  # relative error that is granted to the first layer, share of the iterations
_GRADED = 0.1  # the last layer's error, in units of the first's: fewer units switch above the last layer


@dataclass(frozen=True)
class Images:
    """Two estimates ``(V, B, C, H, W)``: the posterior's, and the linear start where public images gave one.

    Args:
        found: the posterior's.
        start: the linear start.
        matched: ``(V,)``: the update is reproduced, so that nothing is left to doubt.
    """

    found: torch.Tensor
    start: torch.Tensor | None
    matched: torch.Tensor

    def believed(self, state: State) -> torch.Tensor:
        """The mixture of both that was best for public images; what reproduces the update, as it is, beyond [0, 1] too."""
        if self.start is None or "trust" not in state:
            return self.found
        share = state["trust"].to(self.found)
        return _chosen(self.matched, self.found, share * self.found.clamp(0, 1) + (1 - share) * self.start)


def estimate(
    observation: Observation, state: State, *, options: RecursionOptions, generator: torch.Generator, progress: Progress
) -> Images:
    """The images of all victims.

    Args:
        observation: with its update.
        state: of :func:`gitbench.attacker.attacks.recursion.learn.learn`.
        options: of the attack.
        generator: for the directions that show the posterior's curvature, and the units that sparse recovery draws.
        progress: told what is going on.
    """
    return _Estimation(observation, state, options, generator, progress).images()


class _Estimation:
    """One call of :func:`estimate`, with what all of its steps share."""

    def __init__(
        self, observation: Observation, state: State, options: RecursionOptions, generator: torch.Generator, progress: Progress
    ) -> None:
        self._observation, self._state, self._options = observation, state, options
        self._generator, self._progress = generator, progress
        self._noise, self._prior = Departure.stored(state), Gaussian.stored(state, "image")
        jumps = switches(observation.model)
        self._stages = _STAGES if jumps else ((options.match, 1.0),)
        self._graded = _GRADED if jumps else 1.0

    def images(self) -> Images:
        labels = infer_labels(self._observation)
        likeliest = labels.argmax(-1) if labels.is_floating_point() else labels
        known = "start.weight" in self._state
        start = linear_image(self._observation, likeliest, self._state, progress=self._progress) if known else None
        mean = self._prior.mean.float().reshape(self._observation.input_shape)
        best = mean.expand(*likeliest.shape, -1, -1, -1) if start is None else start
        if labels.shape[1] == 1:
            best, matched = self._or_walked(best, labels, likeliest)
        else:  # images of one class start alike, and would stay so
            best, labels, matched = self._or_sparse(best + _APART * randn_like(best, self._generator), labels)
        left = (~matched).nonzero().flatten()
        if len(left) and self._options.iterations:
            found = best.clone()
            found[left] = self._minimised(best[left], labels[left], left)
            best = found
        return Images(best, start, matched)

    def _or_walked(self, best: torch.Tensor, labels: torch.Tensor, likeliest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The walk's images where they are better, and which of them reproduce the update."""
        walked = self._walked(likeliest)
        if walked is None:
            return best, torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        posterior = self._posterior(labels, self._stages[-1][0])
        matched = posterior.misfit(walked) < _MATCHED
        return _chosen(matched | (posterior.value(walked.clamp(0, 1)) < posterior.value(best)), walked, best), matched

    def _or_sparse(self, best: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The batches told apart by their units, where they are better, with their labels, and which of them reproduce the update."""
        batches = self._batches()
        if batches is None:
            return best, labels, torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        images = batches.inputs.float().reshape(best.shape)
        posterior = self._posterior(batches.labels, self._stages[-1][0])
        matched = batches.found & (posterior.misfit(images) < _MATCHED)
        other = self._posterior(labels, self._stages[-1][0]).value(best)
        better = matched | (batches.found & (posterior.value(images.clamp(0, 1)) < other))
        return _chosen(better, images, best), torch.where(better[:, None], batches.labels, labels), matched

    def _minimised(self, start: torch.Tensor, labels: torch.Tensor, victims: torch.Tensor) -> torch.Tensor:
        """The posterior's maximum for some victims, searched from ``start``, which is kept where the search ends no better."""
        found, done, iterations = start.clamp(0, 1), 0, self._options.iterations
        for match, share in self._stages:
            posterior = self._posterior(labels, match, victims)
            more = max(1, round(share * iterations))

            def tell(count: int, before: int = done) -> None:
                self._progress("recursion: all layers at once", min(before + count, iterations), iterations)

            fit = posterior.minimised(found, iterations=more, generator=self._generator, tell=tell)
            found, done = fit.images, done + more
        return _chosen(fit.values < posterior.value(start), found, start)

    def _posterior(self, labels: torch.Tensor, match: float, victims: torch.Tensor | None = None) -> Posterior:
        observation = self._observation
        if victims is not None:
            observation = observation.with_update(observation.update[victims])
        deviations = _deviations(observation.update, self._noise, match, graded=self._graded)
        return Posterior(observation, labels, self._prior, deviations)

    def _walked(self, labels: torch.Tensor) -> torch.Tensor | None:
        """The closed form ``(V, 1, C, H, W)``; None where the model is no chain."""
        observation = self._observation
        chain = read_chain(observation.model, observation.input_shape)
        if chain is None:
            return None
        update = observation.update.map_all(torch.Tensor.double)
        if self._noise.rescaled:
            update = divided(update, scales(observation, observation.update, labels[:, 0]).double())
        names = ["layer.0" if "layer.0.mean" in self._state else "image", *(f"layer.{index}" for index in range(1, len(chain.layers)))]
        priors = tuple(Gaussian.stored(self._state, name) for name in names)
        self._progress("recursion: walking back", 0, 1)
        walk = KnownWalk(chain, self._weights, priors, self._options.cg)
        images = walk(update.tensors, labels[:, 0], noise=self._noise.walk).reshape(-1, *observation.input_shape)
        self._progress("recursion: walking back", 1, 1)
        normal = normalization(observation.model, chain)
        if normal is not None:
            images = images * normal.std.double() + normal.mean.double()
        usable = images.isfinite().flatten(1).all(1).reshape(-1, 1, 1, 1)
        mean = self._prior.mean.reshape(observation.input_shape)
        return torch.where(usable, images.nan_to_num(0, 0, 0).clamp(-1, 2), mean).float()[:, None]

    def _batches(self) -> Batches | None:
        """Batches whose examples each switch units of the first layer off, as images; None where the model is of another kind."""
        observation, options = self._observation, self._options
        chain = read_chain(observation.model, observation.input_shape) if options.samples else None
        if chain is None or not applies(chain):
            return None
        update, weights = dict(observation.update.map_all(torch.Tensor.double).tensors), self._weights
        first, normal = f"{chain.layers[0].name}.weight", normalization(observation.model, chain)
        if normal is not None:  # folded into the layer, so that its inputs are images
            shape = (1, *observation.input_shape)
            shift, scale = (part.double().expand(shape).reshape(1, -1) for part in (normal.mean, normal.std))
            bias = f"{chain.layers[0].name}.bias"
            weights[first] = weights[first] / scale
            weights[bias] = weights[bias] - (weights[first] @ shift[0])
            update[first] = update[first] * scale + update[bias][..., None] * shift

        def tell(done: int) -> None:
            self._progress("recursion: sparse batches", done, observation.victims)

        return sparse_batches(
            chain, weights, update, self._prior,
            batch_size=observation.batch_size, samples=options.samples, generator=self._generator, tell=tell,
        )  # fmt: skip

    @property
    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().double() for name, parameter in self._observation.model.named_parameters()}


def normalization(model: nn.Module, chain: Chain) -> Normalize | None:
    """The model's first layer, where it normalises its inputs."""
    return next(module for module in model.modules() if isinstance(module, Normalize)) if chain.normalized else None


def _chosen(victims: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    return torch.where(victims.reshape(-1, 1, 1, 1, 1), yes, no)


def _deviations(update: Update, noise: Departure, match: float, *, graded: float = 1.0) -> dict[str, torch.Tensor]:
    """Of one entry of each tensor, ``(V,)``: the noise, and the error that is granted to the match.

    Args:
        update: what was sent.
        noise: of the defense.
        match: relative error of the first layer's gradient.
        graded: the last layer's, in units of the first's; between them it falls by equal factors, in the order of the parameters.
    """
    found = {}
    last = max(1, len(update.tensors) - 1)
    for index, (name, tensor) in enumerate(update.tensors.items()):
        size = tensor.flatten(1).square().mean(1).sqrt()
        granted = max(match * graded ** (index / last), ROUNDING)
        # A victim that the model has learned sends next to nothing, and that is rounding.
        least = ROUNDING * noise.size[name] + _TINY
        found[name] = (noise.match[name] ** 2 + (granted * size).square() + least**2).sqrt()
    return found
