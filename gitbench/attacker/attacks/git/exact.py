"""Exact-GIT: the recursion with weights that public pairs give away, then a network for what it leaves over."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attacks.git.polish import Polish, fit_polish
from gitbench.attacker.attacks.git.trained import train_weights
from gitbench.attacker.attacks.git.walk import SolvedWalk, StepNoise, fit_walk
from gitbench.attacker.attacks.git.weights import exact_top, solve_weights
from gitbench.attacker.layers.chain import Chain, Weights, read_chain
from gitbench.attacker.layers.passes import gradients_of
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.core.progress import Progress
from gitbench.core.random import seeded

Tensors = dict[str, torch.Tensor]

_SOLVED_FROM = 2048  # examples that the weights are solved from, and a quarter more to check them
_SOLVED_BYTES = 2**29  # of gradients, where so few examples are enough
_IDENTIFIED = 0.05  # relative error of the gradients that the weights give
_CHUNK = 256
_EXACT = 1e-4  # root mean square of a pixel's error
_DRAWN = 256  # examples that a defense protects twice to show its noise


@dataclass(frozen=True)
class ExactOptions:
    """Of :func:`fit_exact`.

    Args:
        width: of the residual network's two hidden layers.
        epochs: passes over the public pairs.
        lr: of the first step.
        draws: of a random defense for each public pair.
        holdout: share of the public pairs that chooses penalties and the epoch.
        limit: at most so many public examples.
        adapt: pass the public updates through the defense.
        weights: ``solved`` in closed form, or ``trained`` on the input's squared error.
        polish: iterations of :class:`gitbench.attacker.attacks.git.polish.Polish` against a noisy defense.
    """

    width: int = 768
    epochs: int = 10
    lr: float = 3e-4
    draws: int = 3
    holdout: float = 0.1
    limit: int = 20_000
    adapt: bool = True
    weights: str = "solved"
    polish: int = 6


def fit_exact(
    observation: Observation, *, options: ExactOptions, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint
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
    public = observation.public
    order = torch.randperm(len(public), generator=generator)[: options.limit, None]
    found = _weights(chain, observation, order, options, generator, progress)
    if found is None:
        return f"the weights of the recursion do not follow from {min(len(order), _SOLVED_FROM)} public pairs"
    pairs = PublicPairs(observation, order, generator=generator, progress=progress, what="git")
    weights, view = found
    images = _views(chain, observation, pairs.inputs[:, 0])[view]
    rows = torch.arange(len(pairs))
    held = rows >= len(pairs) - max(1, round(options.holdout * len(pairs)))
    noise = _noise(pairs, generator)
    updates = pairs.updates(rows, generator=generator).tensors
    walk = _walk(chain, weights, noise, pairs, updates, images, held, progress)
    noisy = max(noise.variance.values()) > 0
    polish = _polish(chain, weights, noise, observation, pairs, images, progress) if noisy and options.polish else None
    draws = options.draws if noisy and polish is None else 1  # a polished image varies little between draws
    features = []
    for draw in range(draws):
        parts = []
        for begin in range(0, len(rows), _CHUNK):
            if draws == 1:
                seen = {name: tensor[begin : begin + _CHUNK] for name, tensor in updates.items()}
            else:
                seen = dict(pairs.updates(rows[begin : begin + _CHUNK], generator=generator).tensors)
            parts.append(walk.features(seen))
            progress("git: walking back", draw * len(rows) + min(begin + _CHUNK, len(rows)), draws * len(rows))
        features.append(torch.cat(parts))
    pixels = pairs.inputs.flatten(1)
    learned = {f"walk.{name}": tensor for name, tensor in walk.tensors.items()}
    if polish is not None:
        start, features = _polished(polish, walk, updates, features[0], images.flatten(1), pixels, held, options.polish, progress)
        learned |= {**{f"polish.{name}": tensor for name, tensor in polish.tensors.items()}, **start}
    del pairs, updates
    reached = walk.reaches_input and view == 0 and polish is None
    return {**learned, **_fit_head(features, pixels, held, reached, options, generator, progress, checkpoint)}


def run_exact(observation: Observation, state: Mapping[str, torch.Tensor], *, polish: int, progress: Progress) -> torch.Tensor:
    """Reconstruct ``(V, 1, C, H, W)`` in [0, 1].

    Args:
        observation: holds the update.
        state: of :func:`fit_exact`.
        polish: as in :class:`ExactOptions`.
        progress: told what is going on.
    """
    chain = read_chain(observation.architecture, observation.input_shape)
    assert chain is not None
    walk = SolvedWalk(chain, _part(state, "walk."))
    expectation, polisher = observation.expectation, None
    if "start.weight" in state and expectation is not None:
        polisher = Polish(chain, _part(state, "walk.weights."), _part(state, "polish."), expectation)
    final = LinearMap.stored(state, "final")
    network = _network(len(final.input_mean), int(state["head.width"]), len(final.output_mean)).to(observation.device)
    network.load_state_dict(_part(state, "head.net."))
    network.eval()
    update, found = observation.update, []
    with torch.no_grad():
        for start in range(0, update.victims, _CHUNK):
            part = update[start : start + _CHUNK].tensors
            features = walk.features(part)
            if polisher is not None:
                begin = LinearMap.stored(state, "start")(features)
                better = polisher(part, begin, walk.labels(part), iterations=polish)
                features = torch.cat([better, features], dim=1) if bool(state["start.kept"]) else better
            rest = network((features - state["head.mean"]) / state["head.deviation"])
            found.append(final(features) + state["head.trust"] * rest)
            progress("git: victims", min(start + _CHUNK, update.victims), update.victims)
    return torch.cat(found).clamp(0, 1).reshape(update.victims, 1, *observation.input_shape)


def _weights(
    chain: Chain, observation: Observation, order: torch.Tensor, options: ExactOptions, generator: torch.Generator, progress: Progress
) -> tuple[Weights, int] | None:
    """Solved or trained on undefended pairs, checked on others where the whole gradient can be rebuilt; and which view fits."""
    parameters = {name: parameter.numel() for name, parameter in observation.architecture.named_parameters()}
    unknown = 2 * (chain.layers[-1].input_shape[0] + 1)
    count = min(len(order), _SOLVED_FROM, max(unknown, _SOLVED_BYTES // (4 * sum(parameters.values()))))
    rows = order[: count + count // 4]
    pairs = PublicPairs(observation.undefended(), rows, generator=generator, progress=progress, what="git: recursion")
    everyone = torch.arange(len(rows))
    raw = pairs.gradients(everyone)
    views = _views(chain, observation, pairs.inputs[:, 0])
    if options.weights == "trained":
        return train_weights(chain, raw, views[0], generator=generator, progress=progress), 0
    part = raw[:count]
    check = everyone[count:] if len(everyone) > count else everyone
    truth = raw[check].tensors
    for view, inputs in enumerate(views):
        progress("git: solving the weights", view, len(views))
        found = solve_weights(chain, part, inputs[:count], pairs.labels[:count, 0])
        if found is not None and (not chain.layers[0].is_conv or _wrong(chain, found, inputs[check], truth) < _IDENTIFIED):
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
    raw = pairs.gradients(rows).tensors
    first, second = (pairs.updates(rows, generator=generator).tensors for _ in range(2))
    variance = {name: float((first[name] - second[name]).square().mean() / 2) for name in raw}
    sent = {name: float((first[name] != 0).sum() / (tensor != 0).sum().clamp_min(1)) for name, tensor in raw.items()}
    return StepNoise(variance, sent)


def _walk(
    chain: Chain,
    weights: Weights,
    noise: StepNoise,
    pairs: PublicPairs,
    updates: Mapping[str, torch.Tensor],
    images: torch.Tensor,
    held: torch.Tensor,
    progress: Progress,
) -> SolvedWalk:
    raw = pairs.gradients(torch.arange(len(pairs))).tensors
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        progress(f"git: fitting {what}", done, len(chain.layers))
        done += 1

    return fit_walk(chain, weights, noise, raw=raw, updates=updates, inputs=images, held=held.to(images.device), tell=tell)


def _polish(
    chain: Chain, weights: Weights, noise: StepNoise, observation: Observation, pairs: PublicPairs, images: torch.Tensor, progress: Progress
) -> Polish | None:
    expectation = observation.expectation
    if noise.sparse or expectation is None:
        return None
    some = dict(pairs.gradients(torch.arange(min(_DRAWN, len(pairs)))).tensors)
    found = fit_polish(
        chain, weights, noise.variance, expectation, raw=some, inputs=images, labels=pairs.labels[:, 0], progress=progress
    )  # fmt: skip
    return None if found is None else Polish(chain, weights, found, expectation)


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
) -> tuple[Tensors, list[torch.Tensor]]:
    """The map from the walk's features to where the polish starts, and the features behind the polish."""
    held = held.to(images.device)
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
    return {**start.tensors("start"), "start.kept": torch.tensor(kept)}, [both if kept else better]


def _part(state: Mapping[str, torch.Tensor], prefix: str) -> Tensors:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _fit_head(
    features: list[torch.Tensor],
    pixels: torch.Tensor,
    held: torch.Tensor,
    reached: bool,
    options: ExactOptions,
    generator: torch.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
) -> Tensors:
    """The linear path in closed form, and a network that starts at zero for the rest."""
    draws = len(features)
    held = held.to(pixels.device)
    progress("git: fitting the linear path", 0, 1)
    final = _first(features[0], pixels, held) if reached else None
    if final is None or final.error > _EXACT**2:
        fitted = fit_linear(torch.cat(features), pixels.repeat(draws, 1), held=held.repeat(draws), bounds=(0, 1))
        # Few examples cannot teach a regression the identity.
        final = fitted if final is None or fitted.error < final.error else final
    mean, deviation = features[0].mean(0), features[0].std(0).clamp_min(1e-4)
    rests = [pixels - final(part) for part in features]
    with seeded(generator):
        network = _network(features[0].shape[1], options.width, pixels.shape[1]).to(pixels.device)
    train, test = (~held).nonzero().flatten(), held.nonzero().flatten()
    scale = rests[0][test].square().mean().sqrt().clamp_min(1e-8)

    def network_of(draw: int, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = network((features[draw][rows] - mean) / deviation)
        return found

    def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        draw = int(torch.randint(draws, (), generator=generator))
        rows = train[chosen.to(train.device)]
        return (network_of(draw, rows) - rests[draw][rows] / scale).square().mean()

    def validate() -> float:
        return float((network_of(0, test) - rests[0][test] / scale).square().mean())

    before = float((rests[0][test] / scale).square().mean())
    after = before
    if float(scale) > _EXACT:  # a linear path that is exact leaves nothing to learn but rounding
        after = train_network(
            network, loss=loss, rows=len(train), validate=validate, epochs=options.epochs, batch_size=128, lr=options.lr,
            generator=generator, progress=progress, what="git", checkpoint=checkpoint, weight_decay=0.05, patience=3,
        )  # fmt: skip
    learned = {f"head.net.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()}
    return {
        **final.tensors("final"),
        **learned,
        "head.mean": mean,
        "head.deviation": deviation,
        "head.width": torch.tensor(options.width),
        "head.trust": scale * float(after < before),
    }


def _first(features: torch.Tensor, pixels: torch.Tensor, held: torch.Tensor) -> LinearMap:
    """The map that takes the first features for the pixels."""
    weight = torch.eye(features.shape[1], pixels.shape[1], device=pixels.device)
    zeros = pixels.new_zeros(features.shape[1])
    found = LinearMap(zeros, pixels.new_zeros(pixels.shape[1]), weight, 0.0)
    error = float((found(features[held]).clamp(0, 1) - pixels[held]).square().mean())
    return LinearMap(zeros, found.output_mean, weight, error)


def _network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    network = nn.Sequential(
        nn.Linear(inputs, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1), nn.Linear(width, outputs)
    )
    last = network[-1]
    assert isinstance(last, nn.Linear)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return network


def exact_memory(observation: Observation, options: ExactOptions) -> int:
    """Bytes at the peak of :func:`fit_exact`: gradients twice (raw and defended), and the features of every draw."""
    count = min(options.limit, len(observation.public))
    entries = sum(parameter.numel() for parameter in observation.architecture.parameters())
    pixels = math.prod(observation.input_shape)
    return 4 * count * (3 * entries + (2 * options.draws + 4) * pixels)
