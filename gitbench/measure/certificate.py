"""The certificate: where a reconstruction explains what was sent to numerical precision, the attacker knows that it is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gitbench.attacker.attack import Attack, Hybrid
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.assignment import assigned
from gitbench.attacker.tools.features import forward_features, last_features
from gitbench.attacker.tools.labels import infer_labels
from gitbench.clients.client import expected_update
from gitbench.clients.defense import Composition, Defense
from gitbench.clients.update import Update

# Of a tensor's norm. Recomputed in another order, or in float64, the update of the truth itself departs by 1e-7 to 4e-5 (measured on
# every built-in model); that of the truth with noise at 30 dB by 3e-2 or more, at 60 dB by 8e-4 or more.
_PRECISION = 1e-3
# Of the whole update's norm: what a tensor has that is zero but for rounding, such as a bias before BatchNorm (1e-9 was seen, and
# 3e-4 of the smallest tensor that says something).
_ROUNDING = 1e-6


def certified(attack: Attack, observation: Observation, inputs: torch.Tensor, *, exact: bool = True) -> tuple[bool, ...] | None:
    """Of each victim, whether the attacker knows without the truth that its reconstruction is right.

    The update of the reconstruction is computed as the client would, with the labels that are granted or inferred, and sent through
    the defense's deterministic part. It must be what was observed, tensor by tensor: the norm of the difference is below 1e-3 of the
    observed norm, which float32 explains and a wrong image does not.

    Explaining an update is not enough where less was sent than there is to know: after pruning, or of a large batch, a wrong image
    may explain it too. So the equations that were sent must be more than the unknown pixels (:func:`equations`). That is a count, and
    no proof: equations may depend on each other, and an entry that hardly changes with a pixel determines it badly. It errs to the
    other side too: labels that cannot be inferred rightly, or images of a batch that cannot be put in order, cost a certificate.

    Args:
        attack: one that does not adapt takes what it sees for a plain gradient, and so does its certificate.
        observation: what the threat model grants.
        inputs: the reconstruction ``(V, B, C, H, W)``.
        exact: False where the defense draws random numbers, or rounds: neither ever certifies.

    Returns:
        None where the attacker cannot tell: it lacks the parameters, labels cannot be inferred, or the update cannot be recomputed.
    """
    if "parameters" not in observation.granted:
        return None
    if not exact or ("defense" in observation.granted and _changes_batch(observation.defense)):
        return (False,) * len(inputs)
    try:
        found = _certified(observation if _adapts(attack) else observation.oblivious(), inputs)
    except Exception:  # noqa: BLE001 - users' code may raise anything here, and the measurement stands without a certificate
        return None
    return tuple(bool(one) for one in found.tolist())


def equations(model: nn.Module, observed: Update, inputs: torch.Tensor) -> torch.Tensor:
    """How many numbers of each victim's update are free to say something, ``(V,)``.

    Entries that are zero are not counted. The gradient of a linear layer's or a convolution's weight has at most the rank of the
    rows that the layer was given: of ``m`` times ``n`` entries that are not all zero, ``r (m + n - r)`` are free. This is what the
    gradient of one image by a wide last layer says: its input, and not the product of its widths.

    Args:
        model: that made the update.
        observed: of ``V`` victims.
        inputs: ``(V, B, C, H, W)``; only their shape matters.
    """
    rows = _rows(model, inputs[0])
    total = torch.zeros(len(observed), device=inputs.device, dtype=torch.long)
    for name, tensor in observed.tensors.items():
        sent = tensor.flatten(2) != 0 if tensor.ndim > 2 else (tensor != 0).reshape(len(tensor), -1, 1)
        count = sent.flatten(1).sum(1)
        if name in rows:
            high, wide = sent.any(2).sum(1), sent.any(1).sum(1)
            rank = torch.minimum(high, wide).clamp_max(rows[name])
            count = torch.minimum(count, rank * (high + wide - rank))
        total += count
    return total


def _certified(observation: Observation, inputs: torch.Tensor) -> torch.Tensor:
    labels = infer_labels(observation)
    found = _explained(observation, inputs, labels)
    if labels.shape[1] > 1 and not bool(found.all()):
        # The order of a batch means nothing, but each image must meet its own label.
        found |= _explained(observation, _by_label(observation, inputs, labels), labels)
    return found & (equations(observation.model, observation.update, inputs) > inputs[0].numel())


def _explained(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
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
        ).detach()
        parts.append(_same(own, observed))
    return torch.cat(parts)


def _same(own: Update, observed: Update) -> torch.Tensor:
    """Whether each tensor is the same up to rounding, ``(V,)``. What is not finite is not."""
    norms = torch.stack([tensor.double().flatten(1).norm(dim=1) for tensor in observed.tensors.values()])
    errors = torch.stack([(own.tensors[name] - tensor).double().flatten(1).norm(dim=1) for name, tensor in observed.tensors.items()])
    floor = _ROUNDING * norms.norm(dim=0)
    # A tensor that is next to zero must be next to zero; how it rounds is chance.
    return (errors <= torch.where(norms > floor, _PRECISION * norms, floor)).all(0)


def _by_label(observation: Observation, inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The images of each batch in the order of the labels, told by what the last layer's gradient says of its input for each label."""
    seen = last_features(observation, observation.update, labels).double()
    features = forward_features(observation.model, inputs.flatten(0, 1))[0].unflatten(0, inputs.shape[:2])
    places = torch.arange(inputs.shape[1], device=inputs.device)[None, :, None].expand(*inputs.shape[:2], 1)
    order = assigned(seen, torch.cat([features, places], dim=2))[..., -1].long()
    return inputs[torch.arange(len(inputs), device=inputs.device)[:, None], order]


def _rows(model: nn.Module, images: torch.Tensor) -> Mapping[str, int]:
    """How many rows each linear layer and convolution multiplies by its weight, of one batch ``(B, C, H, W)``, by the weight's name."""
    found: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, _arguments: object, output: torch.Tensor) -> None:
            places = output.numel() // output.shape[-1] if isinstance(module, nn.Linear) else output.numel() // output.shape[1]
            found[name] = found.get(name, 0) + places * getattr(module, "groups", 1)

        return hook

    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)}
    handles = [module.register_forward_hook(watch(f"{name}.weight" if name else "weight")) for name, module in layers.items()]
    was = {module: module.training for module in model.modules()}
    try:
        # In eval mode: BatchNorm must not learn from a candidate.
        model.eval()
        with torch.no_grad():
            model(images)
    finally:
        for module, training in was.items():
            module.training = training
        for handle in handles:
            handle.remove()
    return found


def _adapts(attack: Attack) -> bool:
    """Whether an attacker knows what clients do and how they defend themselves; of a hybrid, whether any part does."""
    return _adapts(attack.prior) or _adapts(attack.refiner) if isinstance(attack, Hybrid) else attack.adapt


def _changes_batch(defense: Defense) -> bool:
    """Whether a defense differentiates other images than the private ones: then it is those that an update explains."""
    parts = defense.defenses if type(defense) is Composition else (defense,)
    return any(type(part).prepare is not Defense.prepare for part in parts)
