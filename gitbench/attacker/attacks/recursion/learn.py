"""What the recursion learns from public images, or from imagined ones: priors, the defense's noise, a linear start, and trust."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from gitbench.attacker.attacks.recursion.departure import measure_departure
from gitbench.attacker.attacks.recursion.estimate import Images, estimate, normalization
from gitbench.attacker.attacks.recursion.options import RecursionOptions
from gitbench.attacker.attacks.recursion.supported import check_layers
from gitbench.attacker.layers.chain import Chain, read_chain
from gitbench.attacker.layers.passes import activated
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.linear_image import fit_linear_image
from gitbench.attacker.tools.priors import DENSE, Gaussian, natural, of_samples, of_spectrum
from gitbench.attacker.tools.public_pairs import public_batches
from gitbench.attacker.tools.rehearsal import sent_for
from gitbench.attacker.tools.trust import chosen_shares
from gitbench.clients.normalize import Normalize
from gitbench.core.progress import Progress

Tensors = dict[str, torch.Tensor]

_REHEARSED = 64  # images whose updates show the noise
_IMAGINED = 1024  # images drawn from the prior where none are public
_CHUNK = 128
_SHARES = 21


def learn(observation: Observation, *, options: RecursionOptions, generator: torch.Generator, progress: Progress) -> Tensors:
    """Learn priors, the defense's noise, the linear start and the trust in the posterior; without public images the first two.

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
    spectrum = options.prior == "spectrum" and images[0].numel() <= DENSE
    image = of_spectrum(images) if spectrum else of_samples(images.split(_CHUNK), hidden=False)
    state = _priors(observation, images, image, progress)
    state |= fit_linear_image(
        observation, order, holdout=options.holdout, thorough=False, generator=generator, progress=progress, what="recursion"
    )
    some = order[-_REHEARSED:]
    sent = observation.public_updates(some, generator=generator)
    state |= measure_departure(observation, sent, public.inputs[some], public.labels[some]).tensors()
    if cut:
        sent = observation.public_updates(played, generator=generator)
        found = estimate(observation.with_update(sent), state, options=options, generator=generator, progress=progress)
        progress("recursion: trust", 1, 1)  # out of time, what was found is unfinished, and not to be kept
        state["trust"] = _trust(found, public.inputs[played])
    return state


def _trust(found: Images, truth: torch.Tensor) -> torch.Tensor:
    """The share of the posterior's image, the rest being the linear start's, that is best for public images that played victims."""
    assert found.start is not None
    if bool(found.matched.all()):
        return torch.tensor(1.0)
    rows = ~found.matched
    shares = torch.linspace(0, 1, _SHARES)
    candidates = torch.stack([found.found[rows].clamp(0, 1), found.start[rows]])
    return chosen_shares(candidates, truth[rows], torch.stack([shares, 1 - shares], dim=1))[0]


def _priors(observation: Observation, images: torch.Tensor, image: Gaussian, progress: Progress) -> Tensors:
    """Priors of the image, and of each layer's input where the model is a chain."""
    found = image.tensors("image")
    chain = read_chain(observation.model, observation.input_shape) if observation.batch_size == 1 else None
    if chain is None:
        return found
    weights = {name: parameter.detach() for name, parameter in observation.model.named_parameters()}
    normal = normalization(observation.model, chain)
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
    """Without public images: a prior of photographs, and the noise of updates of images drawn from it."""
    shape, batch, device = observation.input_shape, observation.batch_size, observation.device
    image = natural(shape)
    images = image.drawn(_IMAGINED // batch * batch, generator).clamp(0, 1).float().reshape(-1, *shape).to(device)
    state = _priors(observation, images, image.to(device), progress)
    some = images[: _REHEARSED * batch].reshape(-1, batch, *shape)
    labels, sent = sent_for(observation, some, generator=generator)
    return state | measure_departure(observation, sent, some, labels).tensors()
