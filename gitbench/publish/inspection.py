"""How much of each layer's input its gradient determines: the rank analysis of R-GAP (arXiv 2010.07733)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional
from torch.nn.grad import conv2d_input

from gitbench.attacker.layers.graph import Step, steps
from gitbench.core.errors import AttackError, ModelError

TOLERANCE = 1e-6  # singular values below this share of the largest tell nothing in single precision
LARGEST = 4096  # unknowns whose matrix is decomposed
_INVERTIBLE = ("sigmoid", "tanh", "leaky_relu")
_CHUNK = 256


@dataclass(frozen=True)
class LayerRank:
    """One layer, with the equations in its input for one example.

    Args:
        name: of the module.
        kind: ``linear`` or ``conv2d``.
        input_shape: of one example.
        unknowns: the size of the input.
        forward: equations ``W x = z - b``: outputs whose ``z`` follows from what the layer returns.
        gradient: equations of the weight's gradient, ``G = sum of delta x^T``.
        gradient_rank: how many unknowns those of the gradient alone determine; None where it was not computed.
        rank: how many both determine together; None where it was not computed.
        condition: largest over smallest singular value of both together, on what they determine.
        why: why something was not computed; empty where all was.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    unknowns: int
    forward: int
    gradient: int
    gradient_rank: int | None
    rank: int | None
    condition: float | None
    why: str

    def to_dict(self) -> dict[str, object]:
        """Plain values, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Ranks:
    gradient: int | None = None
    both: int | None = None
    condition: float | None = None
    why: str = ""


def inspect_model(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> tuple[LayerRank, ...]:
    """The layers from the image to the logits, for one example.

    Both sets of equations are scaled to a largest singular value of 1 before they are put together.

    Args:
        model: its weights and mode are used as they are.
        inputs: ``(1, C, H, W)`` in [0, 1].
        labels: ``(1,)``.

    Raises:
        ModelError: its layers cannot be read.
    """
    channels, height, width = inputs.shape[1:]
    try:
        found = steps(copy.deepcopy(model).float().to("meta"), (channels, height, width))
    except AttackError as error:
        raise ModelError(str(error).partition(" Use git(")[0]) from error
    deltas = _deltas(model, [step.name for step in found], inputs, labels)
    return tuple(_layer(step, model.get_submodule(step.name), deltas[step.name]) for step in reversed(found))


def table(layers: Sequence[LayerRank]) -> str:
    """The layers as a table for people."""
    from tabulate import tabulate

    rows = [
        {
            "layer": layer.name,
            "kind": layer.kind,
            "input": "x".join(map(str, layer.input_shape)),
            "unknowns": layer.unknowns,
            "forward": layer.forward,
            "gradient": layer.gradient,
            "rank of gradient": _share(layer.gradient_rank, layer.unknowns),
            "rank of both": _share(layer.rank, layer.unknowns),
            "condition": "" if layer.condition is None else f"{layer.condition:.3g}",
            "": layer.why,
        }
        for layer in layers
    ]
    text: str = tabulate(rows, headers="keys", disable_numparse=True)
    return text


def _share(rank: int | None, unknowns: int) -> str:
    return "not computed" if rank is None else f"{rank} ({100 * rank / unknowns:.0f} %)"


def _deltas(model: nn.Module, names: Sequence[str], inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The loss's gradient by each layer's output, without the batch."""
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, torch.Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
            outputs[name] = output

        return hook

    handles = [model.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        loss = functional.cross_entropy(model(inputs), labels)
    finally:
        for handle in handles:
            handle.remove()
    found = torch.autograd.grad(loss, [outputs[name] for name in names])
    return {name: delta[0].double() for name, delta in zip(names, found, strict=True)}


def _layer(step: Step, layer: nn.Module, delta: torch.Tensor) -> LayerRank:
    known = _known(step, delta)
    unknowns = math.prod(step.input_shape)
    if isinstance(layer, nn.Linear):
        ranks = _linear(layer, delta, known)
    else:
        assert isinstance(layer, nn.Conv2d)
        ranks = _conv(layer, step.input_shape, delta, known)
    return LayerRank(
        name=step.name,
        kind=step.kind,
        input_shape=step.input_shape,
        unknowns=unknowns,
        forward=int(known.sum()),
        gradient=layer.weight.numel(),
        gradient_rank=ranks.gradient,
        rank=ranks.both,
        condition=ranks.condition,
        why=ranks.why,
    )


def _known(step: Step, delta: torch.Tensor) -> torch.Tensor:
    """Where ``z`` follows from what the layer returns: everywhere, where a ReLU lets the gradient through, or nowhere."""
    if not step.feeds or step.activation in _INVERTIBLE or step.activation is None:
        return torch.ones_like(delta, dtype=torch.bool)
    return delta != 0 if step.activation == "relu" else torch.zeros_like(delta, dtype=torch.bool)


def _linear(layer: nn.Linear, delta: torch.Tensor, known: torch.Tensor) -> _Ranks:
    """Positions and features separate: the squared singular values of both together are sums of those of each."""
    weight, features = layer.weight.detach().double(), layer.in_features
    delta, known = delta.reshape(-1, layer.out_features), known.reshape(-1, layer.out_features)
    by_delta = _scaled(torch.linalg.eigvalsh(delta @ delta.T))
    gradient = features * _rank(by_delta)
    if not known.any():
        return _Ranks(gradient, gradient, _condition(by_delta))
    if len(known) > 1 and not known.all():
        return _Ranks(gradient, why="the active outputs differ from position to position")
    rows = weight[known[0]]
    by_weight = _scaled(torch.linalg.eigvalsh(rows.T @ rows))
    both = (by_delta[:, None] + by_weight).flatten()
    return _Ranks(gradient, _rank(both), _condition(both))


def _conv(layer: nn.Conv2d, shape: tuple[int, ...], delta: torch.Tensor, known: torch.Tensor) -> _Ranks:
    channels, positions = shape[0], math.prod(shape[1:])
    if layer.groups != 1 or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return _Ranks(why="groups, or a padding that is no number of zeros")
    if positions > LARGEST:
        return _Ranks(why=f"{positions} positions, at most {LARGEST} are decomposed")
    seen = _seen(layer, shape, delta)
    gram = seen.T @ seen
    by_gradient = torch.linalg.eigvalsh(gram)
    gradient = channels * _rank(by_gradient)
    if not known.any():
        return _Ranks(gradient, gradient, _condition(by_gradient))
    if channels * positions > LARGEST:
        return _Ranks(gradient, why=f"{channels * positions} unknowns, at most {LARGEST} are decomposed")
    both = _forward_gram(layer, shape, known)
    both /= torch.linalg.eigvalsh(both)[-1].clamp_min(1e-300)
    for channel in range(channels):  # the gradient of each channel's weights sees that channel alone
        own = slice(channel * positions, (channel + 1) * positions)
        both[own, own] += gram / by_gradient[-1].clamp_min(1e-300)
    values = torch.linalg.eigvalsh(both)
    return _Ranks(gradient, _rank(values), _condition(values))


def _seen(layer: nn.Conv2d, shape: tuple[int, ...], delta: torch.Tensor) -> torch.Tensor:
    """From one channel of the input to that channel's part of the gradient: ``(outputs * kernel entries, positions)``."""
    count = math.prod(shape[1:])
    places = torch.arange(1, count + 1, dtype=torch.float64, device=delta.device).reshape(1, 1, *shape[1:])
    # Which input position each entry of the kernel meets at each output position; 0 is the padding.
    met = functional.unfold(
        places, _pair(layer.kernel_size), dilation=_pair(layer.dilation), padding=_pair(layer.padding), stride=_pair(layer.stride)
    )[0].long()
    values = delta.flatten(1)[:, None].expand(-1, len(met), -1)
    matrix = delta.new_zeros(len(delta), len(met), count + 1)
    matrix.scatter_add_(2, met.expand(len(delta), -1, -1), values)
    return matrix[..., 1:].flatten(0, 1)


def _forward_gram(layer: nn.Conv2d, shape: tuple[int, ...], known: torch.Tensor) -> torch.Tensor:
    """``Wᵀ W`` of the outputs that are known, ``(unknowns, unknowns)``."""
    weight, unknowns = layer.weight.detach().double(), math.prod(shape)
    stride, padding, dilation = _pair(layer.stride), _pair(layer.padding), _pair(layer.dilation)
    parts = []
    for rows in torch.arange(unknowns, device=weight.device).split(_CHUNK):
        unit = functional.one_hot(rows, unknowns).double().reshape(-1, *shape)
        out = functional.conv2d(unit, weight, None, stride, padding, dilation) * known
        parts.append(conv2d_input(unit.shape, weight, out, stride, padding, dilation).flatten(1))
    return torch.cat(parts)


def _pair(value: str | tuple[int, ...]) -> tuple[int, int]:
    assert not isinstance(value, str)
    return value[0], value[1]


def _scaled(squares: torch.Tensor) -> torch.Tensor:
    return squares.clamp_min(0) / squares.max().clamp_min(1e-300)


def _rank(squares: torch.Tensor) -> int:
    """From squared singular values."""
    largest = float(squares.max())
    return int((squares > TOLERANCE**2 * largest).sum()) if largest > 0 else 0


def _condition(squares: torch.Tensor) -> float | None:
    largest = float(squares.max())
    if largest <= 0:
        return None
    return math.sqrt(largest / float(squares[squares > TOLERANCE**2 * largest].min()))
