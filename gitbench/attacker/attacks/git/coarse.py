"""Coarse-GIT and Module-GIT: a shallow network for each step of the recursion, trained together.

GIT (arXiv 2505.20026) recovers each layer's input ``a`` from its gradient, the gradients of the layers that it feeds
and its output. The coarse variant learns that map, one shallow MLP for each layer; Module-GIT does so for each block.
The paper gives no widths or rates; ours were chosen on held-out public images.

Where we differ: the estimates that are passed down the chain live in the space of the image's principal
components, and start at a closed-form estimate (:mod:`gitbench.attacker.attacks.git.coarse_start`). The MLPs
(:mod:`gitbench.attacker.attacks.git.coarse_chain`) learn what to add to it, and start at zero: chains of plain MLPs end far
above a ridge regression from the last layer's input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gitbench.attacker.attacks.git.coarse_chain import CoarseChain
from gitbench.attacker.attacks.git.coarse_reader import Reader, Seen, read_all
from gitbench.attacker.attacks.git.coarse_start import Beginnings, Start
from gitbench.attacker.attacks.git.options import GitOptions
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.public_pairs import KEPT, PublicPairs, pairs_memory, public_batches
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator, seeded

_COMPONENTS = 256  # principal components of an image in which the chain works
_BATCH, _LR, _PATIENCE = 128, 1e-3, 3  # of its training
_EXACT = 1e-4  # root mean square of a component's error


def fit_coarse(
    observation: Observation,
    *,
    module: bool,
    options: GitOptions,
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
        checkpoint: for :func:`gitbench.attacker.learning.train_network`.

    Returns:
        What :func:`run_coarse` needs.

    Raises:
        AttackError: the model has a layer that ``module=False`` cannot take, or there are too few public images.
    """
    lessons = _prepared(observation, module=module, options=options, generator=generator, progress=progress)
    network = lessons.network
    network.eval()
    with torch.no_grad():
        before = after = lessons.validate()
    # A closed form that is exact leaves nothing to learn but rounding.
    if float(network.scale) > _EXACT:
        after = train_network(
            network, loss=lessons.loss, rows=lessons.train, validate=lessons.validate, epochs=options.epochs,
            batch_size=_BATCH, lr=_LR, generator=generator, progress=progress,
            what="git module" if module else "git coarse", checkpoint=checkpoint, weight_decay=0.01, patience=_PATIENCE,
        )  # fmt: skip
    # A chain that is no better than what it started from adds nothing.
    return {**lessons.tensors(), "trust": torch.tensor(float(after < before))}


def run_coarse(
    observation: Observation, state: dict[str, torch.Tensor], *, module: bool, options: GitOptions, progress: Progress
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
    reader = Reader(observation, module=module, sketch=options.sketch, seed=int(state["seed"]), state=state)
    start = Start.stored(state, reader)
    network = _chain(reader, start, state["network.last_mean"].shape[0], options, make_generator(0, "replaced below"))
    network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items() if name.startswith("network.")})
    network.to(device).eval()
    update, labels = observation.update, infer_labels(observation)
    found: list[torch.Tensor] = []
    chunks = torch.arange(update.victims, device=device).split(64)
    with torch.no_grad():
        for done, chunk in enumerate(chunks):
            seen = reader(update[chunk], labels[chunk])
            image = start(seen)
            begin = start.coefficients(image).reshape(*seen.labels.shape, -1)
            change = (network(seen, begin) - begin) * state["trust"]
            found.append(image + change.flatten(0, 1) @ start.basis.T)
            progress("git: victims", done + 1, len(chunks))
    shape = (update.victims, observation.batch_size, *observation.input_shape)
    return torch.cat(found).clamp(0, 1).reshape(shape)


@dataclass(frozen=True)
class _Lessons:
    """What a chain is trained on: ``N`` public batches, of which the last are held out.

    Args:
        network: the chain.
        reader: of updates.
        start: the closed form.
        pairs: the public batches.
        beginnings: where the chain starts on them.
        seen: what was read off them, once for each draw of the defense.
        begins: where the chain starts on each of those, ``(N, B, K)``.
        wanted: the components of their images, ``(N, B, K)``.
        train: how many of them train.
        fresh: draw the defense anew at every step, rather than choose among ``seen``.
        seed: of the sketches.
    """

    network: CoarseChain
    reader: Reader
    start: Start
    pairs: PublicPairs
    beginnings: Beginnings
    seen: Sequence[Seen]
    begins: Sequence[torch.Tensor]
    wanted: torch.Tensor
    train: int
    fresh: bool
    seed: int

    def loss(self, chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Of some training rows."""
        index = chosen.to(self.wanted.device)
        if self.fresh:
            with torch.no_grad():
                part = self.reader(self.pairs.updates(chosen, generator=generator), self.pairs.labels[index])
                begin = self.beginnings(part, index)
        else:
            draw = int(torch.randint(len(self.seen), (), generator=generator))
            part, begin = self.seen[draw].part(index), self.begins[draw][index]
        return self._error(part, begin, self.wanted[index])

    def validate(self) -> float:
        """The error on the rows that are held out."""
        rows = len(self.wanted)
        chunks = torch.arange(self.train, rows, device=self.wanted.device).split(256)
        errors = (float(self._error(self.seen[0].part(chunk), self.begins[0][chunk], self.wanted[chunk])) * len(chunk) for chunk in chunks)
        return sum(errors) / (rows - self.train)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The attack's state, but for whether the chain is trusted."""
        learned = {f"network.{name}": tensor.detach().clone() for name, tensor in self.network.state_dict().items()}
        return {**self.reader.tensors(), **self.start.tensors(), **learned, "seed": torch.tensor(self.seed)}

    def _error(self, part: Seen, begin: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = ((self.network(part, begin) - targets) / self.network.scale).square().mean()
        return found


def _prepared(observation: Observation, *, module: bool, options: GitOptions, generator: torch.Generator, progress: Progress) -> _Lessons:
    """Public batches as they are read, the closed form fitted on them, and the chain before its training."""
    order = public_batches(observation, options.limit, generator=generator)
    rows = len(order)
    train = rows - max(1, round(options.holdout * rows))
    if train < 2:
        raise AttackError(
            f"git needs at least 3 public batches to fit on, found {rows} of {observation.batch_size} images: "
            "use more public data or a smaller batch."
        )
    seed = int(torch.randint(2**62, (), generator=generator))
    pairs = PublicPairs(observation, order, generator=generator, progress=progress, what="git", budget=KEPT)
    # More inputs than half the public batches would fit noise.
    reader = Reader(observation, module=module, sketch=options.sketch, seed=seed, room=rows // 2)
    reader.solve_head(pairs, make_generator(seed, "head"), train)
    fresh = pairs.random and pairs_memory(observation, rows) <= KEPT
    draws = 1 if fresh or not pairs.random else options.draws
    drawn = make_generator(seed, "draws")
    seen = read_all(observation, pairs, reader, draws=draws, generator=drawn, progress=progress)
    seen = reader.bounded(seen, train)
    images = pairs.inputs.flatten(2)
    start = Start.fit(reader, seen[0], images, held=rows - train, components=_COMPONENTS, generator=generator)
    wanted = start.coefficients(images)
    training = slice(0, train)
    beginnings = Beginnings.fit(start, seen[0].part(training), wanted[training])
    everyone = torch.arange(rows, device=observation.device)
    begins = [beginnings(part, everyone) for part in seen]
    network = _chain(reader, start, seen[0].last.shape[2], options, generator).to(observation.device)
    network.prepare([part.part(training) for part in seen], begins[0][training], wanted[training])
    return _Lessons(network, reader, start, pairs, beginnings, seen, begins, wanted, train, fresh, seed)


def _chain(reader: Reader, start: Start, last: int, options: GitOptions, generator: torch.Generator) -> CoarseChain:
    """Before its training; ``last`` entries of the last layer's input."""
    with seeded(generator):
        return CoarseChain(
            reader.nodes, components=start.components, classes=reader.classes, last=last, width=options.coarse_width, sketch=options.sketch
        )
