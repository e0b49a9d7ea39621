"""LTI: learning to invert (Wu et al., arXiv 2210.10880)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.learning import Checkpoint, train_network
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import PublicOptions
from gitbench.attacker.tools.assignment import matched_error
from gitbench.attacker.tools.hashing import Hashing
from gitbench.attacker.tools.public_pairs import KEPT, PublicPairs, pairs_memory
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator, seeded

_CLIP = 10.0  # standard deviations
_PIECE = 2**20  # entries read at once: temporaries that stay in the cache
_RELATIVE = 1e-6


_BINS = 8192  # on CIFAR-10 4,096 were worse


class LTI(Attack):
    """A multi-layer perceptron from the flat update to the images of the batch, trained on public pairs.

    The public updates pass through the defense with fresh randomness at every epoch, so the network learns to
    invert *defended* updates. Hidden layers are ReLU, the output is a sigmoid. A batch's images have no order:
    the loss is the squared error under the best assignment (Hungarian). Large updates are hashed: every
    coordinate goes to a random bin with a random sign, as many coordinates to one bin as to any other.

    The ``paper`` settings are those of the reference code for one image and the LeNet: two hidden layers of
    3,000, Adam 1e-4, 200 epochs of batches of 256, a tenth of the rate after 75 %. Where we differ, at any
    profile: coordinates are standardised by the mean and standard deviation of the public updates (before they
    are hashed) and cut at 10 deviations, the last layer starts at the mean public image, the epoch is chosen on
    held-out public pairs (the reference code chooses it by the victims' error) and the batches of images are
    fixed. The defaults are a narrower network at a higher rate, for a CPU.
    """

    name = "lti"
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"defense"})
    profiles = {
        "quick": {"bins": 2048, "epochs": 12, "limit": 768, "width": 256, "draws": 2},
        "paper": {
            "hidden": 2,
            "width": 3000,
            "bins": None,
            "epochs": 200,
            "batch_size": 256,
            "lr": 1e-4,
            "schedule": "step",
            "limit": 50_000,
        },
    }

    @dataclass(frozen=True, kw_only=True)
    class Options(PublicOptions):
        """Of :class:`LTI`.

        Args:
            hidden: how many hidden layers.
            width: of each.
            bins: ``auto`` hashes updates of more than 8,192 entries to as many bins; a whole number is that many
                bins, a share in (0, 1) so many per entry, None hashes nothing.
            epochs: passes over the public batches.
            batch_size: updates per step.
            lr: first step size.
            schedule: ``cosine``, or ``step``: a tenth after 75 %.
            draws: of a random defense for each public batch; None draws afresh at every step.
        """

        hidden: int = 1
        width: int = 512
        bins: float | str | None = "auto"
        epochs: int = 25
        batch_size: int = 64
        lr: float = 1e-3
        schedule: str = "cosine"
        draws: int | None = None

        def __post_init__(self) -> None:
            super().__post_init__()
            self.check_choice("schedule", ("cosine", "step"))
            self.check_least(0, "hidden")
            self.check_least(1, "width", "epochs", "batch_size", *(() if self.draws is None else ("draws",)))
            self.check_positive("lr")
            if not _are_bins(self.bins):
                raise ValueError(f"expected bins to be 'auto', None, a whole number or a share in (0, 1), got {self.bins!r}")

    options: Options

    def memory(self, observation: Observation) -> int:
        """The gradients (twice, while they are joined), the features read from them, and eight copies of the network."""
        rows = self._rows(observation)
        entries = observation.entries
        features = self._features(entries)
        sizes = self._sizes(features, self._outputs(observation))
        parameters = sum(before * after + after for before, after in itertools.pairwise(sizes))
        kept = min(pairs_memory(observation, rows), KEPT)
        steps = 4 * self.options.batch_size * (4 * entries + 4 * sum(sizes))
        return 2 * kept + 4 * ((self.options.draws or 1) * rows * features + 8 * parameters + 8 * entries) + steps

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        public, device = observation.public, observation.device
        rows = self._rows(observation)
        held = max(1, round(self.options.holdout * rows))
        if rows <= held:
            raise AttackError(
                f"{self!r} needs at least 2 public batches to fit on, found {rows} of {observation.batch_size} images: "
                "use more public data or a smaller batch."
            )
        order = torch.randperm(len(public), generator=generator)[: rows * observation.batch_size].reshape(rows, -1)
        seed = int(torch.randint(2**62, (), generator=generator))
        pairs = PublicPairs(observation, order, generator=generator, progress=progress, what="lti")
        train, test = torch.arange(rows - held), torch.arange(rows - held, rows)
        moments = self._moments(pairs, train, make_generator(seed, "moments"), progress)
        reader = UpdateReader(*moments, bins=self._bins(len(moments[0])), seed=seed)
        source = _Features(pairs, reader, seed, progress, draws=self.options.draws)
        held_features = source(test, make_generator(seed, "held out"))
        held_images = public.inputs[pairs.order[test.to(pairs.order.device)]].flatten(2)
        with seeded(generator):
            network = self._network(self._sizes(self._features(len(moments[0])), self._outputs(observation))).to(device)
        _start_at(network, public.inputs[pairs.order[train.to(pairs.order.device)]].mean(0).flatten(), batch=observation.batch_size)

        def error(features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
            return matched_error(network(features).reshape(images.shape), images)

        def loss(chosen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
            images = public.inputs[pairs.order[chosen.to(pairs.order.device)]].flatten(2)
            return error(source(chosen, generator), images)

        def validate() -> float:
            parts = zip(held_features.split(256), held_images.split(256), strict=True)
            return sum(float(error(features, images)) * len(images) for features, images in parts) / held

        train_network(
            network,
            loss=loss,
            rows=len(train),
            validate=validate,
            epochs=self.options.epochs,
            batch_size=self.options.batch_size,
            lr=self.options.lr,
            generator=generator,
            progress=progress,
            what="lti",
            checkpoint=checkpoint,
            schedule="cosine" if self.options.schedule == "cosine" else "step",
        )
        learned = {f"network.{name}": tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return {"mean": reader.mean, "deviation": reader.deviation, "seed": torch.tensor(seed), **learned}

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        device = observation.device
        mean, deviation = state["mean"].to(device), state["deviation"].to(device)
        reader = UpdateReader(mean, deviation, bins=self._bins(len(mean)), seed=int(state["seed"]))
        network = self._network(self._sizes(self._features(len(mean)), self._outputs(observation)))
        network.load_state_dict({name.removeprefix("network."): tensor for name, tensor in state.items() if name.startswith("network.")})
        network.to(device)
        update = observation.update
        shape = (update.victims, observation.batch_size, *observation.input_shape)
        with torch.no_grad():
            found: torch.Tensor = network(reader(update))
        return found.reshape(shape).clamp(0, 1)

    def _rows(self, observation: Observation) -> int:
        return min(self.options.limit, len(observation.public)) // observation.batch_size

    def _bins(self, entries: int) -> int | None:
        if self.options.bins is None:
            return None
        wanted: float = _BINS if isinstance(self.options.bins, str) else self.options.bins
        if wanted < 1:
            wanted = max(1, round(wanted * entries))
        return int(wanted) if wanted < entries else None

    def _features(self, entries: int) -> int:
        return self._bins(entries) or entries

    def _sizes(self, features: int, outputs: int) -> list[int]:
        return [features, *[self.options.width] * self.options.hidden, outputs]

    @staticmethod
    def _outputs(observation: Observation) -> int:
        return observation.batch_size * math.prod(observation.input_shape)

    @staticmethod
    def _network(sizes: list[int]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), nn.ReLU()]
        return nn.Sequential(*layers[:-1], nn.Sigmoid())

    @staticmethod
    def _moments(
        pairs: PublicPairs, rows: torch.Tensor, generator: torch.Generator, progress: Progress
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation ``(D,)`` of each coordinate of the defended public updates."""
        chunks = rows.split(64)
        count = 0
        mean = squares = torch.zeros(())
        # Chunk by chunk (Chan et al.): as exact as two passes, and the updates are made once.
        for done, chunk in enumerate(chunks):
            found = pairs.updates(chunk, generator=generator).flatten()
            variance, own = (part.double() for part in torch.var_mean(found, 0, correction=0))
            size = len(found)
            shift = own - mean.to(own)
            total = count + size
            squares = squares.to(own) + variance * size + shift.square() * (count * size / total)
            mean = mean.to(own) + shift * (size / total)
            count = total
            progress("lti: public updates", done + 1, len(chunks))
        return mean.float(), (squares / count).sqrt().float()


class UpdateReader:
    """From updates to the network's input: standardised coordinates, hashed if there are many.

    A coordinate that is constant in the public updates tells nothing and reads as zero.

    Args:
        mean: ``(D,)`` of the public updates.
        deviation: ``(D,)`` of the public updates.
        bins: how many; None hashes nothing.
        seed: of the hashing.
    """

    def __init__(self, mean: torch.Tensor, deviation: torch.Tensor, *, bins: int | None, seed: int) -> None:
        self.mean = mean
        self.deviation = deviation
        # float32 rounds a constant far from zero to a deviation that is not quite zero.
        varies = deviation > _RELATIVE * mean.abs()
        self._scale = torch.where(varies, 1 / deviation.clamp_min(torch.finfo(deviation.dtype).tiny), 0)
        signs = make_generator(seed, "hashing")
        self._hashing = None if bins is None else Hashing(len(mean), bins, generator=signs, shuffled=True, device=mean.device)

    def __call__(self, update: Update) -> torch.Tensor:
        """Features ``(V, bins or D)`` of an update of ``V`` victims."""
        size = max(1, _PIECE // len(self.mean))
        pieces = []
        for start in range(0, update.victims, size):
            flat = update[start : start + size].flatten()
            flat = ((flat - self.mean) * self._scale).clamp_(-_CLIP, _CLIP)
            pieces.append(flat if self._hashing is None else self._hashing(flat))
        return torch.cat(pieces)


class _Features:
    """Features of public rows: read once for each draw of the defense, or afresh at each request where ``draws`` is None."""

    def __init__(self, pairs: PublicPairs, reader: UpdateReader, seed: int, progress: Progress, *, draws: int | None) -> None:
        self._pairs = pairs
        self._reader = reader
        self._known: list[torch.Tensor] = []
        if not pairs.random:
            draws = 1
        for draw in range(draws or 0):
            chunks = torch.arange(len(pairs)).split(64)
            generator = make_generator(seed, "draw", str(draw))
            pieces = []
            for done, rows in enumerate(chunks):
                pieces.append(self._fresh(rows, generator))
                progress("lti: features", done + 1, len(chunks))
            self._known.append(torch.cat(pieces))
        if self._known:
            del self._pairs

    def __call__(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if not self._known:
            return torch.cat([self._fresh(chunk, generator) for chunk in rows.split(64)])
        draw = int(torch.randint(len(self._known), (), generator=generator))
        return self._known[draw][rows.to(self._known[draw].device)]

    def _fresh(self, rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return self._reader(self._pairs.updates(rows, generator=generator))


def _are_bins(value: object) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return value >= 1
    return value is None or value == "auto" or (isinstance(value, float) and 0 < value < 1)


def _start_at(network: nn.Sequential, pixels: torch.Tensor, *, batch: int) -> None:
    """Let the network begin at the mean public image, and learn what differs from it."""
    last = next(layer for layer in reversed(network) if isinstance(layer, nn.Linear))
    with torch.no_grad():
        last.weight.mul_(0.1)
        last.bias.copy_(torch.logit(pixels.clamp(0.01, 0.99)).reshape(batch, -1).mean(0).repeat(batch))
