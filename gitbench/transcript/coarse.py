"""Coarse-GIT and Module-GIT: a shallow network for each step of the recursion, trained together.

GIT (arXiv 2505.20026) recovers each layer's input ``a`` from its gradient, the gradients of the layers that it feeds
and its output. The coarse variant learns that map, one shallow MLP for each layer; Module-GIT does so for each block.
The paper gives no widths or rates; ours were chosen on held-out public images.

Where we differ: the estimates that are passed down the chain live in the space of the image's principal
components, and start at a closed-form estimate. The MLPs learn what to add to it, and start at zero: chains of
plain MLPs end far above a ridge regression from the last layer's input. The closed form is a ridge regression
from the inputs that the gradient shows:

- of the last layer, exact for one example (:func:`gitbench.features.last_features`);
- of a linear layer whose delta is a bias's gradient (one position) or a parameter's that is added to its
  output (APRIL, arXiv 2112.14087): ``lstsq(delta, G)``, under three penalties;
- of the layers right before the last one: their delta is ``W^T delta`` of the last layer, and ``W`` follows from
  public pairs, whose gradients show both the last layer's input and its probabilities.

What shows the image itself is weighed for each principal component alone, so noise-free updates keep all of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional

from gitbench.activation import inverse_before
from gitbench.errors import AttackError
from gitbench.features import last_features
from gitbench.fitting import Checkpoint, train_network
from gitbench.labels import infer_labels
from gitbench.model import last_linear
from gitbench.observation import Observation
from gitbench.pairs import PublicPairs, pairs_memory
from gitbench.progress import Progress
from gitbench.random import make_generator, seeded
from gitbench.regression import LinearMap, fit_linear
from gitbench.transcript.graph import Step, modules, steps
from gitbench.update import Update

_KEPT = 3 * 2**30  # bytes of public gradients that are kept
_CLIP = 8.0  # standard deviations of a sketched feature
_TINY = 1e-20
_PENALTIES = (1e-7, 1e-3, 1e-1)  # of lstsq(delta, G), in units of delta's mean square
_HEAD_PENALTY = 1e-2
_CLASSES = 64  # labels are hashed beyond so many
_GROUP = 1024  # entries of one layer's input that the ridge regression reads
_INPUTS = 3072  # entries of all inputs that it reads
_FOLDS = 4
_EXACT = 1e-4  # root mean square of a component's error
_PIECE = 2**20  # entries sketched at once
_RELATIVE = 1e-4  # a deviation below this share of the mean is rounding


@dataclass(frozen=True)
class CoarseOptions:
    """Of :func:`fit_coarse` and :func:`run_coarse`, which must be given the same.

    Args:
        width: of the hidden layer of each step's MLP.
        sketch: entries to which each step's gradient is hashed.
        components: principal components in which the chain works.
        epochs: passes over the public batches.
        lr: of the first step.
        batch_size: public batches per step.
        patience: stop after so many epochs without a better held-out error.
        holdout: share of the public batches that chooses penalties and the epoch.
        limit: at most so many public examples.
        adapt: pass the public updates through the defense.
        draws: of a random defense, for each public batch, where the gradients do not fit into 3 GiB.
    """

    width: int = 64
    sketch: int = 256
    components: int = 256
    epochs: int = 8
    lr: float = 1e-3
    batch_size: int = 128
    patience: int = 3
    holdout: float = 0.1
    limit: int = 20_000
    adapt: bool = True
    draws: int = 2


@dataclass(frozen=True)
class _Node:
    """A layer or a module of the chain: its parameters, and the nodes (by index, all before it) that it feeds."""

    name: str
    parameters: tuple[str, ...]
    feeds: tuple[int, ...]


@dataclass(frozen=True)
class _Seen:
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
    def joined(cls, parts: Sequence[_Seen]) -> _Seen:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def part(self, rows: torch.Tensor | slice) -> _Seen:
        return type(self)(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


def fit_coarse(
    observation: Observation,
    *,
    module: bool,
    options: CoarseOptions,
    generator: torch.Generator,
    progress: Progress,
    checkpoint: Checkpoint,
) -> dict[str, torch.Tensor]:
    """Learn the chain on public pairs.

    Raw gradients are kept while they take up no more than 3 GiB, and then protected afresh at every step.
    Beyond that, what is kept is read off the gradients once, for ``draws`` draws of the defense: the sketches,
    which do not grow with the model.

    Args:
        observation: needs ``public``; the defense is rehearsed where it is granted.
        module: one step for each block instead of each layer: for any model.
        options: widths and budget.
        generator: for the order of the public images, the sketches and the training.
        progress: told what is going on.
        checkpoint: for :func:`gitbench.fitting.train_network`.

    Returns:
        What :func:`run_coarse` needs.

    Raises:
        AttackError: the model has a layer that ``module=False`` cannot take, or there are too few public images.
    """
    public, batch = observation.public, observation.batch_size
    rows = min(options.limit, len(public)) // batch
    held = max(1, round(options.holdout * rows))
    if rows - held < 2:
        raise AttackError(
            f"git needs at least 3 public batches to fit on, found {rows} of {batch} images: use more public data or a smaller batch."
        )
    order = torch.randperm(len(public), generator=generator)[: rows * batch].reshape(rows, batch)
    # Sorted by class, because the inferred labels that order a victim's features are sorted.
    order = order.gather(1, public.labels.cpu()[order].argsort(dim=1, stable=True))
    seed = int(torch.randint(2**62, (), generator=generator))
    pairs = PublicPairs(observation, order, generator=generator, progress=progress, what="git", adapt=options.adapt, budget=_KEPT)
    reader = _Reader(observation, module=module, options=options, seed=seed, room=rows // 2)
    reader.solve_head(pairs, make_generator(seed, "head"), rows - held)
    random = not _is_constant(pairs, seed)
    fresh = random and pairs_memory(observation, rows) <= _KEPT
    draws = 1 if fresh or not random else options.draws
    seen = _read_all(
        observation, pairs, reader, draws=draws, adapt=options.adapt, generator=make_generator(seed, "draws"), progress=progress
    )
    seen = reader.bounded(seen, rows - held)
    images = pairs.inputs.flatten(2)
    start = _Start.fit(reader, seen[0], images, held=held, components=options.components, generator=generator)
    wanted = start.coefficients(images)
    train = slice(0, rows - held)
    begin_at = _Beginnings.fit(start, seen[0].part(train), wanted[train])
    everyone = torch.arange(rows, device=observation.device)
    begins = [begin_at(part, everyone) for part in seen]
    with seeded(generator):
        network = _Chain(reader.nodes, components=start.components, classes=reader.classes, last=seen[0].last.shape[2], options=options)
    network.to(observation.device)
    network.prepare([part.part(train) for part in seen], begins[0][train], wanted[train])

    def error(part: _Seen, begin: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = ((network(part, begin) - targets) / network.scale).square().mean()
        return found

    def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        index = chosen.to(observation.device)
        if fresh:
            with torch.no_grad():
                part = reader(pairs.updates(chosen, generator=generator), pairs.labels[index])
                begin = begin_at(part, index)
        else:
            draw = int(torch.randint(draws, (), generator=generator))
            part, begin = seen[draw].part(index), begins[draw][index]
        return error(part, begin, wanted[index])

    def validate() -> float:
        chunks = torch.arange(rows - held, rows, device=observation.device).split(256)
        return sum(float(error(seen[0].part(chunk), begins[0][chunk], wanted[chunk])) * len(chunk) for chunk in chunks) / held

    network.eval()
    with torch.no_grad():
        before = validate()
    after = before
    # A closed form that is exact leaves nothing to learn but rounding.
    if float(network.scale) > _EXACT:
        after = train_network(
            network,
            loss=loss,
            rows=rows - held,
            validate=validate,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            generator=generator,
            progress=progress,
            what="git module" if module else "git coarse",
            checkpoint=checkpoint,
            weight_decay=0.01,
            patience=options.patience,
        )
    learned = {f"network.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()}
    # A chain that is no better than what it started from adds nothing.
    return {**reader.tensors(), **start.tensors(), **learned, "trust": torch.tensor(float(after < before)), "seed": torch.tensor(seed)}


def run_coarse(
    observation: Observation, state: dict[str, torch.Tensor], *, module: bool, options: CoarseOptions, progress: Progress
) -> torch.Tensor:
    """Reconstruct ``(V, B, C, H, W)`` in [0, 1].

    Args:
        observation: holds the update.
        state: of :func:`fit_coarse`.
        module: as it was fitted.
        options: as it was fitted.
        progress: told what is going on.
    """
    device = observation.device
    state = {name: tensor.to(device) for name, tensor in state.items()}
    reader = _Reader(observation, module=module, options=options, seed=int(state["seed"]), room=0, state=state)
    start = _Start.stored(state, reader)
    last = state["network.last_mean"].shape[0]
    with seeded(make_generator(0, "replaced below")):
        network = _Chain(reader.nodes, components=start.components, classes=reader.classes, last=last, options=options)
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items() if name.startswith("network.")})
    network.to(device).eval()
    update, labels = observation.update, infer_labels(observation, adapt=options.adapt)
    found: list[torch.Tensor] = []
    chunks = torch.arange(update.victims, device=device).split(64)
    with torch.no_grad():
        for done, chunk in enumerate(chunks):
            seen = reader(Update({name: tensor[chunk] for name, tensor in update.tensors.items()}), labels[chunk])
            image = start(seen)
            begin = start.coefficients(image).reshape(*seen.labels.shape, -1)
            change = (network(seen, begin) - begin) * state["trust"]
            found.append(image + change.flatten(0, 1) @ start.basis.T)
            progress("git: victims", done + 1, len(chunks))
    shape = (update.victims, observation.batch_size, *observation.input_shape)
    return torch.cat(found).clamp(0, 1).reshape(shape)


class _Reader:
    """From updates to features, with nothing learned but the last layer's weights."""

    def __init__(
        self,
        observation: Observation,
        *,
        module: bool,
        options: CoarseOptions,
        seed: int,
        room: int,
        state: dict[str, torch.Tensor] | None = None,
    ) -> None:
        model = observation.architecture
        self._observation = observation
        self._options = options
        self._seed = seed
        self._shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        self._signs: dict[str, torch.Tensor] = {}
        self._last, linear = last_linear(model)
        self.classes, self._size = linear.out_features, linear.in_features
        layers = _layers(observation, model, module=module)
        self.nodes = _module_nodes(observation, model) if module else _layer_nodes(layers)
        single = observation.batch_size == 1
        self._modules = dict(model.named_modules())
        self._layers = [layer for layer in layers if layer.name != self._last and self._is_plain(layer)]
        self._shown = [layer for layer in self._layers if _shows_input(layer)]
        self._direct = next((layer for layer in self._shown if layer.reads_image), None)
        self._heads = [layer for layer in self._layers if single and linear.bias is not None and self._below_last(layer)]
        self.head = None if state is None else state.get("head")
        self._bounds = None if state is None else state["bounds"]
        if state is None:
            # More inputs than half the public batches would fit noise; the last layer's go first.
            self._room = max(0, min(_INPUTS, room) - self._last_size)
        else:
            self._room = int(state["room"])

    @property
    def _last_size(self) -> int:
        return min(self._size, _INPUTS)

    def tensors(self) -> dict[str, torch.Tensor]:
        assert self._bounds is not None
        return {"room": torch.tensor(self._room), "bounds": self._bounds, **({} if self.head is None else {"head": self.head})}

    def bounded(self, seen: Sequence[_Seen], rows: int) -> list[_Seen]:
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

    @property
    def inverse(self) -> Callable[[torch.Tensor], torch.Tensor] | None:
        """Of the activation that the last layer reads, if its input is known and not hashed."""
        model = self._observation.architecture
        _, linear = last_linear(model)
        return inverse_before(model, linear) if linear.bias is not None and self._size <= _INPUTS else None

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
        self.head = fit_linear(torch.cat(features), torch.cat(logits), held=held).weight.T.contiguous()

    def __call__(self, update: Update, labels: torch.Tensor) -> _Seen:
        last = last_features(self._observation, update, labels)
        if last.shape[2] > _INPUTS:
            last = self._hashed(last.flatten(0, 1), "last", _INPUTS).reshape(*labels.shape, -1)
        if self._bounds is not None:
            last = last.clamp(*self._bounds)
        sketches = torch.stack([self._sketch(node, update) for node in self.nodes], dim=1)
        groups = [self._shown_input(layer, update) for layer in self._shown if layer is not self._direct]
        if self.head is not None:
            groups += [self._head_input(layer, update) for layer in self._heads]
        inputs = torch.cat([last.new_zeros(len(last), 0), *self._shared_out(groups)], dim=1)
        if self._direct is None:
            direct = last.new_zeros(len(last), 0, math.prod(self._observation.input_shape))
        else:
            direct = torch.stack(self._solved(self._direct, update), dim=1)
        return _Seen(sketches, last, inputs, direct, labels)

    def _shared_out(self, groups: list[torch.Tensor]) -> list[torch.Tensor]:
        """Groups of inputs, each hashed to its share of the room."""
        if not groups:
            return []
        share = min(_GROUP, self._room // len(groups))
        return [self._hashed(group, f"group {index}", share) for index, group in enumerate(groups)] if share >= 8 else []

    def _sketch(self, node: _Node, update: Update) -> torch.Tensor:
        """Each parameter's gradient at unit length, side by side and hashed; and the logarithms of the lengths."""
        lengths = torch.stack([update.tensors[name].flatten(1).norm(dim=1) for name in node.parameters], dim=1).clamp_min(_TINY)
        bins = max(1, self._options.sketch - len(node.parameters))
        total = sum(math.prod(self._shapes[name]) for name in node.parameters)
        bins = min(bins, total)
        size = max(1, _PIECE // total)
        pieces = []
        for start in range(0, update.victims, size):
            rows = slice(start, start + size)
            units = [
                update.tensors[name][rows].flatten(1) * (math.sqrt(math.prod(self._shapes[name])) / lengths[rows, index, None])
                for index, name in enumerate(node.parameters)
            ]
            pieces.append(self._hashed(torch.cat(units, dim=1), node.name, bins))
        found = torch.cat([torch.cat(pieces), lengths.log()], dim=1)[:, : self._options.sketch]
        return functional.pad(found, (0, self._options.sketch - found.shape[1]))

    def _hashed(self, flat: torch.Tensor, what: str, bins: int) -> torch.Tensor:
        """Random signs, then every ``bins``-th entry into one sum: ``(V, D)`` to ``(V, bins)``, or as it is if ``D`` is less."""
        entries = flat.shape[1]
        if entries <= bins:
            return flat
        if what not in self._signs:
            drawn = torch.randint(2, (entries,), generator=make_generator(self._seed, "sketch", what), dtype=torch.int8)
            self._signs[what] = (drawn * 2 - 1).to(flat.device)
        signed = functional.pad(flat * self._signs[what], (0, -entries % bins))
        return signed.reshape(len(flat), -1, bins).sum(1) / math.sqrt(entries / bins)

    def _is_plain(self, layer: Step) -> bool:
        """Whether its gradient is the sum over positions of delta and all of the input's patch, padded with zeros."""
        conv = self._modules[layer.name]
        return not isinstance(conv, nn.Conv2d) or (conv.groups == 1 and conv.padding_mode == "zeros" and not isinstance(conv.padding, str))

    def _below_last(self, layer: Step) -> bool:
        channels = layer.output_shape[0] if layer.kind == "conv2d" else layer.output_shape[-1]
        return layer.feeds == (self._last,) and not _shows_input(layer) and self._size % channels == 0

    def _head_input(self, layer: Step, update: Update) -> torch.Tensor:
        """``lstsq(delta, G)`` with ``delta = W^T delta_L`` of the last layer, for each position that it tells apart.

        A convolution's kernel is averaged over its window: the positions are pooled anyway.
        """
        assert self.head is not None
        channels = layer.output_shape[0] if layer.kind == "conv2d" else layer.output_shape[-1]
        weight = update.tensors[layer.weight].flatten(3).mean(3) if layer.kind == "conv2d" else update.tensors[layer.weight]
        delta = (update.tensors[f"{self._last}.bias"] @ self.head).reshape(len(weight), channels, -1)
        return _least_squares(delta, weight, _HEAD_PENALTY).flatten(1)

    def _shown_input(self, layer: Step, update: Update) -> torch.Tensor:
        return self._solved(layer, update)[min(1, len(_PENALTIES) - 1)]

    def _solved(self, layer: Step, update: Update) -> list[torch.Tensor]:
        """Estimates ``(V, P)`` of a layer's input from its delta and its gradient, one for each penalty."""
        gradient = update.tensors[layer.weight]
        count = len(gradient)
        if layer.observed_delta is None:
            assert layer.bias is not None
            delta = update.tensors[layer.bias][:, :, None]
            return [_least_squares(delta, gradient, 0.0).flatten(1)]
        assert layer.delta_index is not None
        delta = update.tensors[layer.observed_delta].flatten(1)[:, layer.delta_index.flatten().to(gradient.device)]
        if layer.kind == "linear":
            delta = delta.reshape(count, -1, layer.output_shape[-1]).transpose(1, 2)
            return [_least_squares(delta, gradient, penalty).flatten(1) for penalty in _PENALTIES]
        delta = delta.reshape(count, layer.output_shape[0], -1)
        patches = [_least_squares(delta, gradient.flatten(2), penalty) for penalty in _PENALTIES]
        return [self._folded(layer, patch) for patch in patches]

    def _folded(self, layer: Step, patches: torch.Tensor) -> torch.Tensor:
        """Patches ``(V, positions, C k k)`` put together, averaged where they overlap: ``(V, C H W)``."""
        conv = self._modules[layer.name]
        assert isinstance(conv, nn.Conv2d)
        assert not isinstance(conv.padding, str)
        shape = layer.input_shape[1:]

        def fold(columns: torch.Tensor) -> torch.Tensor:
            assert isinstance(conv, nn.Conv2d)
            assert not isinstance(conv.padding, str)
            return functional.fold(columns, shape, conv.kernel_size, conv.dilation, conv.padding, conv.stride)

        columns = patches.transpose(1, 2)
        return (fold(columns) / fold(torch.ones_like(columns[:1])).clamp_min(1)).flatten(1)


def _shows_input(layer: Step) -> bool:
    """Whether the update shows this layer's delta at every position."""
    if layer.observed_delta is not None:
        return True
    return layer.kind == "linear" and layer.bias is not None and len(layer.output_shape) == 1


def _least_squares(delta: torch.Tensor, gradient: torch.Tensor, penalty: float) -> torch.Tensor:
    """``a (V, T, F)`` with ``delta (V, O, T) a = gradient (V, O, F)``, by the normal equations in float64."""
    if delta.shape[2] == 1:  # one position: a quotient, as exact without float64
        return (delta.transpose(1, 2) @ gradient / delta.square().sum(1, keepdim=True).clamp_min(_TINY)).clamp(-1e4, 1e4) / (1 + penalty)
    delta, gradient = delta.double(), gradient.double()
    gram = delta.transpose(1, 2) @ delta
    scale = gram.diagonal(dim1=1, dim2=2).mean(1).clamp_min(_TINY**2)
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    found: torch.Tensor = torch.linalg.solve(gram + ((penalty + 1e-12) * scale)[:, None, None] * eye, delta.transpose(1, 2) @ gradient)
    return found.nan_to_num(0, 0, 0).clamp(-1e4, 1e4).float()


def _layers(observation: Observation, model: nn.Module, *, module: bool) -> tuple[Step, ...]:
    try:
        return steps(model, observation.input_shape)
    except AttackError:
        if not module:
            raise
        return ()  # blocks need no graph: what it would show in closed form is left out


def _layer_nodes(layers: Sequence[Step]) -> tuple[_Node, ...]:
    place = {layer.name: index for index, layer in enumerate(layers)}
    return tuple(_Node(layer.name, layer.parameters, tuple(place[name] for name in layer.feeds)) for layer in layers)


def _module_nodes(observation: Observation, model: nn.Module) -> tuple[_Node, ...]:
    found = modules(model, observation.input_shape)[::-1]
    return tuple(_Node(block.name, block.parameters, (index - 1,) if index else ()) for index, block in enumerate(found))


def _is_constant(pairs: PublicPairs, seed: int) -> bool:
    """Whether the defense draws nothing."""
    rows = torch.arange(min(4, len(pairs)))
    first, second = (pairs.updates(rows, generator=make_generator(seed, "constant", which)).flatten() for which in "ab")
    return torch.equal(first, second)


def _read_all(
    observation: Observation,
    pairs: PublicPairs,
    reader: _Reader,
    *,
    draws: int,
    adapt: bool,
    generator: torch.Generator,
    progress: Progress,
) -> list[_Seen]:
    """What is read off all public batches, once for each draw of the defense."""
    chunks = torch.arange(len(pairs)).split(min(64, observation.chunk))
    found: list[list[_Seen]] = [[] for _ in range(draws)]
    for done, chunk in enumerate(chunks):
        raw = pairs.gradients(chunk)
        for part in found:
            update = observation.protected(raw, generator=generator) if adapt else raw
            part.append(reader(update, pairs.labels[chunk.to(observation.device)]))
        progress("git: public updates", done + 1, len(chunks))
    return [_Seen.joined(part) for part in found]


def _moments(parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each coordinate of rows ``(N, ...)``, over several draws."""
    mean = torch.stack([part.mean(0) for part in parts]).mean(0)
    deviation = torch.stack([part.var(0) for part in parts]).mean(0).sqrt()
    return mean, deviation


def _standardised(sketches: torch.Tensor, mean: torch.Tensor, deviation: torch.Tensor) -> torch.Tensor:
    # A coordinate that is constant in the public updates tells nothing and reads as zero.
    varies = deviation > _RELATIVE * mean.abs() + 1e-7
    scale = torch.where(varies, 1 / deviation.clamp_min(1e-7), 0)
    return ((sketches - mean) * scale).clamp(-_CLIP, _CLIP)


@dataclass(frozen=True)
class _Start:
    """The closed-form estimate of the image.

    Args:
        ridge: from the inputs that the gradient shows to pixels.
        variant: which inputs, of :meth:`_variants`.
        columns: mean and scale ``(2, D)`` of the inputs beyond the last layer's.
        mean: ``(P,)`` of public images.
        basis: their principal components ``(P, K)``.
        weights: ``(K, 1 + L + 1)`` of the ridge regression, of each direct estimate and of one, by component.
        rest: the same ``(1 + L,)`` for what the components leave out.
        inverse: of the activation that the last layer reads.
    """

    ridge: LinearMap
    variant: int
    columns: torch.Tensor
    mean: torch.Tensor
    basis: torch.Tensor
    weights: torch.Tensor
    rest: torch.Tensor
    inverse: Callable[[torch.Tensor], torch.Tensor] | None

    @property
    def components(self) -> int:
        return self.basis.shape[1]

    @classmethod
    def fit(cls, reader: _Reader, seen: _Seen, images: torch.Tensor, *, held: int, components: int, generator: torch.Generator) -> _Start:
        """From what was read off all public batches, and their images ``(N, B, P)``; the last ``held`` rows are held out."""
        batch = images.shape[1]
        pixels = images.flatten(0, 1)
        out = torch.arange(len(pixels), device=pixels.device) >= len(pixels) - held * batch
        train = seen.inputs[: len(seen.inputs) - held]
        columns = train.new_zeros(2, train.shape[1])
        if train.shape[1]:
            deviation = train.std(0)
            # Not to unit variance: what hardly varies is mostly noise.
            columns = torch.stack([train.mean(0), deviation + deviation.mean() + _TINY])
        found = _variants(seen, columns, reader.inverse)
        fitted = [fit_linear(inputs, pixels, held=out, bounds=(0, 1)) for inputs in found]
        # Judged as they are used: a few wild pixels, which are cut, must not decide.
        errors = [float((fit(inputs[out]).clamp(0, 1) - pixels[out]).square().mean()) for fit, inputs in zip(fitted, found, strict=True)]
        variant = errors.index(min(errors))
        mean = pixels[~out].mean(0)
        basis = _principal(pixels[~out] - mean, components, generator)
        levels = seen.direct.shape[1]
        first = pixels.new_zeros(1 + levels)
        first[0] = 1
        start = cls(
            ridge=fitted[variant],
            variant=variant,
            columns=columns,
            mean=mean,
            basis=basis,
            weights=functional.pad(first, (0, 1)).repeat(basis.shape[1], 1),
            rest=first,
            inverse=reader.inverse,
        )
        return start._weighed(seen.part(slice(len(images) - held, None)), pixels[out]) if levels else start

    @classmethod
    def stored(cls, state: Mapping[str, torch.Tensor], reader: _Reader) -> _Start:
        ridge = LinearMap.stored(dict(state), "start.ridge")
        names = ("columns", "mean", "basis", "weights", "rest")
        columns, mean, basis, weights, rest = (state[f"start.{name}"] for name in names)
        return cls(ridge, int(state["start.variant"]), columns, mean, basis, weights, rest, reader.inverse)

    def tensors(self) -> dict[str, torch.Tensor]:
        names = ("columns", "mean", "basis", "weights", "rest")
        own = {f"start.{name}": getattr(self, name) for name in names}
        return {**self.ridge.tensors("start.ridge"), **own, "start.variant": torch.tensor(self.variant)}

    def __call__(self, seen: _Seen) -> torch.Tensor:
        """``(V * B, P)``."""
        parts, inside = self._parts(seen)
        first = parts[:, 0] - self.mean
        if parts.shape[1] == 1:
            return first + self.mean
        changed = (inside * self.weights[:, :-1].T).sum(1) + self.weights[:, -1]
        outside = torch.einsum("nlp,l->np", parts - self.mean, self.rest) - torch.einsum("nlk,l->nk", inside, self.rest) @ self.basis.T
        return changed @ self.basis.T + outside + self.mean

    def inputs(self, seen: _Seen) -> torch.Tensor:
        """What the ridge regression reads, ``(V * B, F)``."""
        return _variants(seen, self.columns, self.inverse)[self.variant]

    def coefficients(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, P)`` to ``(N, K)``."""
        return (images - self.mean) @ self.basis

    def _parts(self, seen: _Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """The ridge regression's image and the direct ones ``(V * B, 1 + L, P)``, and their components."""
        first = self.ridge(self.inputs(seen))
        batch = seen.labels.shape[1]
        others = seen.direct.repeat_interleave(batch, dim=0)
        parts = torch.cat([first[:, None], others], dim=1)
        return parts, (parts - self.mean) @ self.basis

    def _weighed(self, seen: _Seen, pixels: torch.Tensor) -> _Start:
        """With weights by least squares on rows that the ridge regression was not fitted on: it looks too good on its own."""
        parts, inside = self._parts(seen)
        wanted = self.coefficients(pixels)
        ones = torch.ones_like(inside[:, :1])
        weights = _regressed(torch.cat([inside, ones], dim=1).permute(2, 0, 1), wanted.T)
        rest = (parts - self.mean) - inside @ self.basis.T
        left = (pixels - self.mean) - wanted @ self.basis.T
        return replace(self, weights=weights, rest=_regressed(rest.transpose(1, 2).flatten(0, 1)[None], left.flatten()[None])[0])


class _Beginnings:
    """Where the chain starts on public batches: as on victims, from a map that was not fitted on them.

    A regression fits its own rows too well, and a chain that is trained on what it leaves of them learns to add
    too little. So each fold of the rows starts from a map fitted on the others. Direct estimates are fitted on
    nothing, and start as they are.

    Args:
        start: for rows beyond the folds.
        maps: from the same inputs to components, one for each fold.
        rows: in all folds together.
    """

    def __init__(self, start: _Start, maps: Sequence[LinearMap], rows: int) -> None:
        self._start = start
        self._maps = maps
        self._rows = rows

    @classmethod
    def fit(cls, start: _Start, seen: _Seen, wanted: torch.Tensor) -> _Beginnings:
        rows, batch = wanted.shape[:2]
        if start.rest.shape[0] > 1 or rows < 8 * _FOLDS:
            return cls(start, (), 0)
        inputs, targets = start.inputs(seen), wanted.flatten(0, 1)
        fold = torch.arange(rows, device=wanted.device).repeat_interleave(batch) * _FOLDS // rows
        return cls(start, [fit_linear(inputs, targets, held=fold == index) for index in range(_FOLDS)], rows)

    def __call__(self, seen: _Seen, rows: torch.Tensor) -> torch.Tensor:
        """Components ``(n, B, K)`` for what was read off the public batches ``rows (n,)``."""
        pieces = []
        for chunk in torch.arange(len(rows), device=rows.device).split(512):
            part = seen.part(chunk)
            found = self._start.coefficients(self._start(part)).reshape(*part.labels.shape, -1)
            inputs = self._start.inputs(part)
            for index, fitted in enumerate(self._maps):
                inside = (rows[chunk] < self._rows) & (rows[chunk] * _FOLDS // self._rows == index)
                found = torch.where(inside[:, None, None], fitted(inputs).reshape(found.shape), found)
            pieces.append(found)
        return torch.cat(pieces)


def _regressed(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Least squares ``(K, M)`` from ``(K, N, M)`` to ``(K, N)``, in float64 and with next to no penalty."""
    inputs, targets = inputs.double(), targets.double()
    scale = inputs.square().mean(1).sqrt().clamp_min(_TINY)
    inputs = inputs / scale[:, None]
    gram = inputs.transpose(1, 2) @ inputs / inputs.shape[1]
    cross = (inputs.transpose(1, 2) @ targets[..., None])[..., 0] / inputs.shape[1]
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    found: torch.Tensor = torch.linalg.solve(gram + 1e-8 * eye, cross)
    return (found / scale).float()


def _variants(seen: _Seen, columns: torch.Tensor, inverse: Callable[[torch.Tensor], torch.Tensor] | None) -> list[torch.Tensor]:
    """Alternative inputs of the ridge regression ``(V * B, F)``: with and without an inverse, and further layers' inputs."""
    last = seen.last.flatten(0, 1)
    found = [last] if inverse is None else [last, inverse(last)]
    if seen.inputs.shape[1]:
        # As large as the last layer's, so that one penalty fits both; outliers of a noisy solution cut.
        further = ((seen.inputs - columns[0]) / columns[1]).clamp(-_CLIP, _CLIP).repeat_interleave(seen.labels.shape[1], dim=0)
        found += [torch.cat([inputs, further * 0.1], dim=1) for inputs in found]
    return found


def _principal(centred: torch.Tensor, components: int, generator: torch.Generator) -> torch.Tensor:
    """Principal components ``(P, K)`` by subspace iteration on at most 4,096 rows ``(N, P)``."""
    rows = centred[:4096]
    count = min(components, len(rows), rows.shape[1])
    wide = min(count + 16, len(rows), rows.shape[1])
    basis = torch.randn(rows.shape[1], wide, generator=generator).to(rows.device)
    for _ in range(3):
        basis, _ = torch.linalg.qr(rows.T @ (rows @ basis))
    _, vectors = torch.linalg.eigh(basis.T @ (rows.T @ (rows @ basis)))
    found: torch.Tensor = basis @ vectors.flip(1)[:, :count]
    return found.contiguous()


class _Chain(nn.Module):
    """One shallow MLP for each node, each adding to the estimate that it is passed.

    A node reads its own gradient's sketch, a random-sign sum of those of the nodes that it feeds (as a hash of
    them side by side), the labels and the mean of those nodes' estimates; the first reads the last layer's input.
    """

    scale: torch.Tensor
    mean: torch.Tensor
    deviation: torch.Tensor
    signs: torch.Tensor
    codes: torch.Tensor
    last_mean: torch.Tensor
    last_deviation: torch.Tensor
    sketch_mean: torch.Tensor
    sketch_deviation: torch.Tensor

    def __init__(self, nodes: Sequence[_Node], *, components: int, classes: int, last: int, options: CoarseOptions) -> None:
        super().__init__()
        self._feeds = [node.feeds for node in nodes]
        read = {index for node in nodes for index in node.feeds}
        self._ends = [index for index in range(len(nodes)) if index not in read]
        width = options.width
        labels = min(classes, _CLASSES)
        self.shared = nn.ModuleList(nn.Linear(2 * options.sketch, width) for _ in nodes)
        own = [components + labels + (last if index == 0 else 0) for index in range(len(nodes))]
        self.own = nn.ModuleList(nn.Linear(size, width) for size in own)
        self.out = nn.ModuleList(nn.Linear(width, components) for _ in nodes)
        for parameter in self.out.parameters():
            nn.init.zeros_(parameter)
        self.register_buffer("signs", torch.randint(2, (len(nodes), options.sketch)).float() * 2 - 1)
        self.register_buffer("codes", torch.eye(classes) if classes <= _CLASSES else torch.randn(classes, _CLASSES))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("mean", torch.zeros(components))
        self.register_buffer("deviation", torch.ones(components))
        self.register_buffer("last_mean", torch.zeros(last))
        self.register_buffer("last_deviation", torch.ones(last))
        self.register_buffer("sketch_mean", torch.zeros(len(nodes), options.sketch))
        self.register_buffer("sketch_deviation", torch.ones(len(nodes), options.sketch))

    def prepare(self, seen: Sequence[_Seen], begin: torch.Tensor, wanted: torch.Tensor) -> None:
        """Take the moments of what is read (one for each draw), of where it starts and of what it is to add."""
        self.sketch_mean, self.sketch_deviation = _moments([part.sketches for part in seen])
        self.last_mean, self.last_deviation = _moments([part.last.flatten(0, 1) for part in seen])
        self.scale = (wanted - begin).square().mean().sqrt().clamp_min(1e-6)
        # What one node adds stays small for the next, also in components that the closed form leaves constant.
        self.mean, self.deviation = begin.flatten(0, 1).mean(0), begin.flatten(0, 1).std(0) + self.scale

    def forward(self, seen: _Seen, begin: torch.Tensor) -> torch.Tensor:
        """Components ``(V, B, K)`` from what was read off updates and the components to start from ``(V, B, K)``."""
        sketches = _standardised(seen.sketches, self.sketch_mean, self.sketch_deviation)
        last = _standardised(seen.last, self.last_mean, self.last_deviation)
        labels = self.codes[seen.labels]
        estimates: list[torch.Tensor] = []
        for index, feeds in enumerate(self._feeds):
            estimate = torch.stack([estimates[other] for other in feeds]).mean(0) if feeds else begin
            others = sketches.new_zeros(len(sketches), sketches.shape[2])
            if feeds:
                chosen = torch.tensor(feeds, device=sketches.device)
                others = (sketches[:, chosen] * self.signs[chosen]).sum(1) / math.sqrt(len(feeds))
            own = [(estimate - self.mean) / self.deviation, labels, *([last] if index == 0 else [])]
            hidden = self.shared[index](torch.cat([sketches[:, index], others], dim=1))[:, None] + self.own[index](torch.cat(own, dim=2))
            estimates.append(estimate + self.out[index](functional.gelu(hidden)) * self.scale)
        return torch.stack([estimates[index] for index in self._ends]).mean(0)
