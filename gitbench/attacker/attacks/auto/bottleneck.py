"""A layer that draws hides nothing of what comes before it: the same update, as one of a model without that layer."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.observation import Observation
from gitbench.clients.client import gradients
from gitbench.clients.output import output_of, read_output, rename_classifier, take_logits
from gitbench.clients.stochastic import stochastic_layers
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Update
from gitbench.core.errors import GitbenchError
from gitbench.core.random import make_generator

_PLAYED = 4  # public images on which both updates are compared
_EQUAL = 1e-3  # relative error of every tensor


@dataclass(frozen=True)
class DeterministicPart:
    """A model that ends where another begins to draw.

    The first layer there is linear, so that its bias's gradient is the loss's slope ``δ`` by its outputs ``z``, whatever was drawn
    behind it. Of all layers up to it the update is that of the loss ``δ·z``. And that is a cross-entropy: with one more output, and
    labels ``(-δ, sum δ)`` that add up to nothing, its slope is ``δ``, whatever the outputs are.

    Args:
        model: ends with that layer, which has one more output: always zero.
        last: the layer's name.
        entrance: its name in the whole model.
    """

    model: nn.Module
    last: str
    entrance: str

    def update(self, whole: Update) -> Update:
        """What a client of the cut model would have sent."""
        found = {name: whole.tensors[name] for name in trained_parameters(self.model) if name in whole.tensors}
        for part in ("weight", "bias"):
            gradient = whole.tensors[f"{self.entrance}.{part}"]
            found[f"{self.last}.{part}"] = torch.cat([gradient, -gradient.sum(1, keepdim=True)], dim=1)
        return Update({name: found[name] for name in trained_parameters(self.model)})

    def labels(self, whole: Update) -> torch.Tensor:
        """Of single examples, ``(V, 1, outputs)``: they add up to zero."""
        return -self.update(whole).tensors[f"{self.last}.bias"][:, None]


def before_the_bottleneck(observation: Observation) -> Observation | None:
    """The same about the part of a model that draws nothing, where that is all that there is to know; else None.

    Played on public images first: the attacker sees that both updates are the same.

    Args:
        observation: of single examples; with or without its update.
    """
    if observation.batch_size > 1 or not {"parameters", "public", "defense"} <= observation.granted:
        return None
    if not stochastic_layers(observation.model):
        return None
    cut = observation.learned("cut before the bottleneck", lambda: _cut(observation))
    if cut is None:
        return None
    if not observation.victims:
        return observation.of_model(cut.model)
    return observation.of_model(cut.model, update=cut.update(observation.update), labels=cut.labels(observation.update))


def _cut(observation: Observation) -> DeterministicPart | None:
    public = observation.public
    rows = torch.arange(min(_PLAYED, len(public)), device=public.inputs.device)[:, None]
    try:
        sent = observation.public_updates(rows, generator=make_generator(0, "bottleneck"))
        return next((cut for cut in _cuts(observation.model, public.inputs[rows[:, 0]]) if _same(cut, sent, public.inputs[rows])), None)
    except (GitbenchError, RuntimeError):  # the model cannot be computed so: that linear layer is no entrance
        return None


def _cuts(model: nn.Module, images: torch.Tensor) -> Iterator[DeterministicPart]:
    """The model cut at its first layer that draws, at each linear layer that may be the entrance."""
    names = {id(module): name for name, module in model.named_modules()}
    layer = stochastic_layers(model)[0]
    name = names[id(layer)]
    parent, _, place = name.rpartition(".")
    if not isinstance(model.get_submodule(parent), nn.Sequential) or output_of(model) is None:
        return
    for child, linear in layer.named_children():
        if type(linear) is nn.Linear and linear.bias is not None:
            copied = copy.deepcopy(model)
            container = copied.get_submodule(parent)
            before = list(container.named_children())[: [own for own, _ in container.named_children()].index(place)]
            ended = nn.Sequential(OrderedDict([*before, (place, _with_one_more(linear))])).train(container.training)
            if parent:
                above, _, own = parent.rpartition(".")
                setattr(copied.get_submodule(above), own, ended)
            else:
                copied = ended
            take_logits(copied, linear.out_features + 1, name="before a bottleneck")
            read_output(copied, images, linear.out_features + 1)
            rename_classifier(copied, name)
            yield DeterministicPart(copied, name, f"{name}.{child}")


def _with_one_more(linear: nn.Linear) -> nn.Linear:
    found = nn.Linear(linear.in_features, linear.out_features + 1, device=linear.weight.device, dtype=linear.weight.dtype)
    with torch.no_grad():
        for own, theirs in ((found.weight, linear.weight), (found.bias, linear.bias)):
            own.zero_()
            own[:-1] = theirs
    return found


def _same(cut: DeterministicPart, sent: Update, inputs: torch.Tensor) -> bool:
    if not {f"{cut.entrance}.{part}" for part in ("weight", "bias")} <= set(sent.tensors):
        return False
    theirs = cut.update(sent)
    own = gradients(cut.model, inputs, cut.labels(sent))
    return all(
        float((own.tensors[name] - tensor).norm()) <= _EQUAL * float(tensor.norm()) and bool(tensor.isfinite().all())
        for name, tensor in theirs.tensors.items()
    )
