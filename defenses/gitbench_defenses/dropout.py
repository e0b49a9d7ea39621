"""Dropout in front of linear layers, as a defense."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gitbench.clients.called import called_with
from gitbench.clients.defense import Declared, Defense
from gitbench.clients.differentiation import stacked_gradients
from gitbench.clients.model import last_linear
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Batch, Update, per_victim
from gitbench.core.errors import DefenseError, ModelError
from gitbench.core.random import make_generator, seeded

_WHOLE = 0.5  # of the entries in the rows and columns that were sent: fewer where something else made zeros (pruning, say)
_ROUNDING = 1e-4  # of the norm of a gradient that is an outer product


class Dropout(Defense):
    """The client drops inputs of linear layers at random, and sends the gradient of what is left (Srivastava et al., JMLR 15, 2014).

    Each input of a layer is zero with probability ``rate`` and ``1 / (1 - rate)`` times itself otherwise, drawn for each victim, example,
    place and round. Dropout layers that the model has of its own stay as they are. It promises no privacy: Scheliga et al. (arXiv
    2208.06163) find images by searching the masks beside them.

    An adaptive attacker need not search where it sees the mask: the weight's gradient is zero in each column whose input was dropped in all
    examples, places and rounds. What is expected of its candidates is their gradient with those inputs dropped, and the others at the
    mean of their factor given that they were kept at least once, ``1 / (1 - rate ** draws)``. Of a single image seen once that is the
    client's own mask: its gradient is an outer product. How many draws are mixed else is told by how many columns are zero.

    It computes the gradient anew, so it comes first, of clients that send their gradient (``fedsgd``, or its sum), and not with BatchNorm
    in train mode. What follows it may ask for each example's gradient, as ``dp_sgd`` does.

    Args:
        rate: probability that an input is dropped, in [0, 1).
        layers: ``last`` drops the inputs of the layer that makes the logits, ``all`` those of every linear layer that the model calls.
    """

    name = "dropout"
    modalities = ("image",)
    needs_batch = True
    needs_per_example = True  # which tells that nothing came before, and what follows may ask for it

    def __init__(self, *, rate: float, layers: Literal["last", "all"] = "last") -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"expected rate in [0, 1), got {rate}")
        if layers not in ("last", "all"):
            raise ValueError(f"expected layers 'last' or 'all', got {layers!r}")
        self.rate = rate
        self.layers = layers

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(hides=self.rate > 0)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        batch = self._batch(update)
        places = _places(batch, self._dropped(batch.model))
        width = sum(place.size for place in places)
        drawn = torch.rand((*batch.inputs.shape[:2], width), generator=generator).to(batch.inputs.device)
        return _gradients(batch, places, (drawn >= self.rate) / (1 - self.rate))

    def expected(self, update: Update, *, observed: Update) -> Update:
        batch = self._batch(update)
        victims, images = batch.inputs.shape[:2]
        places = _places(batch, self._dropped(batch.model))
        factors = [torch.ones(victims, images, 0, device=batch.inputs.device)]
        for place in places:
            weight = observed.tensors.get(f"{place.layer}.weight" if place.layer else "weight")
            seen = torch.ones(victims, place.features, device=batch.inputs.device)
            if weight is not None and self.rate > 0:
                seen = self._read(weight, draws=images * place.size // place.features)
            factors.append(seen.repeat(1, place.size // place.features)[:, None].expand(-1, images, -1))
        found = _gradients(batch, places, torch.cat(factors, dim=2))
        if any(tensor.requires_grad for tensor in found.tensors.values()):
            return found
        # The slope is in the images. Where they have none, this is how it changes with what was given.
        each = found.per_example or {}
        given = update.per_example or {}
        return Update(
            {name: tensor + _zero(update.tensors[name]) for name, tensor in found.tensors.items()},
            {name: tensor + _zero(given[name]) for name, tensor in each.items()},
        )

    def combined(self, updates: Iterable[Update]) -> Update:
        """Where a round shows its masks, each victim's round in which fewest inputs were dropped; their mean where none does.

        Of single images one gradient under a mask that is seen says more than the mean of many under masks that are mixed: the
        attacker can compute the one, and not the other.
        """
        one_by_one = iter(updates)
        best = next(one_by_one)
        if self.rate == 0 or not _shows_masks(best):
            return Update.mean(itertools.chain([best], one_by_one))
        for update in one_by_one:
            best = _where(_zeros(update) < _zeros(best), update, best)
        return best

    def _read(self, weight: torch.Tensor, *, draws: int) -> torch.Tensor:
        """The factor of each input ``(V, F)`` that a weight's gradient ``(V, outputs, F)`` tells; 1 where it tells nothing.

        Args:
            weight: as it was observed.
            draws: how many factors of one round are behind each column.
        """
        sent = weight != 0
        rows, columns = sent.any(2), sent.any(1)
        telling = (sent.sum((1, 2)) >= _WHOLE * rows.sum(1) * columns.sum(1)) & columns.any(1)
        gone = (~columns).to(weight.dtype).mean()
        rounds = (gone.log() / (draws * math.log(self.rate))).round().clamp_min(1)
        kept = (1 / (1 - self.rate ** (draws * rounds))).expand(len(weight))
        if draws == 1:
            kept = torch.where(_is_outer_product(weight), 1 / (1 - self.rate), kept)
        return torch.where(telling[:, None], columns * kept[:, None], torch.ones_like(columns, dtype=weight.dtype))

    def _dropped(self, model: nn.Module) -> Mapping[str, nn.Module]:
        if self.layers == "all":
            return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        try:
            return dict([last_linear(model)])
        except ModelError as error:
            raise DefenseError(f"{self!r} drops the inputs of the last linear layer, if the logits come from one. {error}") from error

    def _batch(self, update: Update) -> Batch:
        if update.batch is None or update.per_example is None:
            raise DefenseError(f"{self!r} computes the client's gradient anew, and a defense to its left has changed it. Put it first.")
        return update.batch


@dataclass(frozen=True)
class _Place:
    """One call of a layer.

    Args:
        layer: its name.
        module: itself.
        features: of each input.
        size: entries of all inputs of one image.
    """

    layer: str
    module: nn.Module
    features: int
    size: int


class _Masked(nn.Module):
    """A model that is given factors beside each image, and multiplies inputs of its layers by them: so each image has its own."""

    def __init__(self, model: nn.Module, places: Sequence[_Place], shape: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.training = model.training
        self._places = tuple(places)
        self._shape = tuple(shape)

    def forward(self, packed: torch.Tensor) -> torch.Tensor:
        image, *factors = packed.split([math.prod(self._shape), *(place.size for place in self._places)], dim=1)
        left = iter(factors)

        def hook(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            return (arguments[0] * next(left).reshape(arguments[0].shape), *arguments[1:])

        with _hooked({place.module: hook for place in self._places}):
            logits: torch.Tensor = self.model(image.reshape(-1, *self._shape))
        return logits


@contextlib.contextmanager
def _hooked(hooks: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Forward pre-hooks that are there inside the block."""
    handles = [module.register_forward_pre_hook(hook) for module, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _places(batch: Batch, layers: Mapping[str, nn.Module]) -> list[_Place]:
    """The calls of some layers, in their order: tried on two images, of which nothing is kept."""
    model, images = batch.model, batch.inputs[0, :1].detach().repeat(2, 1, 1, 1)
    found: list[_Place] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
            found.append(_Place(name, module, arguments[0].shape[-1], arguments[0].numel() // 2))

        return hook

    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with _hooked({module: watch(name) for name, module in layers.items()}), torch.no_grad(), seeded(make_generator(0, "shapes")):
        called_with(model, buffers, images)
    if not found:
        raise DefenseError(f"The model {type(model).__name__} calls no linear layer, whose inputs could be dropped.")
    return found


def _gradients(batch: Batch, places: Sequence[_Place], factors: torch.Tensor) -> Update:
    """Gradients under factors ``(V, B, entries of all places)``, those of each example with them."""
    masked = _Masked(batch.model, places, batch.inputs.shape[2:])
    parameters = {f"model.{name}": parameter.detach() for name, parameter in trained_parameters(batch.model).items()}
    packed = torch.cat([batch.inputs.flatten(2), factors], dim=2)
    stacked = stacked_gradients(masked, parameters, packed, batch.labels, per_example=True)
    every = {name.removeprefix("model."): tensor for name, tensor in stacked.items()}
    one = packed.shape[1] == 1
    return Update({name: tensor[:, 0] if one else tensor.mean(1) for name, tensor in every.items()}, every)


def _shows_masks(update: Update) -> bool:
    """Whether a weight's gradient is that of one image under one mask: an outer product, with columns of zeros."""
    weights = [tensor for tensor in update.tensors.values() if tensor.ndim == 3]
    return any(bool(_is_outer_product(weight).all()) and bool((weight == 0).all(1).any()) for weight in weights)


def _is_outer_product(weight: torch.Tensor) -> torch.Tensor:
    """Whether a weight's gradient ``(V, outputs, inputs)`` has rank one, ``(V,)``. With up to two outputs that says nothing."""
    chosen = weight.norm(dim=1).argmax(1)
    column = weight.gather(2, chosen[:, None, None].expand(-1, weight.shape[1], 1))
    shares = (column * weight).sum(1, keepdim=True) / column.square().sum(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    left = (weight - column * shares).flatten(1).norm(dim=1)
    found: torch.Tensor = (left <= _ROUNDING * weight.flatten(1).norm(dim=1)) & (weight.shape[1] > 2)
    return found


def _zeros(update: Update) -> torch.Tensor:
    """How many entries of each victim are zero, ``(V,)``."""
    return torch.stack([(tensor == 0).flatten(1).sum(1) for tensor in update.tensors.values()]).sum(0)


def _where(chosen: torch.Tensor, one: Update, other: Update) -> Update:
    """``one`` of the victims that are chosen ``(V,)``, ``other`` of the others."""
    return one.map(lambda name, tensor: torch.where(per_victim(chosen, tensor), tensor, other.tensors[name]))


def _zero(tensor: torch.Tensor) -> torch.Tensor:
    """Zeros with the slope of a tensor."""
    return tensor - tensor.detach()
