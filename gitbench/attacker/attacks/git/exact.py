"""Exact-GIT: the recursion with weights that public pairs give away, then a linear map and a network that read the image."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import nn

from gitbench.attacker.attacks.git.head import Head, fit_head
from gitbench.attacker.attacks.git.options import GitOptions
from gitbench.attacker.attacks.git.polish import Polish, fit_polish
from gitbench.attacker.attacks.git.public_weights import known_weights, views
from gitbench.attacker.attacks.git.walk import SolvedWalk, StepNoise
from gitbench.attacker.attacks.git.walk_fit import fit_walk, names_for_activations
from gitbench.attacker.layers.chain import Chain, Weights, read_chain
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.core.progress import Progress

Tensors = dict[str, torch.Tensor]

_KEPT = 2**28  # bytes of public gradients that are kept beside what is sent of them; more are computed again, a part at a time
_CHUNK = 256
_DRAWN = 256  # examples that a defense protects twice to show its noise


def fit_exact(
    observation: Observation,
    known: Mapping[str, torch.Tensor],
    *,
    options: GitOptions,
    generator: torch.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
) -> Tensors | str:
    """Learn the recursion on public pairs; why it cannot be had, where it cannot.

    Args:
        observation: needs ``public``; the defense is rehearsed where it is granted.
        known: what :class:`~gitbench.attacker.attacks.git.public_weights.PublicWeights` learned.
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
    if not known:
        return f"the weights of the recursion do not follow from {min(options.limit, len(observation.public))} public pairs"
    weights, view = known_weights(known)
    order = torch.randperm(len(observation.public), generator=generator)[: options.limit, None]
    pairs = PublicPairs(observation, order, generator=generator, progress=progress, what="git", budget=_KEPT)
    images, pixels = views(chain, observation, pairs.inputs[:, 0])[view], pairs.inputs.flatten(1)
    rows = torch.arange(len(pairs))
    held = (rows >= len(pairs) - max(1, round(options.holdout * len(pairs)))).to(pixels.device)
    noise = _noise(pairs, generator)
    updates = pairs.updates(rows, generator=generator).tensors
    raw = pairs.gradients(rows, needed).tensors if (needed := names_for_activations(chain, weights)) else {}
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
