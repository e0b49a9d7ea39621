"""Gradients of all victims in one pass of the plain model, layer by layer, where it is certain that this is right."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from gitbench.clients.called import called_with
from gitbench.clients.layer_gradients import Aim, Passed, is_known
from gitbench.clients.linear_layers import linear_layers
from gitbench.clients.loss import mean_loss
from gitbench.clients.stochastic import stochastic_layers
from gitbench.core.random import make_generator

Oracle = Callable[[torch.Tensor, torch.Tensor], Mapping[str, torch.Tensor]]
_ATTRIBUTE = "gitbench_layerwise"
_TRIED = (2, 2)  # victims, and images of each, that the oracle is asked about
_CLOSE = 1e-3


class NotLayerwiseError(RuntimeError):
    """A model did something in its forward pass that is not done layer by layer."""


@dataclass(frozen=True)
class _Finding:
    """Whether a model can be taken layer by layer: kept with the model, and true as long as it is composed as it was."""

    composition: tuple[Any, ...]
    layerwise: bool


@dataclass(frozen=True)
class _Visit:
    """A layer's call: what it read, and where its output stands in the graph, before anything overwrites it."""

    inputs: torch.Tensor
    output: GradientEdge


def is_layerwise(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor, oracle: Oracle
) -> bool:
    """Whether :func:`layerwise_gradients` is right for a model; looked at once, and kept with it.

    Each parameter must be used once, by a layer that is known and is called once; and no image may have a say in what becomes of
    another. The first is read off the graph of a forward pass. The second is tried out: victims cannot mix in ``oracle``, which must
    come to the same.

    Args:
        model: it is not, in train mode.
        parameters: those to differentiate by.
        inputs: whose shape ``(..., C, H, W)`` matters alone.
        labels: likewise; of a model that predicts at several positions these come after victims and images.
        oracle: the gradients of inputs ``(V, B, C, H, W)`` and labels ``(V, B)``. Raises RuntimeError where a model branches on values.

    Raises:
        torch.OutOfMemoryError: there is no room to try it out.
    """
    modules = [*model.named_modules()]
    if any(module.training for _, module in modules) or stochastic_layers(model):
        return False
    kinds = tuple((name, type(module)) for name, module in modules)
    composition = (kinds, tuple(parameters), tuple(name for name, _ in model.named_parameters()), inputs.shape[2:], inputs.dtype)
    found = getattr(model, _ATTRIBUTE, None)
    if not isinstance(found, _Finding) or found.composition != composition:
        found = _Finding(composition, _looked_at(model, parameters, inputs, labels, oracle))
        setattr(model, _ATTRIBUTE, found)
    return found.layerwise


def layerwise_gradients(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Of the mean cross-entropy of each victim's batch: ``(V, *shape)``; differentiable in ``inputs`` and in soft ``labels``.

    Args:
        model: one that :func:`is_layerwise`.
        parameters: those to differentiate by; the model's own stand in for the others.
        inputs: ``(V, B, C, H, W)``.
        labels: class indices ``(V, B)``, or probabilities ``(V, B, classes)``.

    Raises:
        NotLayerwiseError: the model did otherwise than when it was looked at.
    """
    passed = _passes(model, parameters, inputs, labels)
    return {name: passed[owner].gradient(own, victims=len(inputs)) for name, owner, own in _split(parameters)}


def layerwise_products(
    model: nn.Module,
    parameters: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    aims: Mapping[str, Aim],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of the same gradients with ``aims``, and with themselves: each ``(parameters, V)``, in the order of ``aims``.

    Arguments and errors are those of :func:`layerwise_gradients`.
    """
    passed = _passes(model, parameters, inputs, labels)
    dots, squares = zip(*(passed[owner].products(own, aims[name]) for name, owner, own in _split(aims)), strict=True)
    return torch.stack(dots), torch.stack(squares)


def _split(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Of parameters: the name, that of the module, and the name within it."""
    for name in names:
        owner, _, own = name.rpartition(".")
        yield name, owner, own


def _passes(model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, Passed]:
    """What passes through each layer that has one of the ``parameters``, by the layer's name.

    Arguments and errors are those of :func:`layerwise_gradients`.
    """
    layers = {name: model.get_submodule(name) for name in dict.fromkeys(owner for _, owner, _ in _split(parameters))}
    again = torch.is_grad_enabled() and (inputs.requires_grad or labels.requires_grad)
    images = inputs.flatten(0, 1)
    with torch.enable_grad():
        # Every layer's output is then in the graph.
        images = images if images.requires_grad else images.detach().requires_grad_()
        with _watched(layers) as visits, linear_layers(layers.values()):
            logits = called_with(model, parameters, images)
        if len(visits) < len(layers):
            raise NotLayerwiseError("a layer was not called")
        summed = mean_loss(logits, labels.flatten(0, 1)) * len(inputs)
        slopes = torch.autograd.grad(summed, [visits[name].output for name in layers], create_graph=again)
    return {
        name: Passed(layer, visits[name].inputs if again else visits[name].inputs.detach(), slope)
        for (name, layer), slope in zip(layers.items(), slopes, strict=True)
    }


@contextlib.contextmanager
def _watched(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, _Visit]]:
    """The calls of some layers in what is computed inside the block."""
    visits: dict[str, _Visit] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(layer: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            if name in visits or len(arguments) != 1 or len(layer._forward_hooks) > 1 or layer._forward_pre_hooks:
                raise NotLayerwiseError("a layer was called twice, or otherwise than layers are")
            visits[name] = _Visit(arguments[0], get_gradient_edge(output))

        return hook

    handles = [layer.register_forward_hook(watch(name)) for name, layer in layers.items()]
    try:
        yield visits
    finally:
        for handle in handles:
            handle.remove()


def _looked_at(model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, given: torch.Tensor, oracle: Oracle) -> bool:
    owners = [model.get_submodule(owner) for _, owner, _ in _split(parameters)]
    if not all(is_known(owner) and "forward" not in vars(owner) for owner in owners):
        return False
    drawn = torch.rand((*_TRIED, *inputs.shape[2:]), generator=make_generator(0, "layerwise"))
    images = drawn.to(inputs)
    positions = given.shape[2:-1] if given.is_floating_point() else given.shape[2:]
    labels = torch.zeros((*_TRIED, *positions), dtype=torch.long, device=inputs.device)
    try:
        if not _used_once(model, parameters, images.flatten(0, 1)):
            return False
        with torch.no_grad():
            found, expected = layerwise_gradients(model, parameters, images, labels), oracle(images, labels)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    size = torch.stack([tensor.norm() for tensor in expected.values()]).norm()
    return all(bool((found[name] - tensor).norm() <= _CLOSE * (tensor.norm() + _CLOSE * size)) for name, tensor in expected.items())


def _used_once(model: nn.Module, parameters: Mapping[str, torch.Tensor], images: torch.Tensor) -> bool:
    """Whether each parameter has one place in the graph of a forward pass."""
    with torch.enable_grad():
        own = {name: tensor.detach().requires_grad_() for name, tensor in parameters.items()}
        logits = called_with(model, own, images)
    uses = collections.Counter(id(node.variable) for node in _followed(logits.grad_fn) if hasattr(node, "variable"))
    return all(uses[id(tensor)] == 1 for tensor in own.values())


def _followed(root: Node | None) -> Iterator[Node]:
    """The nodes of a graph, each as often as something follows from it."""
    seen, waiting = set[Node](), [root]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        yield node
        if node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
