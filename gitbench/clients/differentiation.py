"""Gradients by a model's parameters for a stack of victims, such that they can be differentiated once more."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.func import grad, vmap
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from gitbench.clients.called import called_with
from gitbench.clients.feedforward.recognition import feedforward
from gitbench.clients.layer_gradients import Aim
from gitbench.clients.layerwise import NotLayerwiseError, is_layerwise, layerwise_gradients, layerwise_products
from gitbench.clients.loss import mean_loss
from gitbench.clients.stochastic import penalties, stochastic_layers
from gitbench.core.random import make_generator, seeded

CHUNK = 256
"""Victims differentiated at once: bounds the memory of a large stack."""

_TOGETHER = 64
"""Images, times features that are differentiated at once."""

T = TypeVar("T")
Loss = Callable[[Mapping[str, torch.Tensor], torch.Tensor, torch.Tensor], torch.Tensor]


def stacked_gradients(
    model: nn.Module,
    parameters: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    per_example: bool,
    own_weights: bool = False,
) -> dict[str, torch.Tensor]:
    """Of the mean cross-entropy of each victim's batch: ``(V, *shape)``, or ``(V, B, *shape)`` for each example.

    Layers that add a penalty (:class:`gitbench.clients.stochastic.Stochastic`) have it in the loss.

    All victims at once where the model allows it, and layer by layer where it allows that too
    (:mod:`gitbench.clients.layerwise`). One that branches on values, or has layers without a batched form
    (torch.nn.LSTM, torch.nn.GRU), is differentiated for one victim after the other: the same gradients, more slowly.

    Args:
        model: its own mode is used. What it writes into its buffers is forgotten.
        parameters: those to differentiate by; the model's own stand in for the others.
        inputs: ``(V, B, C, H, W)``.
        labels: class indices ``(V, B)``, or probabilities ``(V, B, classes)``.
        per_example: do not average over the batch.
        own_weights: each victim has parameters of its own, ``(V, *shape)``; differentiable in them too.
    """
    layers = stochastic_layers(model)

    def loss(parameters: Mapping[str, torch.Tensor], batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        with penalties(layers) as terms:
            logits = _logits(model, parameters, batch)
        return sum(terms, start=mean_loss(logits, targets))

    if not own_weights:
        network = feedforward(model, parameters, inputs)
        if network is not None:
            return _stack_by_stack(network.gradients, inputs, labels, per_example=per_example)
        with contextlib.suppress(NotLayerwiseError), _double_backward(model):
            if _is_layerwise(model, parameters, inputs, labels):
                gradients = functools.partial(layerwise_gradients, model, parameters)
                return _stack_by_stack(gradients, inputs, labels, per_example=per_example)
    return _either(
        model,
        lambda: _at_once(loss, parameters, inputs, labels, per_example=per_example, own_weights=own_weights),
        lambda: _one_by_one(loss, parameters, inputs, labels, per_example=per_example, own_weights=own_weights),
    )


class Aims:
    """What victims' gradients are compared with, again and again.

    Args:
        tensors: ``(V, *shape)`` by the names of the parameters.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = tensors
        victims = range(0, len(next(iter(tensors.values()))), CHUNK)
        self.chunks = [{name: Aim(tensor[first : first + CHUNK]) for name, tensor in tensors.items()} for first in victims]
        """Those of victims that are differentiated at once."""


def stacked_products(
    model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor, aims: Aims
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of victims' gradients with ``aims``, and with themselves: each ``(parameters, V)``; differentiable.

    Where the model allows it, a victim's gradient is not written out, which for a wide layer takes most of the time.

    Args:
        model: as for :func:`stacked_gradients`, and so are those that follow.
        parameters: those to differentiate by.
        inputs: ``(V, B, C, H, W)``.
        labels: class indices ``(V, B)``, or probabilities ``(V, B, classes)``.
        aims: of the same victims.
    """
    network = feedforward(model, parameters, inputs)
    if network is not None:
        return _joined_products(network.products, inputs, labels, aims)
    with contextlib.suppress(NotLayerwiseError), _double_backward(model):
        if _is_layerwise(model, parameters, inputs, labels):
            return _joined_products(functools.partial(layerwise_products, model, parameters), inputs, labels, aims)
    mine = stacked_gradients(model, parameters, inputs, labels, per_example=False)
    return inner_products(mine, aims.tensors)


def inner_products(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Of stacks ``(V, *shape)`` with others, and with themselves: each ``(parameters, V)``, in the order of ``theirs``."""
    pairs = [(mine[name].flatten(1), other.flatten(1)) for name, other in theirs.items()]
    # One product per layer (no concatenated copy): the gradients are the largest thing in memory.
    return torch.stack([(one * other).sum(1) for one, other in pairs]), torch.stack([(one * one).sum(1) for one, _ in pairs])


def stacked_losses(model: nn.Module, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy ``(V,)`` of each victim's batch at weights of its own, without penalties.

    Args:
        model: its own mode is used.
        weights: ``(V, *shape)``; the model's own stand in for the others.
        inputs: ``(V, B, C, H, W)``.
        labels: as for :func:`stacked_gradients`.
    """

    def loss(parameters: Mapping[str, torch.Tensor], batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mean_loss(_logits(model, parameters, batch), targets)

    def one_by_one() -> torch.Tensor:
        rows = ({name: tensor[row] for name, tensor in weights.items()} for row in range(len(inputs)))
        return torch.stack([loss(*row) for row in zip(rows, inputs, labels, strict=True)])

    with torch.no_grad():
        return _either(model, lambda: vmap(loss, randomness="different", chunk_size=CHUNK)(weights, inputs, labels), one_by_one)


def slope_norms(features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """How much each feature changes with an image: the L2 norm of its gradient by that image, ``(N, F)``.

    Args:
        features: ``(N, F)``, computed from ``images``; of the sum over the ``N`` images, where one depends on another.
        images: ``(N, C, H, W)``, which require gradients.
    """
    together = max(1, _TOGETHER // len(images))
    norms = []
    for some in torch.arange(features.shape[1], device=features.device).split(together):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
                directions = functional.one_hot(some, features.shape[1]).to(features)[:, None].expand(-1, len(features), -1)
                (slopes,) = torch.autograd.grad(features, images, directions, retain_graph=True, is_grads_batched=True)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a layer without a batched form
            columns = (features[:, index].sum() for index in some)
            slopes = torch.stack([torch.autograd.grad(column, images, retain_graph=True)[0] for column in columns])
        norms.append(slopes.flatten(2).norm(dim=2))
    return torch.cat(norms).T


def _logits(model: nn.Module, parameters: Mapping[str, torch.Tensor], batch: torch.Tensor) -> torch.Tensor:
    """With other parameters; what the model writes into its buffers is forgotten."""
    buffers = {name: buffer.clone() if model.training else buffer for name, buffer in model.named_buffers()}
    return called_with(model, {**parameters, **buffers}, batch)


def _either(model: nn.Module, at_once: Callable[[], T], one_by_one: Callable[[], T]) -> T:
    """Of all victims at once where the model can be computed so, of one after the other where it cannot."""
    with _double_backward(model):
        if not any(isinstance(module, nn.RNNBase) for module in model.modules()):
            try:
                with _dropout(model):
                    return at_once()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # so says vmap where it cannot; what is wrong with the model itself comes up below as well
                pass
        with _dropout(model):
            return one_by_one()


def _is_layerwise(model: nn.Module, parameters: Mapping[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> bool:
    def loss(parameters: Mapping[str, torch.Tensor], batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mean_loss(_logits(model, parameters, batch), targets)

    oracle = functools.partial(_at_once, loss, parameters, per_example=False, own_weights=False)
    return is_layerwise(model, parameters, inputs, labels, oracle)


def _joined_products(
    products: Callable[..., tuple[torch.Tensor, torch.Tensor]], inputs: torch.Tensor, labels: torch.Tensor, aims: Aims
) -> tuple[torch.Tensor, torch.Tensor]:
    chunks = [products(*chunk) for chunk in zip(inputs.split(CHUNK), labels.split(CHUNK), aims.chunks, strict=True)]
    if len(chunks) == 1:
        return chunks[0]
    dots, squares = zip(*chunks, strict=True)
    return torch.cat(dots, 1), torch.cat(squares, 1)


def _stack_by_stack(
    gradients: Callable[[torch.Tensor, torch.Tensor], dict[str, torch.Tensor]],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    per_example: bool,
) -> dict[str, torch.Tensor]:
    def of_some(batches: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        if not per_example:
            return gradients(batches, targets)
        flat = gradients(batches.flatten(0, 1)[:, None], targets.flatten(0, 1)[:, None])
        return {name: tensor.unflatten(0, batches.shape[:2]) for name, tensor in flat.items()}

    return _joined([of_some(*chunk) for chunk in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True)])


def _at_once(
    loss: Loss,
    parameters: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    per_example: bool,
    own_weights: bool,
) -> dict[str, torch.Tensor]:
    def of_examples(parameters: Mapping[str, torch.Tensor], batch: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        one = vmap(grad(loss), in_dims=(None, 0, 0), randomness="different")
        stacked: dict[str, torch.Tensor] = one(parameters, batch[:, None], targets[:, None])
        return stacked

    function: Callable[..., dict[str, torch.Tensor]] = of_examples if per_example else grad(loss)
    over_victims = vmap(function, in_dims=(0 if own_weights else None, 0, 0), randomness="different")
    chunks = []
    for done, (batches, targets) in enumerate(zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True)):
        rows = slice(done * CHUNK, (done + 1) * CHUNK)
        own = {name: tensor[rows] for name, tensor in parameters.items()} if own_weights else parameters
        chunks.append(over_victims(own, batches, targets))
    return _joined(chunks)


def _joined(chunks: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The victims of several stacks in one."""
    return chunks[0] if len(chunks) == 1 else {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _one_by_one(
    loss: Loss,
    parameters: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    per_example: bool,
    own_weights: bool,
) -> dict[str, torch.Tensor]:
    if per_example:
        if own_weights:
            parameters = {name: tensor.repeat_interleave(inputs.shape[1], 0) for name, tensor in parameters.items()}
        images, targets = inputs.flatten(0, 1)[:, None], labels.flatten(0, 1)[:, None]
        flat = _one_by_one(loss, parameters, images, targets, per_example=False, own_weights=own_weights)
        return {name: tensor.unflatten(0, inputs.shape[:2]) for name, tensor in flat.items()}
    sources = (inputs, labels, *(parameters.values() if own_weights else ()))
    again = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in sources)
    rows = []
    for row, (batch, targets) in enumerate(zip(inputs, labels, strict=True)):
        with torch.enable_grad():
            weights = {name: tensor[row] for name, tensor in parameters.items()} if own_weights else parameters
            own = {
                name: tensor if own_weights and tensor.requires_grad else tensor.detach().requires_grad_()
                for name, tensor in weights.items()
            }
            rows.append(torch.autograd.grad(loss(own, batch, targets), [*own.values()], create_graph=again, materialize_grads=True))
    return {name: torch.stack(column) for name, column in zip(parameters, zip(*rows, strict=True), strict=True)}


@contextlib.contextmanager
def _dropout(model: nn.Module) -> Iterator[None]:
    """What is dropped in train mode is the same at each call."""
    with seeded(make_generator(0, "dropout")) if model.training else contextlib.nullcontext():
        yield


class _Hardsigmoid(TorchFunctionMode):
    """Writes ``hardsigmoid`` as ``relu6(x + 3) / 6``, which torch differentiates twice."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is functional.hardsigmoid:
            return functional.relu6(args[0] + 3) / 6
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _double_backward(model: nn.Module) -> Iterator[None]:
    """Take the forms of attention, recurrent layers and hardsigmoid that have a second derivative: torch's own have none.

    That torch takes some operations for one victim after the other, and warns of it, is nothing that a user can change.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    kinds = {type(module) for module in model.modules()}
    torch.backends.mha.set_fastpath_enabled(False)
    kernels = torch.backends.cudnn.flags(enabled=False) if any(issubclass(kind, nn.RNNBase) for kind in kinds) else contextlib.nullcontext()
    written_out = _Hardsigmoid() if nn.Hardsigmoid in kinds else contextlib.nullcontext()
    try:
        with sdpa_kernel(SDPBackend.MATH), kernels, written_out, warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
