"""Which models are a plain chain of layers that are known."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.clients.feedforward.convolution import Convolution, fits
from gitbench.clients.feedforward.linear import Linear
from gitbench.clients.feedforward.links import Flattened, Link, Normalized, Weighted, activation
from gitbench.clients.feedforward.network import Feedforward
from gitbench.clients.layerwise import layerwise_gradients
from gitbench.clients.normalize import Normalize
from gitbench.clients.output import returned_as_is

_PATCHES = 2**17
"""Entries of what a kernel reads, all places of an image together, above which a convolution is left to others."""
_ATTRIBUTE = "gitbench_feedforward"


class _UnknownError(Exception):
    """A layer that is not known, or not in the way in which it is used."""


@dataclass(frozen=True)
class _Recognised:
    """What was made of a model, and of what: right as long as that is the same. It is kept with the model."""

    composition: tuple[object, ...]
    parameters: Mapping[str, torch.Tensor]
    """Kept, so that no other tensor takes their places in memory."""
    network: Feedforward | None

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A copy of the model, and one in another process, has places in memory of its own: it starts with nothing."""
        return _nothing, ()


def _nothing() -> None:
    return None


def feedforward(model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> Feedforward | None:
    """The chain of a model, None where it is no chain of known layers, or where a convolution is a large one.

    Args:
        model: what was made of it is kept with it.
        parameters: those that train; the model's own stand in for the others.
        inputs: whose shape ``(..., C, H, W)`` and kind of numbers matter alone.
    """
    try:
        layers = [*_layers("", model)]
    except _UnknownError:
        return None
    values = [tensor for _, layer in layers for tensor in (*layer._parameters.values(), *layer._buffers.values()) if tensor is not None]
    states = [(tensor.data_ptr(), tensor._version) for tensor in (*values, *parameters.values())]
    composition = (inputs.shape[2:], inputs.dtype, inputs.device, *layers, *parameters, *states)
    known = vars(model).get(_ATTRIBUTE)
    if not isinstance(known, _Recognised) or known.composition != composition:
        known = _Recognised(composition, parameters, _made(model, layers, parameters, inputs.shape[2:]))
        setattr(model, _ATTRIBUTE, known)
    return known.network


def _made(
    model: nn.Module, layers: Sequence[tuple[str, nn.Module]], parameters: Mapping[str, torch.Tensor], shape: Sequence[int]
) -> Feedforward | None:
    links: list[Link] = []
    try:
        for name, layer in layers:
            link = _link(name, layer, parameters, shape)
            shape = _returned(layer, link, shape)
            links.append(link)
    except _UnknownError:
        return None
    own = [id(tensor) for _, layer in layers for tensor in layer._parameters.values() if tensor is not None]
    names = {name for link in links if isinstance(link, Weighted) for name in link.names}
    if len(shape) != 1 or not names or names != parameters.keys() or len(set(own)) < len(own):  # one that is used twice has one name
        return None
    return Feedforward(links, shape[0], functools.partial(layerwise_gradients, model, parameters))


def _layers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Those that do something, with their names, in the order in which they are called."""
    if module.training or "forward" in vars(module) or not returned_as_is(module):
        raise _UnknownError
    if type(module) is nn.Sequential:
        for own, child in module._modules.items():
            assert child is not None
            yield from _layers(f"{name}.{own}" if name else own, child)
    elif type(module) not in (nn.Identity, nn.Dropout):
        yield name, module


def _link(name: str, layer: nn.Module, parameters: Mapping[str, torch.Tensor], shape: Sequence[int]) -> Link:
    if type(layer) is Normalize and len(shape) == 3:
        return Normalized(layer.mean, layer.std)
    if type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
        return Flattened()
    linear = type(layer) is nn.Linear and len(shape) == 1
    if not linear and not (type(layer) is nn.Conv2d and len(shape) == 3 and fits(layer)):
        link = activation(layer)
        if link is None:
            raise _UnknownError
        return link
    values = {own: parameters.get(f"{name}.{own}", tensor.detach()) for own, tensor in layer.named_parameters()}
    names = {own: f"{name}.{own}" for own in values if f"{name}.{own}" in parameters}
    if isinstance(layer, nn.Conv2d):
        size = shape[1], shape[2]
        found = Convolution(layer, values["weight"], values.get("bias"), size, **names)
        if found.patches > _PATCHES:
            raise _UnknownError
        return found
    return Linear(values["weight"], values.get("bias"), **names)


def _returned(layer: nn.Module, link: Link, shape: Sequence[int]) -> Sequence[int]:
    """The shape of what a layer returns of an image of a shape."""
    if isinstance(link, Convolution):
        return (len(link.kernel), *link.places)
    if isinstance(layer, nn.Linear):
        return (layer.out_features,)
    return (math.prod(shape),) if isinstance(link, Flattened) else shape
