"""From an observation to images: the walk, a linear start, and the posterior of both, with what public images teach of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attacks.recursion.departure import ROUNDING, Departure, rehearse, scales
from gitbench.attacker.attacks.recursion.posterior import Posterior
from gitbench.attacker.attacks.recursion.sparse import Batches, applies, sparse_batches
from gitbench.attacker.attacks.recursion.supported import check_layers
from gitbench.attacker.attacks.recursion.walk import KnownWalk
from gitbench.attacker.layers.chain import Chain, read_chain
from gitbench.attacker.layers.passes import activated
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.linear_image import fit_linear_image, linear_image
from gitbench.attacker.tools.priors import DENSE, Gaussian, natural, of_samples, of_spectrum
from gitbench.attacker.tools.public_pairs import public_batches
from gitbench.clients.client import gradients
from gitbench.clients.model import Normalize
from gitbench.clients.update import Update
from gitbench.core.progress import Progress
from gitbench.core.random import randn_like

Tensors = dict[str, torch.Tensor]
State = Mapping[str, torch.Tensor]

_REHEARSED = 64  # images whose updates show the noise
_IMAGINED = 1024  # images drawn from the prior where none are public
_CHUNK = 128
_MATCHED = 1e-3  # relative error of every tensor of the update at which nothing is left to look for
_SHARES = 21
_TINY = 1e-12
_APART = 0.02
# A gradient that jumps where a unit switches can be followed from far away only if it is not taken at its word.
_JUMPY = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ReLU6,
    nn.RReLU,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
)
_STAGES = ((3.0, 0.2), (1.0, 0.4), (0.5, 0.4))  # relative error that is granted to the first layer, share of the iterations
_GRADED = 0.1  # the last layer's, in units of the first's: fewer units switch above it


@dataclass(frozen=True)
class Options:
    """As in :class:`gitbench.attacker.attacks.recursion.attack.Recursion`."""

    limit: int
    iterations: int
    cg: int
    match: float
    holdout: float
    rehearsal: int
    prior: str
    samples: int


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
        """Both, in the shares that public images taught."""
        if self.start is None or "trust" not in state:
            return self.found
        share = torch.where(self.matched, 1.0, state["trust"].to(self.found)).reshape(-1, 1, 1, 1, 1)
        return share * self.found.clamp(0, 1) + (1 - share) * self.start


def learn(observation: Observation, *, options: Options, generator: torch.Generator, progress: Progress) -> Tensors:
    """Priors, noise, the linear start, and how much of the posterior to believe: from public images, or from imagined ones.

    Args:
        observation: without its update.
        options: of the attack.
        generator: for the order of the public images and the defense.
        progress: told what is going on.

    Raises:
        AttackError: a layer cannot be walked through; all such layers are named.
    """
    check_layers(observation.model)
    if "public" not in observation.granted:
        return _imagined(observation, generator, progress)
    public = observation.public
    order = public_batches(observation, options.limit, generator=generator)
    cut = min(options.rehearsal, len(order) // 4)
    played, order = order[:cut], order[cut:]
    images = public.inputs[order.flatten()]
    image = of_spectrum(images) if options.prior == "spectrum" and images[0].numel() <= DENSE else _image_prior(images)
    state = _priors(observation, images, image, progress)
    state |= fit_linear_image(
        observation, order, holdout=options.holdout, thorough=False, generator=generator, progress=progress, what="recursion"
    )
    some = order[-_REHEARSED:]
    sent = observation.public_updates(some, generator=generator)
    state |= rehearse(observation, sent, public.inputs[some], public.labels[some]).tensors()
    if cut:
        sent = observation.public_updates(played, generator=generator)
        found = estimate(_victims(observation, sent), state, options=options, generator=generator, progress=progress)
        progress("recursion: trust", 1, 1)  # out of time, what was found is unfinished, and not to be kept
        state["trust"] = _trust(found, public.inputs[played])
    return state


def estimate(observation: Observation, state: State, *, options: Options, generator: torch.Generator, progress: Progress) -> Images:
    """The images of all victims.

    Args:
        observation: with its update.
        state: of :func:`learn`.
        options: of the attack.
        generator: for the directions that show the posterior's curvature, and the units that sparse recovery draws.
        progress: told what is going on.
    """
    labels = infer_labels(observation)
    noise, prior = Departure.stored(state), Gaussian.stored(state, "image")
    stages = _STAGES if _jumps(observation.model) else ((options.match, 1.0),)
    start = linear_image(observation, labels, state) if "start.weight" in state else None
    best = prior.mean.float().reshape(observation.input_shape).expand(*labels.shape, -1, -1, -1) if start is None else start
    if labels.shape[1] > 1:  # images of one class start alike, and would stay so
        best = best + _APART * randn_like(best, generator)
    walked = _walked(observation, state, labels, noise, options, progress)
    matched = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
    if walked is not None:
        posterior = _posterior(observation, labels, prior, noise, stages[-1][0])
        matched = posterior.misfit(walked) < _MATCHED
        best = _chosen(matched | (posterior.value(walked.clamp(0, 1)) < posterior.value(best)), walked, best)
    batches = _batches(observation, prior, options, generator, progress) if labels.shape[1] > 1 else None
    if batches is not None:
        images = batches.inputs.float().reshape(best.shape)
        posterior = _posterior(observation, batches.labels, prior, noise, stages[-1][0])
        matched = batches.found & (posterior.misfit(images) < _MATCHED)
        other = _posterior(observation, labels, prior, noise, stages[-1][0]).value(best)
        better = matched | (batches.found & (posterior.value(images.clamp(0, 1)) < other))
        best, labels = _chosen(better, images, best), torch.where(better[:, None], batches.labels, labels)
    left = (~matched).nonzero().flatten()
    if len(left) and options.iterations:
        own = _victims(observation, observation.update[left])
        found = best.clone()
        found[left] = _minimised(own, labels[left], best[left], prior, noise, stages, options, generator, progress)
        best = found
    return Images(best, start, matched)


def _minimised(
    observation: Observation,
    labels: torch.Tensor,
    start: torch.Tensor,
    prior: Gaussian,
    noise: Departure,
    stages: Sequence[tuple[float, float]],
    options: Options,
    generator: torch.Generator,
    progress: Progress,
) -> torch.Tensor:
    """All layers at once, from ``start``, which stays where nothing better comes of it, also when time is up."""
    found, done = start.clamp(0, 1), 0
    for match, share in stages:
        posterior = _posterior(observation, labels, prior, noise, match)
        more = max(1, round(share * options.iterations))

        def tell(count: int, before: int = done) -> None:
            progress("recursion: all layers at once", min(before + count, options.iterations), options.iterations)

        fit = posterior.minimised(found, iterations=more, generator=generator, tell=tell)
        found, done = fit.images, done + more
    return _chosen(fit.values < posterior.value(start), found, start)


def _chosen(victims: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    return torch.where(victims.reshape(-1, 1, 1, 1, 1), yes, no)


def _posterior(observation: Observation, labels: torch.Tensor, prior: Gaussian, noise: Departure, match: float) -> Posterior:
    graded = _GRADED if _jumps(observation.model) else 1.0
    return Posterior(observation, labels, prior, _deviations(observation.update, noise, match, graded=graded))


def _jumps(model: nn.Module) -> bool:
    return any(isinstance(module, _JUMPY) for module in model.modules())


def _walked(
    observation: Observation, state: State, labels: torch.Tensor, noise: Departure, options: Options, progress: Progress
) -> torch.Tensor | None:
    """The closed form ``(V, 1, C, H, W)``; None where the model is no chain, a victim no single image, or nothing came out."""
    chain = read_chain(observation.model, observation.input_shape) if labels.shape[1] == 1 else None
    if chain is None:
        return None
    update = observation.update.map_all(torch.Tensor.double).tensors
    if noise.rescaled:
        factor = scales(observation, observation.update, labels[:, 0]).double()
        update = {name: tensor / factor.reshape(-1, *(1,) * (tensor.ndim - 1)) for name, tensor in update.items()}
    weights = {name: parameter.detach().double() for name, parameter in observation.model.named_parameters()}
    names = ["layer.0" if "layer.0.mean" in state else "image", *(f"layer.{index}" for index in range(1, len(chain.layers)))]
    priors = tuple(Gaussian.stored(state, name) for name in names)
    progress("recursion: walking back", 0, 1)
    found = KnownWalk(chain, weights, priors, options.cg)(update, labels[:, 0], noise=noise.walk)
    progress("recursion: walking back", 1, 1)
    images = found.reshape(-1, *observation.input_shape)
    normal = _normalization(observation.model, chain)
    if normal is not None:
        images = images * normal.std.double() + normal.mean.double()
    usable = images.isfinite().flatten(1).all(1).reshape(-1, 1, 1, 1)
    mean = Gaussian.stored(state, "image").mean.reshape(observation.input_shape)
    return torch.where(usable, images.nan_to_num(0, 0, 0).clamp(-1, 2), mean).float()[:, None]


def _batches(observation: Observation, prior: Gaussian, options: Options, generator: torch.Generator, progress: Progress) -> Batches | None:
    """Batches whose examples each switch units of the first layer off, as images; None where the model is of another kind."""
    chain = read_chain(observation.model, observation.input_shape) if options.samples else None
    if chain is None or not applies(chain):
        return None
    update = dict(observation.update.map_all(torch.Tensor.double).tensors)
    weights = {name: parameter.detach().double() for name, parameter in observation.model.named_parameters()}
    first, normal = f"{chain.layers[0].name}.weight", _normalization(observation.model, chain)
    if normal is not None:  # folded into the layer, so that its inputs are images
        shape = (1, *observation.input_shape)
        shift, scale = (part.double().expand(shape).reshape(1, -1) for part in (normal.mean, normal.std))
        bias = f"{chain.layers[0].name}.bias"
        weights[first] = weights[first] / scale
        weights[bias] = weights[bias] - (weights[first] @ shift[0])
        update[first] = update[first] * scale + update[bias][..., None] * shift
    victims = observation.victims

    def tell(done: int) -> None:
        progress("recursion: sparse batches", done, victims)

    return sparse_batches(
        chain, weights, update, prior, batch_size=observation.batch_size, samples=options.samples, generator=generator, tell=tell
    )  # fmt: skip


def _normalization(model: nn.Module, chain: Chain) -> Normalize | None:
    return next(module for module in model.modules() if isinstance(module, Normalize)) if chain.normalized else None


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


def _victims(observation: Observation, update: Update) -> Observation:
    """The same knowledge of other victims."""
    granted = observation.granted
    return Observation(
        update=update,
        model=observation.model,
        input_shape=observation.input_shape,
        batch_size=observation.batch_size,
        public=observation.public if "public" in granted else None,
        defense=observation.defense if "defense" in granted else None,
    )


def _trust(found: Images, truth: torch.Tensor) -> torch.Tensor:
    """The share of the posterior's image, beside the linear start's, that comes closest to the images that played victims."""
    assert found.start is not None
    if bool(found.matched.all()):
        return torch.tensor(1.0)
    rows = ~found.matched
    mine, other, aim = found.found[rows].clamp(0, 1), found.start[rows], truth[rows]
    shares = torch.linspace(0, 1, _SHARES)
    errors = torch.stack([(share * mine + (1 - share) * other - aim).square().flatten(1).mean(1) for share in shares])
    scores = errors.clamp_min(1e-12).log().mean(1)  # of victims' PSNR, which no single one can spoil
    return shares[int(scores.argmin())]


def _image_prior(images: torch.Tensor) -> Gaussian:
    return of_samples(images.split(_CHUNK), hidden=False)


def _priors(observation: Observation, images: torch.Tensor, image: Gaussian, progress: Progress) -> Tensors:
    """Of the image, and of each layer's input in a chain."""
    found = image.tensors("image")
    chain = read_chain(observation.model, observation.input_shape) if observation.batch_size == 1 else None
    if chain is None:
        return found
    weights = {name: parameter.detach() for name, parameter in observation.model.named_parameters()}
    normal = _normalization(observation.model, chain)
    same = normal is None or (bool((normal.mean == 0).all()) and bool((normal.std == 1).all()))
    for index in range(same, len(chain.layers)):
        inputs = _inputs(chain, index, weights, images, normal)
        found |= of_samples(inputs, hidden=index > 0).tensors(f"layer.{index}")
        progress("recursion: priors", index + 1, len(chain.layers))
    return found


def _inputs(
    chain: Chain, index: int, weights: Mapping[str, torch.Tensor], images: torch.Tensor, normal: Normalize | None
) -> Iterator[torch.Tensor]:
    for part in images.split(_CHUNK):
        with torch.no_grad():
            inputs = part if normal is None else normal(part)
            for layer in chain.layers[:index]:
                inputs = activated(layer, weights, inputs.flatten(1))
            yield inputs


def _imagined(observation: Observation, generator: torch.Generator, progress: Progress) -> Tensors:
    """Without public images: a 1/f prior, and images drawn from it to see what they give."""
    shape, batch, device = observation.input_shape, observation.batch_size, observation.device
    image = natural(shape)
    drawn = torch.randn(_IMAGINED // batch * batch, len(image.mean), generator=generator, dtype=torch.float64) * image.spread.sqrt()
    rows = drawn if image.directions is None else drawn @ image.directions.T
    images = (image.mean + rows).clamp(0, 1).float().reshape(-1, *shape).to(device)
    image = Gaussian(image.mean.to(device), image.spread.to(device), None if image.directions is None else image.directions.to(device))
    state = _priors(observation, images, image, progress)
    some = images[: _REHEARSED * batch].reshape(-1, batch, *shape)
    with torch.no_grad():
        classes = observation.model(some[:1, 0]).shape[1]
    labels = torch.randint(classes, some.shape[:2], generator=generator).sort(dim=1).values.to(device)
    need = "defense" in observation.granted and observation.defense.needs_per_example
    raw = gradients(observation.model, some, labels, per_example=need)
    sent = observation.protected(raw, generator=generator)
    return state | rehearse(observation, sent, some, labels).tensors()
