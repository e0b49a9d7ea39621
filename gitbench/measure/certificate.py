"""The certificate: where a reconstruction explains what was sent to numerical precision, the attacker knows that it is right."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.attack import Attack, Hybrid
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.assignment import assigned
from gitbench.attacker.tools.features import forward_features
from gitbench.attacker.tools.labels import class_signal, infer_labels
from gitbench.clients.client import expected_update
from gitbench.clients.defense import changes_batch
from gitbench.clients.model import last_layer
from gitbench.clients.task import own_targets, targets_for
from gitbench.clients.update import Update
from gitbench.core.random import make_generator
from gitbench.measure.determined import determined

# Of a tensor's norm. Recomputed in another order, or in float64, the update of the truth itself departs by 1e-7 to 4e-5 (measured on
# the built-in models, single images and batches); that of the truth with noise at 30 dB by 3e-2 or more, at 60 dB by 8e-4 or more.
_PRECISION = 1e-3
# Of the whole update's norm: more than a tensor has that is zero but for rounding, such as a bias before BatchNorm (1e-9 was seen), and
# less than one that says something (3e-4 was seen).
_ROUNDING = 1e-6
_NEIGHBOURS = 16  # of a discrete input, that must not explain the update as well


def certified(attack: Attack, observation: Observation, inputs: torch.Tensor, *, exact: bool = True) -> tuple[bool, ...] | None:
    """Of each victim, whether the attacker knows without the truth that its reconstruction is right.

    The update of the reconstruction is computed as the client would, with the labels that are granted or that follow, and sent through
    the defense's deterministic part. It must be what was observed, tensor by tensor: the norm of the difference is at most 1e-3 of the
    observed norm, which float32 explains and a wrong image does not.

    Explaining an update is not enough where it says less than there is to know: after pruning, or of a large batch, wrong images explain
    it too. So the update must determine the images, as far as can be told: :func:`gitbench.measure.determined.determined` says what is
    asked, and what is not. Where inputs are discrete, none of 16 others next to them may explain the update as well. The
    other error is the smaller one: where labels are not found, or images not put in their order, a reconstruction that is right goes
    without a certificate.

    Args:
        attack: one that does not adapt takes what it sees for a plain gradient, and so does its certificate.
        observation: what the threat model grants.
        inputs: the reconstruction ``(V, B, *shape)``.
        exact: False where the defense draws random numbers, or rounds: neither ever certifies.

    Returns:
        None where the attacker cannot tell: it lacks the parameters, labels cannot be read off, or the update cannot be recomputed.
    """
    if "parameters" not in observation.granted:
        return None
    if not exact or ("defense" in observation.granted and changes_batch(observation.defense)):
        return (False,) * len(inputs)
    try:
        return _certified(observation if _adapts(attack) else observation.oblivious(), inputs)
    except Exception:  # noqa: BLE001 - users' code may raise anything here, and the measurement stands without a certificate
        return None


def _certified(observation: Observation, inputs: torch.Tensor) -> tuple[bool, ...]:
    labels, ordered = _labelled(observation, inputs)
    found = _explains(observation, inputs, labels)
    if labels.shape[1] > 1:
        # The order of a batch means nothing, but each image must meet its own label: most attacks sort by label.
        other = torch.zeros_like(found)
        rows = (~found).nonzero()[:, 0]
        if len(rows):
            other[rows] = _explains(observation.of_victims(rows, labels=labels[rows]), ordered[rows], labels[rows])
        inputs = torch.where(other.reshape(-1, *(1,) * (inputs.ndim - 1)), ordered, inputs)
        found = found | other
    for victim in found.nonzero():
        one = observation.of_victims(victim, labels=labels[victim])
        others = observation.modality.neighbours(inputs[victim][0], count=_NEIGHBOURS, generator=make_generator(0, "neighbours"))
        if others is None:
            found[victim] = determined(one, inputs[victim], labels[victim], compared=_telling(one.update))
        else:
            found[victim] = not _another_explains(observation, victim, others, labels[victim])
    return tuple(found.tolist())


def _another_explains(observation: Observation, victim: torch.Tensor, others: torch.Tensor, labels: torch.Tensor) -> bool:
    """Whether the update of one victim is also that of other batches ``(K, B, *shape)``: then it does not determine the one found."""
    rows = victim.expand(len(others))
    follow = own_targets(observation.model) is not None
    targets = targets_for(observation.model, others) if follow else labels.expand(len(others), *labels.shape[1:])
    return bool(_explains(observation.of_victims(rows, labels=targets), others, targets).any())


def _explains(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Whether a reconstruction's own update is the observed one, ``(V,)``; some victims at a time, for their gradients may be large."""
    parts = []
    for rows in torch.arange(len(inputs), device=inputs.device).split(observation.chunk):
        observed = observation.update[rows]
        own = expected_update(
            observation.model,
            inputs[rows],
            labels[rows],
            expectation=observation.expectation,
            observed=observed,
            client=observation.client,
        )
        parts.append(_same(own.detach(), observed))
    return torch.cat(parts)


def _same(own: Update, observed: Update) -> torch.Tensor:
    """Whether each tensor is the same up to rounding, ``(V,)``. What is not finite is not, and nothing explains an update of zeros."""
    norms = torch.stack([tensor.double().flatten(1).norm(dim=1) for tensor in observed.tensors.values()])
    errors = torch.stack([(own.tensors[name] - tensor).double().flatten(1).norm(dim=1) for name, tensor in observed.tensors.items()])
    floor = _ROUNDING * norms.norm(dim=0)
    # A tensor that is next to zero must be next to zero; how it rounds is chance.
    same: torch.Tensor = (errors <= torch.where(norms > floor, _PRECISION * norms, floor)).all(0) & (floor > 0)
    return same


def _telling(observed: Update) -> frozenset[str]:
    """The tensors of one victim's update that are not next to zero."""
    norms = {name: float(tensor.double().norm()) for name, tensor in observed.tensors.items()}
    floor = _ROUNDING * sum(norm**2 for norm in norms.values()) ** 0.5
    return frozenset(name for name, norm in norms.items() if norm > floor)


def _labelled(observation: Observation, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels ``(V, B)``, sorted, and the images in their order.

    Of a batch the labels follow from its images: the bias's gradient of the last layer is the mean of ``p - y``, and ``p`` is what
    the model makes of them. Where they are wrong, so may be the labels, and nothing is explained. That is cheaper than to infer
    them from public images, and needs no more than the images to be right.
    """
    if own_targets(observation.model) is not None:
        return targets_for(observation.model, inputs), inputs
    name, layer = last_layer(observation.architecture)
    tensors, known, batch = observation.update.tensors, "labels" in observation.granted, inputs.shape[1]
    weight = tensors.get(f"{name}.weight")
    if batch == 1 or weight is None or f"{name}.bias" not in tensors or not isinstance(layer, nn.Linear) or observation.model.training:
        return infer_labels(observation), inputs
    features, logits = forward_features(observation.model, inputs.flatten(0, 1))
    if features.ndim != 2:
        return infer_labels(observation), inputs
    features, likely = (part.unflatten(0, inputs.shape[:2]) for part in (features, logits.softmax(1)))
    granted = functional.one_hot(observation.labels, likely.shape[2]).sum(1).double() if known else None
    counts, scale = _counts(class_signal(observation).double(), likely, granted)
    labels = _spelled(counts, batch)
    if weight.shape[1] != likely.shape[2]:  # one logit has one row for both classes
        weight = torch.cat([-weight, weight], dim=1)
    # Each class's own features: a row of the weight's gradient is the mean of (p - y) a.
    own = torch.einsum("vbk,vbf->vkf", likely, features) - batch * weight.double() / scale[:, :, None]
    own = own / counts.clamp_min(1)[:, :, None]
    aims = own.gather(1, labels[:, :, None].expand(-1, -1, own.shape[2]))
    places = torch.arange(batch, device=inputs.device).double()[None, :, None].expand(len(inputs), -1, -1)
    nothing = torch.zeros_like(places)  # the place of an image costs nothing
    order = assigned(torch.cat([aims, nothing], dim=2), torch.cat([features, places], dim=2))[..., -1].long()
    return labels, inputs[torch.arange(len(inputs), device=inputs.device)[:, None], order]


def _counts(signal: torch.Tensor, likely: torch.Tensor, granted: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """How many images of each class ``(V, classes)``, and the scale ``(V, 1)`` at which the signal was sent.

    Args:
        signal: mean of ``p - y``, at a scale that a defense may have changed: then a class that is absent tells it, which has ``p`` alone.
        likely: probabilities ``(V, B, classes)``.
        granted: the counts, where they are known.
    """
    batch, mean = likely.shape[1], likely.mean(1)
    scales = torch.stack([torch.ones_like(mean[:, :1]), (signal / mean.clamp_min(1e-12)).amax(1, keepdim=True).clamp_min(1e-12)])
    raw = batch * (mean - signal / scales)
    counts = raw.round().clamp_min(0) if granted is None else granted.expand_as(raw)
    misfit = (raw - counts).abs().amax(2) + batch * (counts.sum(2) - batch).abs()
    chosen = misfit.argmin(0)
    rows = torch.arange(len(signal), device=signal.device)
    return counts[chosen, rows].clamp_max(batch), scales[chosen, rows]


def _spelled(counts: torch.Tensor, batch: int) -> torch.Tensor:
    """Sorted labels ``(V, B)`` of counts ``(V, classes)``; of counts that are none of a batch, any."""
    rows = []
    for row in counts.long():
        found = torch.arange(len(row), device=row.device).repeat_interleave(row)[:batch]
        rows.append(functional.pad(found, (0, batch - len(found))))
    return torch.stack(rows)


def _adapts(attack: Attack) -> bool:
    """Whether an attacker knows what clients do and how they defend themselves; of a hybrid, whether any part does."""
    return _adapts(attack.prior) or _adapts(attack.refiner) if isinstance(attack, Hybrid) else attack.adapt
