"""Batches behind a first linear layer with a ReLU: the layer's gradient tells the examples apart.

After SPEAR (Dimitrov et al., arXiv 2403.03945). The gradient of the layer's weight is ``G = D X``: the rows of ``X`` are the
examples' images, the columns of ``D`` their ``δ``. A singular value decomposition ``G = L R`` has the same span, so there is a
matrix ``Q`` with ``D = L Q`` and ``X = Q⁻¹ R``. Its columns are found one by one. Where an example switches unit ``j`` off, its
column ``q`` meets ``L_j q = 0``. Of ``r`` examples, ``r - 1`` such units determine a column, and the others confirm it.

SPEAR draws these units blindly. Here the parameters are known, and say more. A unit that is on for the whole batch has
``w_jᵀ Σδ`` as its bias's gradient, with its weights ``w_j`` in the second layer and the second bias's gradient ``Σδ``. Such units
are recognised by that. Their rows give ``T = Δ Q⁻¹``, with the second layer's ``δ`` in ``Δ``. With ``T``, a unit that is on tells as
much as one that is off: ``(L_j - w_jᵀ T) q = 0``. Where these units are too few to determine ``T``, what they leave open is a few
more unknowns ``t = N T q`` beside ``q``. Which units are taken to be on is not drawn blindly either: mixtures of the victim's
images are drawn, which are mixtures of the rows of ``R``, and say so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from gitbench.attacker.attacks.recursion.sparse_recovery import Recovery
from gitbench.attacker.attacks.recursion.sparse_units import Tensors, factorise, negative_slope, unmixed
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain
from gitbench.attacker.layers.passes import activations
from gitbench.attacker.tools.priors import Gaussian

_TINY = 1e-30


@dataclass(frozen=True)
class Batches:
    """Candidate batches, sorted by label. Examples that the rank does not show (they send nothing) come last, as the prior's mean.

    Args:
        inputs: of the first layer, ``(V, B, n)``; the prior's mean where none was found.
        labels: ``(V, B)``.
        found: ``(V,)``.
    """

    inputs: torch.Tensor
    labels: torch.Tensor
    found: torch.Tensor


def applies(chain: Chain | None) -> bool:
    """Whether the first layer is linear, with a bias, and a ReLU (leaky or not) behind it."""
    return chain is not None and not chain.layers[0].is_conv and chain.layers[0].bias and negative_slope(chain) is not None


def sparse_batches(
    chain: Chain,
    weights: Tensors,
    update: Tensors,
    prior: Gaussian,
    *,
    batch_size: int,
    samples: int,
    generator: torch.Generator,
    tell: Callable[[int], None],
) -> Batches:
    """Candidate batches.

    Args:
        chain: for which :func:`applies` is true.
        weights: ``{name.weight, name.bias}`` of all layers, in float64.
        update: ``{name: (V, *shape)}``, in float64, at any scale.
        prior: of the first layer's input.
        batch_size: examples of a victim.
        samples: systems that are solved for a victim at most.
        generator: for the units that are drawn.
        tell: told how many victims are done.
    """
    first = chain.layers[0]
    victims, inputs = len(update[f"{first.name}.weight"]), math.prod(first.input_shape)
    device = prior.mean.device
    images = prior.mean.expand(victims, batch_size, inputs).clone()
    labels = torch.zeros(victims, batch_size, dtype=torch.long, device=device)
    found = torch.zeros(victims, dtype=torch.bool, device=device)
    for victim in range(victims):
        tell(victim)
        own = {name: tensor[victim] for name, tensor in update.items()}
        factors = factorise(own[f"{first.name}.weight"], own[f"{first.name}.bias"], most=batch_size)
        if factors is None:
            continue
        mixing = Recovery(chain, weights, own, factors, prior).mixing(samples, generator)
        if mixing is None:
            continue
        rows, deltas = unmixed(factors, mixing)
        if not bool(rows.isfinite().all()):
            continue
        classes, counts = _labelled(chain, weights, rows, deltas, batch_size)
        slots = torch.arange(len(rows), device=device).repeat_interleave(counts)
        order = classes[slots].argsort(stable=True)
        images[victim, : len(slots)], labels[victim, : len(slots)] = rows[slots][order], classes[slots][order]
        found[victim] = True
    return Batches(images, labels, found)


def _labelled(
    chain: Chain, weights: Tensors, rows: torch.Tensor, deltas: torch.Tensor, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of each image ``(r,)``, whose ``δ`` under the model is nearest, and how many examples of the batch it stands for."""
    outputs = activations(chain, weights, rows)
    probabilities = outputs[-1].softmax(1)
    classes = probabilities.shape[1]
    delta = probabilities[:, None] - torch.eye(classes, dtype=rows.dtype, device=rows.device)  # (r, classes, classes)
    for index in range(len(chain.layers) - 2, -1, -1):
        behind = operators.backward(chain.layers[index + 1], weights[f"{chain.layers[index + 1].name}.weight"], delta.flatten(0, 1))
        slopes = operators.derivative(chain.layers[index].activation, outputs[index + 1])
        delta = behind.reshape(len(rows), classes, -1) * slopes[:, None]
    products = torch.einsum("rkm,rm->rk", delta, deltas)
    found = (products / delta.norm(dim=2).clamp_min(_TINY)).argmax(1)
    sizes = products.gather(1, found[:, None])[:, 0] / delta.square().sum(2).gather(1, found[:, None])[:, 0].clamp_min(_TINY)
    counts = torch.ones_like(found)
    for _ in range(batch_size - len(rows)):
        excess = batch_size * sizes - counts
        if float(excess.max()) < 0.5:
            break
        counts[excess.argmax()] += 1
    return found, counts
