"""What the coarse chain knows of an update: each step's hashed gradient, and the inputs that the gradient shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from gitbench.attacker.attacks.git.coarse_inputs import channels_of, input_below_last, is_plain, shown_inputs, shows_input
from gitbench.attacker.attacks.git.coarse_nodes import layer_nodes, layers_of, module_nodes
from gitbench.attacker.layers.graph import Step
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import input_inverse, last_features
from gitbench.attacker.tools.hashing import Hashings, sketched
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.attacker.tools.regression import fit_linear
from gitbench.clients.model import classes_of, last_linear
from gitbench.clients.update import Update
from gitbench.core.progress import Progress

_GROUP = 1024  # entries of one layer's input that the ridge regression reads
_INPUTS = 3072  # entries of all inputs that it reads


@dataclass(frozen=True)
class Seen:
    """What is read off ``V`` updates.

    Args:
        sketches: ``(V, nodes, sketch)``.
        last: the last layer's inputs ``(V, B, F)``.
        inputs: inputs of other layers, side by side ``(V, D)``; ``D`` may be zero.
        direct: estimates of the image ``(V, L, P)``; ``L`` may be zero.
        labels: ``(V, B)``.
    """

    sketches: torch.Tensor
    last: torch.Tensor
    inputs: torch.Tensor
    direct: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """All victims of several."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def part(self, rows: torch.Tensor | slice) -> Seen:
        """Some of the victims."""
        return type(self)(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


class Reader:
    """Reads features off updates. All that it learns are the last layer's weights and a range of its inputs.

    Args:
        observation: whose updates are read; needs no update of its own.
        module: one node for each block instead of each layer.
        sketch: entries to which each node's gradient is hashed.
        seed: of the hashes.
        room: entries of layers' inputs that are read, at most; the last layer's go first.
        state: what :meth:`tensors` gave, to read as another reader did; ``room`` is then its own.
    """

    def __init__(
        self,
        observation: Observation,
        *,
        module: bool,
        sketch: int,
        seed: int,
        room: int = 0,
        state: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        model = observation.architecture
        self._observation = observation
        self._sketch = sketch
        self._hashed = Hashings(seed)
        self._last, linear = last_linear(model)
        self.classes, self._size = classes_of(model), linear.in_features
        layers = layers_of(model, observation.input_shape, module=module)
        self.nodes = module_nodes(model, observation.input_shape) if module else layer_nodes(layers)
        self._modules = dict(model.named_modules())
        plain = [layer for layer in layers if layer.name != self._last and is_plain(self._modules[layer.name])]
        self._shown = [layer for layer in plain if shows_input(layer)]
        self._direct = next((layer for layer in self._shown if layer.reads_image), None)
        told = observation.batch_size == 1 and linear.bias is not None and linear.out_features == self.classes
        self._heads = [layer for layer in plain if told and self._is_below_last(layer)]
        self._head = None if state is None else state.get("head")
        self._bounds = None if state is None else state["bounds"]
        self._room = max(0, min(_INPUTS, room) - min(self._size, _INPUTS)) if state is None else int(state["room"])

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was learned, to store."""
        assert self._bounds is not None
        return {"room": torch.tensor(self._room), "bounds": self._bounds, **({} if self._head is None else {"head": self._head})}

    @property
    def inverse(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Of the activation that the last layer reads, if its input is known and not hashed."""
        return input_inverse(self._observation) if self._size <= _INPUTS else None

    def solve_head(self, pairs: PublicPairs, generator: torch.Generator, rows: int) -> None:
        """The last layer's weights ``(classes, F)`` from public pairs: log-probabilities are linear in its input.

        Up to a row common to all classes, which ``W^T delta`` does not see, because delta sums to zero.
        """
        if not self._heads or self._size > _INPUTS:
            return
        count = min(rows, max(512, 2 * self._size))
        features, logits = [], []
        for chunk in torch.arange(count).split(self._observation.chunk):
            update, labels = pairs.updates(chunk, generator=generator), pairs.labels[chunk]
            features.append(last_features(self._observation, update, labels)[:, 0])
            delta = update.tensors[f"{self._last}.bias"]
            probabilities = (delta + functional.one_hot(labels[:, 0], self.classes)).clamp_min(1e-4)
            logarithms = probabilities.log()
            logits.append(logarithms - logarithms.mean(1, keepdim=True))
        held = torch.arange(count, device=self._observation.device) >= count - max(1, count // 5)
        self._head = fit_linear(torch.cat(features), torch.cat(logits), held=held).weight.T.contiguous()

    def bounded(self, seen: Sequence[Seen], rows: int) -> list[Seen]:
        """What was read, and all that is read from now on, with the last layer's inputs cut to a range.

        The range is that of the first ``rows``, twice as wide. For batches, an input is a quotient, and one whose
        denominator is next to zero would rule every regression.
        """
        some = seen[0].last[:rows].flatten(0, 1)[:4096].sort(dim=0).values
        cut = len(some) // 200
        low, high = some[cut], some[len(some) - 1 - cut]
        half = (high - low) / 2
        self._bounds = torch.stack([low - half, high + half])
        return [replace(part, last=part.last.clamp(*self._bounds)) for part in seen]

    def __call__(self, update: Update, labels: torch.Tensor) -> Seen:
        """What updates and their labels ``(V, B)`` show."""
        last = last_features(self._observation, update, labels)
        if last.shape[2] > _INPUTS:
            last = self._hashed(last.flatten(0, 1), "last", _INPUTS).reshape(*labels.shape, -1)
        if self._bounds is not None:
            last = last.clamp(*self._bounds)
        sketches = torch.stack(
            [sketched(node.parameters, update, self._sketch, self._hashed, what=node.name) for node in self.nodes], dim=1
        )
        inputs = torch.cat([last.new_zeros(len(last), 0), *self._inputs(update)], dim=1)
        if self._direct is None:
            direct = last.new_zeros(len(last), 0, math.prod(self._observation.input_shape))
        else:
            direct = torch.stack(shown_inputs(self._direct, self._modules[self._direct.name], update), dim=1)
        return Seen(sketches, last, inputs, direct, labels)

    def _inputs(self, update: Update) -> list[torch.Tensor]:
        """Inputs of layers between the image and the last layer, each hashed to its share of the room."""
        # The middle one of several penalties, for nothing is fitted here that could choose.
        estimates = [shown_inputs(layer, self._modules[layer.name], update) for layer in self._shown if layer is not self._direct]
        groups = [found[len(found) // 2] for found in estimates]
        if self._head is not None:
            delta = update.tensors[f"{self._last}.bias"] @ self._head
            groups += [input_below_last(layer, delta, update) for layer in self._heads]
        share = min(_GROUP, self._room // max(1, len(groups)))
        return [self._hashed(group, f"group {index}", share) for index, group in enumerate(groups)] if share >= 8 else []

    def _is_below_last(self, layer: Step) -> bool:
        return layer.feeds == (self._last,) and not shows_input(layer) and self._size % channels_of(layer) == 0


def read_all(
    observation: Observation, pairs: PublicPairs, reader: Reader, *, draws: int, generator: torch.Generator, progress: Progress
) -> list[Seen]:
    """What is read off all public batches, once for each draw of the defense."""
    chunks = torch.arange(len(pairs)).split(min(64, observation.chunk))
    found: list[list[Seen]] = [[] for _ in range(draws)]
    for done, chunk in enumerate(chunks):
        raw = None if pairs.changing else pairs.gradients(chunk)
        for part in found:
            update = pairs.updates(chunk, generator=generator) if raw is None else observation.protected(raw, generator=generator)
            part.append(reader(update, pairs.labels[chunk.to(observation.device)]))
        progress("git: public updates", done + 1, len(chunks))
    return [Seen.joined(part) for part in found]
