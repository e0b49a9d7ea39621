"""Labels read off the update of the last linear layer."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.layers.operators import least_squares_input
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import forward_features, principal_directions
from gitbench.attacker.tools.label_counts import most_likely_counts, most_likely_rescaled_counts
from gitbench.attacker.tools.rescaling import is_rescaled
from gitbench.clients.defense import Defense
from gitbench.clients.model import last_layer, last_linear
from gitbench.clients.stochastic import stochastic_layers
from gitbench.clients.update import Update
from gitbench.core.errors import ModelError
from gitbench.core.random import make_generator

_EXAMPLES = 4096  # public ones that are looked at
_SENT = 2048  # public ones whose gradients are taken where no defense blurs them
_PLAYED = 1024  # public batches that show how long an update is
_DIRECTIONS = 16  # of the last layer's input
_ENTRIES = 512  # at most, of what is compared
_SHRINK = 4  # examples of the average class that each class is thought to have besides its own
_CLEAR = 0.1  # examples that must be left of a class for its row to show its features
_MISFIT = 30.0  # squared error, in units of the noise that undefended updates have: the update is something else
_HOOKS = ("local_model", "prepare", "prepare_batch", "protect")


def class_signal(observation: Observation) -> torch.Tensor:
    """One number per class, ``(V, classes)``, most negative for the classes in the batch.

    The gradient of the cross-entropy by a logit is softmax minus one-hot: negative for the true class
    alone. It is the bias's gradient; without a bias, the sum of the weight's row, which has its sign
    when the features are not negative (iDLG, arXiv 2001.02610).
    """
    name, layer = last_layer(observation.architecture)
    tensors = observation.update.tensors
    bias, weight = (tensors.get(f"{name}.{part}") for part in ("bias", "weight"))
    if bias is None and weight is None:
        raise ModelError(
            f"The update holds no gradient of {name!r} ({type(layer).__name__}), the last layer, so that labels cannot be read off it. "
            "Use lti, dlg(labels='joint') or, where labels are granted, ig(labels='known')."
        )
    found = weight.flatten(2).sum(dim=2) if bias is None and weight is not None else bias
    assert found is not None
    return torch.cat([-found, found], dim=1) if found.shape[1] == 1 else found


def infer_labels(observation: Observation) -> torch.Tensor:
    """Labels ``(V, B)``, sorted; those that are granted, where they are.

    One example: the class of the most negative signal (iDLG). A batch: the counts that explain the last layer's gradient
    best, given what an example of each class is expected to add to it. What that is, is learned from what is granted:

    - public images and a defense, or no parameters: from public batches that went through the defense;
    - public images and parameters: from the probabilities and features of public images;
    - parameters alone: each class's features are those that its row shows, its probabilities what the model makes of them
      (iLRG, Ma et al. 2022);
    - nothing of these: greedily (:func:`greedy_counts`).

    Args:
        observation: what is granted.
    """
    if "labels" in observation.granted:
        return observation.labels.sort(dim=1).values
    if observation.batch_size == 1:
        return class_signal(observation).argmin(dim=1, keepdim=True)
    counts = _counts(observation)
    classes = torch.arange(counts.shape[1], device=counts.device)
    return torch.stack([classes.repeat_interleave(row) for row in counts])


def read_softmax(observation: Observation, update: Update) -> tuple[torch.Tensor, torch.Tensor] | None:
    """What the model made of the one example of each victim, and the bias's gradient, which is that minus the label: ``(V, classes)`` both.

    The last layer's input follows from its weight's and its bias's gradient, whatever the update was scaled by. None where the last
    layer is not linear, has no bias, one logit, or a part that is not sent.

    Args:
        observation: needs ``parameters``.
        update: of single examples.
    """
    name, layer = last_layer(observation.model)
    if not isinstance(layer, nn.Linear) or not {f"{name}.bias", f"{name}.weight"} <= set(update.tensors) or layer.out_features == 1:
        return None
    weight, delta = (update.tensors[f"{name}.{part}"].double() for part in ("weight", "bias"))
    logits = least_squares_input(delta, weight) @ layer.weight.detach().double().T + layer.bias.detach().double()
    return torch.softmax(logits, dim=1), delta


def greedy_counts(observation: Observation) -> torch.Tensor:
    """Counts ``(V, classes)``, from the signal alone.

    The signal is ``scale * (mean probability - count / B)``: the most negative class is taken, raised
    by the share ``scale / B`` of one example, and the next is taken. The scale (one, unless a defense
    changed it) follows from the sum of the negative entries, probabilities taken as equal.
    """
    signal = class_signal(observation).clone()
    batch, classes = observation.batch_size, signal.shape[1]
    counts = torch.zeros_like(signal, dtype=torch.long)
    present = (signal < 0).sum(dim=1)
    missing = (1 - present / classes).clamp_min(1 / classes)
    step = -signal.clamp_max(0).sum(dim=1) / missing / batch
    rows = torch.arange(len(signal), device=signal.device)
    for _ in range(batch):
        label = signal.argmin(dim=1)
        signal[rows, label] += step
        counts[rows, label] += 1
    return counts


def restored_labels(observation: Observation) -> torch.Tensor:
    """Distinct labels ``(V, B)``, sorted, as GradInversion reads them (Yin et al., arXiv 2104.07586).

    Of the last layer's weight each class has a row of gradients, whose least entry is the more negative the more surely the class is in
    the batch, where features are not negative.

    Raises:
        ModelError: there is no such gradient, or the batch is larger than the number of classes.
    """
    name, layer = last_layer(observation.architecture)
    weight, batch = observation.update.tensors.get(f"{name}.weight"), observation.batch_size
    if weight is None or batch > weight.shape[1]:
        found = "none" if weight is None else f"{weight.shape[1]} classes"
        raise ModelError(
            f"labels='restored' needs the gradient of the weight of {name!r} ({type(layer).__name__}) with at least {batch} classes, "
            f"got {found}: each class is found once. Use labels='inferred'."
        )
    return weight.flatten(2).amin(2).topk(batch, dim=1, largest=False).indices.sort(dim=1).values


def _counts(observation: Observation) -> torch.Tensor:
    granted, batch = observation.granted, observation.batch_size
    name, linear = last_layer(observation.architecture)
    sent = {f"{name}.{part}" for part, _ in linear.named_parameters()} <= set(observation.update.tensors)
    if not isinstance(linear, nn.Linear) or not sent:
        return greedy_counts(observation)
    if linear.out_features == 1:
        return _of_one_logit(observation)
    defended = ("defense" in granted and not _passes(observation.defense)) or bool(stochastic_layers(observation.architecture))
    readable = "parameters" in granted and "public" in granted and not observation.model.training
    known = "parameters" in granted and not defended
    if readable and (known or is_rescaled(observation)):
        found = _from_features(observation, linear, rescaled=not known)
    elif known and linear.bias is not None:
        found = _from_rows(observation)
    elif "public" in granted and batch <= len(observation.public):
        wanted = (_EXAMPLES if defended else _SENT) // batch
        if wanted < 3 * linear.out_features:
            return greedy_counts(observation)
        return _from_batches(observation, linear, wanted)[0]
    else:
        found = None
    if found is None:
        return greedy_counts(observation)
    counts, misfit = found
    return torch.where((misfit < _MISFIT)[:, None], counts, greedy_counts(observation))


def _of_one_logit(observation: Observation) -> torch.Tensor:
    """The signal of class 1 is the mean of ``p - y``; ``p`` is taken from public images, or for a half."""
    batch, signal, expected = observation.batch_size, class_signal(observation)[:, 1], 0.5
    if {"public", "parameters"} <= observation.granted:
        with torch.no_grad():
            seen = [observation.model(part).softmax(1)[:, 1] for part in observation.public.inputs[:_EXAMPLES].split(256)]
        expected = float(torch.cat(seen).mean())
    ones = (batch * (expected - signal)).round().clamp(0, batch).long()
    return torch.stack([batch - ones, ones], dim=1)


def _passes(defense: Defense) -> bool:
    """Whether a defense leaves gradients as they are, because it defines nothing that touches them."""
    return all(getattr(type(defense), name) is getattr(Defense, name) for name in _HOOKS)


def _seen(tensors: Update, name: str, directions: torch.Tensor) -> torch.Tensor:
    """What is compared of each update, ``(V, D)``: the bias's gradient, and the weight's along some directions of its input."""
    weight = tensors.tensors[f"{name}.weight"].double() @ directions
    bias = tensors.tensors.get(f"{name}.bias")
    return (weight if bias is None else torch.cat([bias.double()[..., None], weight], dim=2)).flatten(1)


def _directions(rows: torch.Tensor, linear: nn.Linear, room: int) -> torch.Tensor:
    """The main directions ``(F, R)`` of feature vectors ``(N, F)``; as many as fit into ``room`` entries."""
    fit = room // linear.out_features - (linear.bias is not None)
    count = max(int(linear.bias is None), min(_DIRECTIONS, fit, *rows.shape))
    return principal_directions(rows[:_EXAMPLES].double())[1][:count].T


def _from_features(observation: Observation, linear: nn.Linear, *, rescaled: bool) -> tuple[torch.Tensor, torch.Tensor] | None:
    """From the probabilities and features of public images, class by class."""
    public, model, classes = observation.public, observation.model, linear.out_features
    chosen = torch.randperm(len(public), generator=make_generator(0, "labels"))[:_EXAMPLES].to(public.inputs.device)
    features, logits = forward_features(model, public.inputs[chosen])
    probabilities = logits.softmax(1)
    if features.ndim != 2 or probabilities.shape[1] != classes:
        return None
    directions = _directions(features, linear, _ENTRIES)
    parts = features @ directions
    parts = parts if linear.bias is None else torch.cat([parts.new_ones(len(parts), 1), parts], dim=1)
    members = functional.one_hot(public.labels[chosen], classes).double()
    # An example of class k adds (p - e_k) aᵀ: the mean of p aᵀ, less that of a in row k.
    softs = _class_means((probabilities[:, :, None] * parts[:, None]).flatten(1), members)
    means = softs.reshape(classes, classes, -1) - torch.diag_embed(_class_means(parts, members).T, dim1=0, dim2=1)
    means = means.flatten(1)
    added = ((probabilities - members)[:, :, None] * parts[:, None]).flatten(1)
    rest = added - means[public.labels[chosen]]
    batch = observation.batch_size
    noise = rest.T @ rest / len(rest) / batch
    seen = _seen(observation.update, last_linear(model)[0], directions)
    if not rescaled:
        return most_likely_counts(means[None] / batch, noise[None], seen, batch_size=batch)
    drawn = added[torch.randint(len(added), (_PLAYED, batch), generator=make_generator(0, "labels")).to(added.device)].mean(1)
    length = float(drawn.norm(dim=1).median())
    return most_likely_rescaled_counts(means[None] / batch, noise[None], seen, batch_size=batch, length=length)


def _class_means(values: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Means ``(classes, D)`` of values ``(N, D)``; of a class with few examples closer to the mean of all."""
    found: torch.Tensor = (members.T @ values + _SHRINK * values.mean(0)) / (members.sum(0)[:, None] + _SHRINK)
    return found


def _from_rows(observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
    """iLRG: a class's row over its bias is the mean of its features, and the model tells their probabilities."""
    name, linear = last_linear(observation.model)
    batch, classes = observation.batch_size, linear.out_features
    weight, bias = (observation.update.tensors[f"{name}.{part}"].double() for part in ("weight", "bias"))
    present = bias < -_CLEAR / batch
    rows = torch.where(present[..., None], weight / torch.where(present, bias, -1.0)[..., None], 0.0)
    counts = -bias.clamp_max(0)
    error = bias.new_zeros(len(bias))
    for _ in range(3):
        shares = counts * present
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1e-12)
        average = (shares[:, None] @ rows)[:, 0]
        features = torch.where(present[..., None], rows, average[:, None])
        probabilities = (features @ linear.weight.detach().double().T + _bias(linear)).softmax(2)
        middle = probabilities.mean(1)
        noise = torch.diag_embed(middle * (1 - middle) + 1e-4) * 0.05 / batch
        means = (probabilities - torch.eye(classes, dtype=bias.dtype, device=bias.device)) / batch
        found, error = most_likely_counts(means, noise, bias, batch_size=batch)
        counts = found.double()
    return counts.long(), error


def _bias(linear: nn.Linear) -> torch.Tensor:
    if linear.bias is None:
        raise ModelError("Expected a last linear layer with a bias, got one without.")
    return linear.bias.detach().double()


@dataclass(frozen=True)
class _OfBatches:
    """What public batches show of the last layer's update.

    Args:
        directions: of the layer's input, ``(F, R)``, along which its weight's gradient is looked at.
        means: what one example of each class adds, ``(classes, D)``.
        noise: covariance of what that leaves, ``(D, D)``.
    """

    directions: torch.Tensor
    means: torch.Tensor
    noise: torch.Tensor


def _from_batches(observation: Observation, linear: nn.Linear, wanted: int) -> tuple[torch.Tensor, torch.Tensor]:
    """From updates of ``wanted`` public batches as they would be sent: a regression on their counts, and what it leaves as the noise."""
    name, _ = last_linear(observation.architecture)
    of = observation.learned("labels of batches", functools.partial(_of_batches, observation, linear, wanted))
    seen = _seen(observation.update, name, of.directions)
    return most_likely_counts(of.means[None], of.noise[None], seen, batch_size=observation.batch_size)


def _of_batches(observation: Observation, linear: nn.Linear, wanted: int) -> _OfBatches:
    public, batch, classes = observation.public, observation.batch_size, linear.out_features
    name, _ = last_linear(observation.architecture)
    generator = make_generator(0, "labels")
    whole = len(public) // batch
    drawn = [torch.randperm(len(public), generator=generator)[: whole * batch].reshape(whole, batch) for _ in range(-(-wanted // whole))]
    chosen = torch.cat(drawn)[:wanted]

    def last(part: torch.Tensor) -> Update:  # a view would keep all of the update, hundreds of times its memory
        tensors = observation.public_updates(part, generator=generator).tensors
        return Update({own: tensors[own].clone() for own in (f"{name}.weight", f"{name}.bias") if own in tensors})

    sent = Update.cat([last(part) for part in chosen.split(observation.chunk)])
    directions = _directions(sent.tensors[f"{name}.weight"].flatten(0, 1), linear, min(_ENTRIES, wanted // 4))
    values = _seen(sent, name, directions)
    counts = functional.one_hot(public.labels[chosen.to(public.labels.device)], classes).sum(1).double()
    gram = counts.T @ counts + 1e-6 * wanted * torch.eye(classes, dtype=counts.dtype, device=counts.device)
    means = torch.linalg.solve(gram, counts.T @ values)
    rest = values - counts @ means
    noise = rest.T @ rest / (wanted - classes)
    shrink = min(0.9, values.shape[1] / wanted)
    return _OfBatches(directions, means, (1 - shrink) * noise + shrink * torch.diag(noise.diag()))
