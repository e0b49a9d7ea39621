"""The weights of Exact-GIT's recursion, which undefended public pairs give away: learned once for all defenses of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.attacks.git.options import WeightOptions
from gitbench.attacker.attacks.git.trained import train_weights
from gitbench.attacker.attacks.git.weights import exact_top, solve_weights
from gitbench.attacker.layers.chain import Chain, Weights, read_chain
from gitbench.attacker.layers.passes import gradients_of
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.core.progress import Progress

_SOLVED_FROM = 2048  # examples that the weights are solved from, and a quarter more to check them
_SOLVED_BYTES = 2**29  # of gradients, where so few examples are enough
_IDENTIFIED = 0.05  # relative error of the gradients that the weights give
_VIEW = "view"


class PublicWeights(Attack):
    """No attack in itself: what it learns are weights that every ``git`` on the model shares; none where they cannot be had."""

    name = "gitbench.attacker.attacks.git.public_weights:PublicWeights"
    requires = frozenset({"architecture", "public"})
    fit_uses = frozenset({"architecture", "public"})
    Options = WeightOptions

    options: WeightOptions

    @classmethod
    def of(cls, options: WeightOptions) -> PublicWeights:
        """Those of an attack with these options."""
        return cls(**{name: getattr(options, name) for name in WeightOptions.__dataclass_fields__})

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        chain = read_chain(observation.architecture, observation.input_shape)
        if chain is None or observation.batch_size != 1:
            return {}
        order = torch.randperm(len(observation.public), generator=generator)[: self.options.limit, None]
        found = _found(chain, observation, order, self.options.weights, generator, progress)
        return {} if found is None else {**found[0], _VIEW: torch.tensor(found[1])}


def known_weights(state: Mapping[str, torch.Tensor]) -> tuple[Weights, int]:
    """Weights by their names, and which of the :func:`views` fits, of what was learned."""
    return {name: tensor for name, tensor in state.items() if name != _VIEW}, int(state[_VIEW])


def _found(
    chain: Chain, observation: Observation, order: torch.Tensor, how: str, generator: torch.Generator, progress: Progress
) -> tuple[Weights, int] | None:
    """Solved or trained on undefended pairs, checked on others where the whole gradient can be rebuilt; and which view fits."""
    unknown = 2 * (chain.layers[-1].input_shape[0] + 1)
    count = min(len(order), _SOLVED_FROM, max(unknown, _SOLVED_BYTES // (4 * observation.entries)))
    rows = order[: count + count // 4]
    undefended, names = observation.undefended(), None
    if how == "solved" and not chain.layers[0].is_conv:  # of a first linear layer nothing has to be known
        names = [name for name in undefended.sent if not name.startswith(f"{chain.layers[0].name}.")]
    pairs = PublicPairs(undefended, rows, generator=generator, progress=progress, what="git: recursion", names=names)
    everyone = torch.arange(len(rows))
    raw = pairs.gradients(everyone)
    seen = views(chain, observation, pairs.inputs[:, 0])
    if how == "trained":
        return train_weights(chain, raw, seen[0], generator=generator, progress=progress), 0
    part = raw[:count]
    check = everyone[count:] if len(everyone) > count else everyone
    for view, inputs in enumerate(seen):
        progress("git: solving the weights", view, len(seen))
        found = solve_weights(chain, part, inputs[:count], pairs.labels[:count, 0])
        if found is not None and (not chain.layers[0].is_conv or _wrong(chain, found, inputs[check], raw[check].tensors) < _IDENTIFIED):
            return found, view
    return None


def _wrong(chain: Chain, weights: Weights, inputs: torch.Tensor, truth: Mapping[str, torch.Tensor]) -> float:
    """The largest relative error, over the layers, of the gradients that the weights give."""
    delta, _ = exact_top(chain.layers[-1], truth)
    guess = gradients_of(chain, weights, inputs, delta)
    return max(float((guess[name] - tensor).norm() / tensor.norm().clamp_min(1e-20)) for name, tensor in truth.items())


def views(chain: Chain, observation: Observation, images: torch.Tensor) -> list[torch.Tensor]:
    """Images as the first layer may see them: as they are, or normalised by the public mean and deviation.

    The constants of a normalisation are not part of the architecture: the weights show which it is.
    """
    if not chain.normalized:
        return [images]
    public = observation.public.inputs
    mean, deviation = public.mean((0, 2, 3)).reshape(-1, 1, 1), public.std((0, 2, 3)).reshape(-1, 1, 1)
    return [images, (images - mean) / deviation.clamp_min(1e-3)]
