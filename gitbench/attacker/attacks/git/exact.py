"""Exact-GIT: the recursion with weights that public pairs give away, then a linear map and a network that read the image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from gitbench.attacker.attacks.git.head import Head, fit_head
from gitbench.attacker.attacks.git.options import GitOptions
from gitbench.attacker.attacks.git.polish import Polish, fit_polish
from gitbench.attacker.attacks.git.trained import train_weights
from gitbench.attacker.attacks.git.walk import SolvedWalk, StepNoise
from gitbench.attacker.attacks.git.walk_fit import fit_walk, names_for_activations
from gitbench.attacker.attacks.git.weights import exact_top, solve_weights
from gitbench.attacker.layers.chain import Chain, Weights, read_chain
from gitbench.attacker.layers.passes import gradients_of
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.core.progress import Progress

Tensors = dict[str, torch.Tensor]

_SOLVED_FROM = 2048  # examples that the weights are solved from, and a quarter more to check them
_SOLVED_BYTES = 2**29  # of gradients, where so few examples are enough
_KEPT = 2**28  # bytes of public gradients that are kept beside what is sent of them; more are computed again, a part at a time
_IDENTIFIED = 0.05  # relative error of the gradients that the weights give
_CHUNK = 256
_DRAWN = 256  # examples that a defense protects twice to show its noise


def fit_exact(
    observation: Observation, *, options: GitOptions, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint
) -> Tensors | str:
    """Learn the recursion on public pairs; why it cannot be had, where it cannot.

    Args:
        observation: needs ``public``; the defense is rehearsed where it is granted.
        options: widths and budget.
        generator: for the order of the public images, the defense and the training.
        progress: told what is going on.
        checkpoint: for :func:`gitbench.attacker.learning.train_network`.
    """
    chain = read_chain(observation.architecture, observation.input_shape)
    if chain is None:
        return "the model is no chain of linear layers and convolutions in torch.nn.Sequential"
    if observation.batch_size != 1:
        return f"the recursion takes one example per victim, not {observation.batch_size}"
    order = torch.randperm(len(observation.public), generator=generator)[: options.limit, None]
    found = _weights(chain, observation, order, options, generator, progress)
    if found is None:
        return f"the weights of the recursion do not follow from {min(len(order), _SOLVED_FROM)} public pairs"
    weights, view = found
    pairs = PublicPairs(observation, order, generator=generator, progress=progress, what="git", budget=_KEPT)
    images, pixels = _views(chain, observation, pairs.inputs[:, 0])[view], pairs.inputs.flatten(1)
    rows = torch.arange(len(pairs))
    held = (rows >= len(pairs) - max(1, round(options.holdout * len(pairs)))).to(pixels.device)
    noise = _noise(pairs, generator)
    updates = pairs.updates(rows, generator=generator).tensors
    needed = names_for_activations(chain, weights)
    raw = pairs.gradients(rows, needed).tensors if needed else {}
    walk, first = fit_walk(chain, weights, noise, raw=raw, updates=updates, inputs=images, held=held, progress=progress)
    noisy = max(noise.variance.values()) > 0
    polish = _polish(chain, weights, noise, observation, pairs, images, progress) if noisy and options.polish else None
    draws = options.draws if noisy and polish is None else 1  # a polished image varies little between draws
    features = [first] if draws == 1 else _features(walk, pairs, draws, generator, progress)
    learned = {f"walk.{name}": tensor for name, tensor in walk.tensors.items()}
    if polish is not None:
        learned |= {f"polish.{name}": tensor for name, tensor in polish.tensors.items()}
        start, behind = _polished(polish, walk, updates, features[0], images.flatten(1), pixels, held, options.polish, progress)
        learned, features = learned | start, [behind]
    del pairs, updates
    images_first = walk.reaches_input and view == 0 and polish is None
    return learned | fit_head(
        features, pixels, held=held, first=images_first, options=options, generator=generator, progress=progress, checkpoint=checkpoint
    )


def run_exact(observation: Observation, state: Mapping[str, torch.Tensor], *, polish: int, progress: Progress) -> torch.Tensor:
    """Reconstruct ``(V, 1, C, H, W)`` in [0, 1].

    Args:
        observation: holds the update.
        state: of :func:`fit_exact`.
        polish: as in :class:`GitOptions`.
        progress: told what is going on.
    """
    chain = read_chain(observation.architecture, observation.input_shape)
    assert chain is not None
    walk, head = SolvedWalk(chain, _part(state, "walk.")), Head.stored(state, observation.device)
    expectation, polisher = observation.expectation, None
    if "start.weight" in state and expectation is not None and not expectation.defense.needs_batch:
        polisher = Polish(chain, _part(state, "walk.weights."), _part(state, "polish."), expectation)
    update, found = observation.update, []
    with torch.no_grad():
        for start in range(0, update.victims, _CHUNK):
            part = update[start : start + _CHUNK].tensors
            features = walk.features(part)
            if polisher is not None:
                begin = LinearMap.stored(state, "start")(features)
                better = polisher(part, begin, walk.labels(part), iterations=polish)
                features = torch.cat([better, features], dim=1) if bool(state["start.kept"]) else better
            found.append(head(features))
            progress("git: victims", min(start + _CHUNK, update.victims), update.victims)
    return torch.cat(found).clamp(0, 1).reshape(update.victims, 1, *observation.input_shape)


def _weights(
    chain: Chain, observation: Observation, order: torch.Tensor, options: GitOptions, generator: torch.Generator, progress: Progress
) -> tuple[Weights, int] | None:
    """Solved or trained on undefended pairs, checked on others where the whole gradient can be rebuilt; and which view fits."""
    unknown = 2 * (chain.layers[-1].input_shape[0] + 1)
    count = min(len(order), _SOLVED_FROM, max(unknown, _SOLVED_BYTES // (4 * observation.entries)))
    rows = order[: count + count // 4]
    undefended, names = observation.undefended(), None
    if options.weights == "solved" and not chain.layers[0].is_conv:  # of a first linear layer nothing has to be known
        names = [name for name in undefended.sent if not name.startswith(f"{chain.layers[0].name}.")]
    pairs = PublicPairs(undefended, rows, generator=generator, progress=progress, what="git: recursion", names=names)
    everyone = torch.arange(len(rows))
    raw = pairs.gradients(everyone)
    views = _views(chain, observation, pairs.inputs[:, 0])
    if options.weights == "trained":
        return train_weights(chain, raw, views[0], generator=generator, progress=progress), 0
    part = raw[:count]
    check = everyone[count:] if len(everyone) > count else everyone
    for view, inputs in enumerate(views):
        progress("git: solving the weights", view, len(views))
        found = solve_weights(chain, part, inputs[:count], pairs.labels[:count, 0])
        if found is not None and (not chain.layers[0].is_conv or _wrong(chain, found, inputs[check], raw[check].tensors) < _IDENTIFIED):
            return found, view
    return None


def _wrong(chain: Chain, weights: Weights, inputs: torch.Tensor, truth: Mapping[str, torch.Tensor]) -> float:
    """The largest relative error, over the layers, of the gradients that the weights give."""
    delta, _ = exact_top(chain.layers[-1], truth)
    guess = gradients_of(chain, weights, inputs, delta)
    return max(float((guess[name] - tensor).norm() / tensor.norm().clamp_min(1e-20)) for name, tensor in truth.items())


def _views(chain: Chain, observation: Observation, images: torch.Tensor) -> list[torch.Tensor]:
    """Images as the first layer may see them: as they are, or normalised by the public mean and deviation.

    The constants of a normalisation are not part of the architecture: the weights show which it is.
    """
    if not chain.normalized:
        return [images]
    public = observation.public.inputs
    mean, deviation = public.mean((0, 2, 3)).reshape(-1, 1, 1), public.std((0, 2, 3)).reshape(-1, 1, 1)
    return [images, (images - mean) / deviation.clamp_min(1e-3)]


def _noise(pairs: PublicPairs, generator: torch.Generator) -> StepNoise:
    rows = torch.arange(min(_DRAWN, len(pairs)))
    raw = {name: int(tensor.count_nonzero()) for name, tensor in pairs.gradients(rows).tensors.items()}
    first, second = (pairs.updates(rows, generator=generator).tensors for _ in range(2))
    sent = {name: int(tensor.count_nonzero()) / max(1, raw[name]) for name, tensor in first.items()}
    return StepNoise({name: float(nn.functional.mse_loss(first[name], second[name]) / 2) for name in first}, sent)


def _features(walk: SolvedWalk, pairs: PublicPairs, draws: int, generator: torch.Generator, progress: Progress) -> list[torch.Tensor]:
    """The walk's features of all public pairs, once for each draw of the defense."""
    rows, features = torch.arange(len(pairs)), []
    for draw in range(draws):
        parts = []
        for begin in range(0, len(rows), _CHUNK):
            parts.append(walk.features(pairs.updates(rows[begin : begin + _CHUNK], generator=generator).tensors))
            progress("git: walking back", draw * len(rows) + min(begin + _CHUNK, len(rows)), draws * len(rows))
        features.append(torch.cat(parts))
    return features


def _polish(
    chain: Chain, weights: Weights, noise: StepNoise, observation: Observation, pairs: PublicPairs, images: torch.Tensor, progress: Progress
) -> Polish | None:
    expectation = observation.expectation
    if noise.sparse or expectation is None or expectation.defense.needs_batch:  # there is no model to show it
        return None
    some, labels = pairs.gradients(torch.arange(min(_DRAWN, len(pairs)))).tensors, pairs.labels[:, 0]
    return fit_polish(chain, weights, noise.variance, expectation, raw=some, inputs=images, labels=labels, progress=progress)


def _polished(
    polish: Polish,
    walk: SolvedWalk,
    updates: Mapping[str, torch.Tensor],
    features: torch.Tensor,
    images: torch.Tensor,
    pixels: torch.Tensor,
    held: torch.Tensor,
    iterations: int,
    progress: Progress,
) -> tuple[Tensors, torch.Tensor]:
    """The map from the walk's features to where the polish starts, and the features behind the polish."""
    start = fit_linear(features, images, held=held, bounds=(float(images.min()), float(images.max())))
    parts = []
    for begin in range(0, len(features), _CHUNK):
        seen = {name: tensor[begin : begin + _CHUNK] for name, tensor in updates.items()}
        parts.append(polish(seen, start(features[begin : begin + _CHUNK]), walk.labels(seen), iterations=iterations))
        progress("git: all layers at once", min(begin + _CHUNK, len(features)), len(features))
    better = torch.cat(parts)
    both = torch.cat([better, features], dim=1)
    # Fine detail may lie outside of the polish's components; features that add nothing add their noise.
    alone, together = (fit_linear(part, pixels, held=held, bounds=(0, 1)).error for part in (better, both))
    kept = together < alone
    return {**start.tensors("start"), "start.kept": torch.tensor(kept)}, both if kept else better


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def exact_memory(observation: Observation, options: GitOptions) -> int:
    """Bytes at the peak of :func:`fit_exact`: what is sent, beside it a chunk of gradients, and the features of every draw."""
    count = min(options.limit, len(observation.public))
    gradients = 4 * count * observation.entries
    chunk = 4 * 2 * observation.chunk * observation.entries
    return gradients + min(_KEPT, gradients) + chunk + 4 * count * (2 * options.draws + 4) * math.prod(observation.input_shape)
