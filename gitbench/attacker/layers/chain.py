"""A model that is one chain of linear layers and convolutions, read off its modules."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn

from gitbench.clients.normalize import Normalize
from gitbench.clients.output import LOGITS, output_of

_INVERTIBLE = (nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ReLU)
_PASSED_OVER = (nn.Flatten, nn.Identity, nn.Dropout)

Weights = dict[str, torch.Tensor]
"""Parameter name to values; of a layer, or of a whole chain."""


@dataclass(frozen=True)
class Layer:
    """One linear layer or convolution, and the activation behind it.

    Args:
        name: of the module; its parameters are ``name.weight`` and ``name.bias``.
        input_shape: ``(C, H, W)``, or ``(F,)`` of a linear layer.
        output_shape: the same of what it returns.
        activation: what follows it; None behind the last layer.
        stride: of a convolution.
        padding: of a convolution, in zeros.
        kernel: side lengths of a convolution; None for a linear layer.
        bias: whether it has one.
    """

    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    activation: nn.Module | None
    stride: int = 1
    padding: int = 0
    kernel: tuple[int, int] | None = None
    bias: bool = True

    @property
    def is_conv(self) -> bool:
        return self.kernel is not None


@dataclass(frozen=True)
class Chain:
    """Layers from the input to the logits. ``normalized`` when a :class:`Normalize` comes first."""

    layers: tuple[Layer, ...]
    normalized: bool


def read_chain(model: nn.Module, input_shape: tuple[int, ...]) -> Chain | None:
    """The chain that a model is, or None when it is something else.

    Only nested :class:`torch.nn.Sequential` are read, because only there the order of the modules is
    the order of computation.

    Args:
        model: on any device, ``meta`` too.
        input_shape: ``(C, H, W)``.
    """
    output, found = output_of(model), _leaves(model, "")
    if found is None or (output is not None and output.taken != LOGITS):
        return None
    normalized = bool(found) and isinstance(found[0][1], Normalize)
    layers: list[Layer] = []
    shape: tuple[int, ...] = input_shape
    pending: Layer | None = None
    for name, module in found[normalized:]:
        if isinstance(module, _PASSED_OVER):
            continue
        if isinstance(module, _INVERTIBLE):
            if pending is None:
                return None
            layers.append(replace(pending, activation=module))
            pending = None
            continue
        if pending is not None:  # two layers without an activation between them
            return None
        pending = _layer(name, module, shape)
        if pending is None:
            return None
        shape = pending.output_shape
    if pending is None or pending.is_conv or not layers:
        return None
    if not {f"{layer.name}.weight" for layer in (*layers, pending)} <= own_parameters(model):
        return None
    return Chain((*layers, pending), normalized)


def own_parameters(model: nn.Module) -> set[str]:
    """Names of the parameters that train and that one layer alone holds: the gradient of a shared one is a sum over its layers."""
    named = list(model.named_parameters(remove_duplicate=False))
    count = Counter(id(parameter) for _, parameter in named)
    return {name for name, parameter in named if count[id(parameter)] == 1 and parameter.requires_grad}


def _leaves(module: nn.Module, prefix: str) -> list[tuple[str, nn.Module]] | None:
    if not isinstance(module, nn.Sequential):
        return None if any(module.children()) else [(prefix.removesuffix("."), module)]
    found = []
    for name, child in module.named_children():
        inner = _leaves(child, f"{prefix}{name}.")
        if inner is None:
            return None
        found += inner
    return found


def _layer(name: str, module: nn.Module, shape: tuple[int, ...]) -> Layer | None:
    if type(module) is nn.Linear:
        width = int(torch.tensor(shape).prod())
        if width != module.in_features:
            return None
        return Layer(name, (width,), (module.out_features,), None, bias=module.bias is not None)
    if type(module) is not nn.Conv2d or len(shape) != 3:
        return None
    stride, padding, kernel = module.stride, module.padding, module.kernel_size
    if module.groups != 1 or module.dilation != (1, 1) or module.padding_mode != "zeros":
        return None
    if isinstance(padding, str) or len(set(stride)) > 1 or len(set(padding)) > 1:
        return None
    height, width = ((side + 2 * padding[0] - k) // stride[0] + 1 for side, k in zip(shape[1:], kernel, strict=True))
    out = (module.out_channels, height, width)
    sides = (kernel[0], kernel[1])
    return Layer(name, shape, out, None, stride=stride[0], padding=padding[0], kernel=sides, bias=module.bias is not None)
