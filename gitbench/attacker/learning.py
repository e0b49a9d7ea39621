"""Training a network of an attack: minibatches, the best epoch kept, and a checkpoint to resume from.

A training that was killed goes on where it was and ends with the same bits as one that was not.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import nn

from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress, TimeUp
from gitbench.core.random import seeded

Schedule = Literal["cosine", "step", "constant"]
Tensors = dict[str, torch.Tensor]


class Checkpoint(Protocol):
    """Where a training keeps how far it is."""

    def load(self) -> Tensors | None:
        """What was saved last, or None."""

    def save(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Replace what was saved."""


class NoCheckpoint:
    """Keeps nothing: a training that is interrupted starts again."""

    def load(self) -> Tensors | None:
        return None

    def save(self, tensors: Mapping[str, torch.Tensor]) -> None:
        pass


def train_network(
    network: nn.Module,
    *,
    loss: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    rows: int,
    validate: Callable[[], float],
    epochs: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    progress: Progress,
    what: str,
    checkpoint: Checkpoint,
    schedule: Schedule = "cosine",
    weight_decay: float = 0.0,
    patience: int | None = None,
    betas: tuple[float, float] = (0.9, 0.999),
    save_seconds: float = 20.0,
) -> float:
    """Train ``network`` in place with Adam, leave it with its best epoch's values, in eval mode, and return its validation loss.

    A resumed call ends with the same bits as an uninterrupted one, where everything before it was the same, ``loss`` draws
    from its generator (or torch's global one) alone and ``validate`` is deterministic. A stage that had finished is skipped.
    Peak memory beyond activations: about eight times the parameters.

    Args:
        network: its parameters that require a gradient are trained, on whatever device they are.
        loss: of some rows ``(b,)`` (int64, on the generator's device): a scalar to minimise.
        rows: how many rows there are; every epoch sees each once (a last batch of a single row is left out).
        validate: the held-out loss, called after each epoch without gradients, in eval mode.
        epochs: passes over the rows.
        batch_size: rows per step.
        lr: of the first step.
        generator: for the order, the loss and dropout.
        progress: told after every step.
        what: names this training. One fit must not give two of its trainings the same name.
        checkpoint: where to save and to resume from.
        schedule: ``cosine`` to zero, ``step`` (a tenth after 75 % of the steps) or ``constant``.
        weight_decay: decoupled (AdamW) if not zero.
        patience: stop after so many epochs without a better validation loss.
        betas: of Adam.
        save_seconds: save no more often than this, except at the end.

    Raises:
        AttackError: the loss was NaN or infinite before any epoch could be kept.
    """
    training = _Training(network, lr=lr, weight_decay=weight_decay, betas=betas, generator=generator)
    stage = _Stage(checkpoint, what, seconds=save_seconds)
    plan = _Plan(rows, batch_size=batch_size, epochs=epochs, lr=lr, schedule=schedule)
    return _run(training, stage, plan, loss, validate, epochs=epochs, patience=patience, what=what, progress=progress)


def _run(
    training: _Training,
    stage: _Stage,
    plan: _Plan,
    loss: Callable[[torch.Tensor, torch.Generator], torch.Tensor],
    validate: Callable[[], float],
    *,
    epochs: int,
    patience: int | None,
    what: str,
    progress: Progress,
) -> float:
    training.resume(stage.found, what)
    clock = _Clock(what, first=training.epoch, epochs=epochs, per_epoch=plan.per_epoch, progress=progress)
    try:
        while not training.finished and training.epoch < epochs and (patience is None or training.waited < patience):
            with seeded(training.generator):  # dropout can only be seeded globally; anew each epoch, so that it can be resumed
                finite = training.run_epoch(loss, plan, clock)
                with torch.no_grad():
                    found = validate() if finite else math.nan
            if not math.isfinite(found):
                break
            training.end_epoch(found)
            stage.keep(training.tensors())
    except (KeyboardInterrupt, TimeUp):
        stage.flush()
        raise
    if not training.best:
        raise AttackError(f"{what}: expected a finite loss in the first epoch, got NaN or infinity. Lower lr={plan.lr}.")
    training.end()
    if not training.finished:
        stage.keep(training.outcome())
        stage.flush()
    return training.best_loss


class _Plan:
    """Which rows each step takes, and at which rate."""

    def __init__(self, rows: int, *, batch_size: int, epochs: int, lr: float, schedule: Schedule) -> None:
        self._rows = rows
        self._batch_size = batch_size
        self.lr = lr
        self._schedule = schedule
        self.per_epoch = len(self._batches(torch.arange(rows)))
        self._total = epochs * self.per_epoch

    def epoch(self, generator: torch.Generator) -> list[torch.Tensor]:
        """The batches of one pass, in an order of its own."""
        return self._batches(torch.randperm(self._rows, generator=generator))

    def rate(self, done: int) -> float:
        """Of the step that follows ``done`` others."""
        return self.lr * _scale(self._schedule, done / self._total)

    def _batches(self, order: torch.Tensor) -> list[torch.Tensor]:
        found = list(order.split(self._batch_size))
        # BatchNorm cannot normalise a single row.
        return found[:-1] if len(found) > 1 and len(found[-1]) == 1 else found


class _Stage:
    """One training's part of a checkpoint, written no more often than every so many seconds."""

    def __init__(self, checkpoint: Checkpoint, what: str, *, seconds: float) -> None:
        self._checkpoint = checkpoint
        self._prefix = f"{what.replace('/', '|')}/"
        self._seconds = seconds
        kept = checkpoint.load() or {}
        self.found = {name.removeprefix(self._prefix): tensor for name, tensor in kept.items() if name.startswith(self._prefix)}
        self._others = {name: tensor for name, tensor in kept.items() if not name.startswith(self._prefix)}
        self._unsaved: Tensors | None = None
        self._saved_at = time.monotonic()

    def keep(self, tensors: Tensors) -> None:
        """Replace what is kept, and write it if the last time is long enough ago."""
        self._unsaved = tensors
        if time.monotonic() - self._saved_at >= self._seconds:
            self.flush()

    def flush(self) -> None:
        """Write what is kept and not written yet."""
        if self._unsaved is not None:
            self._checkpoint.save({**self._others, **{self._prefix + name: tensor for name, tensor in self._unsaved.items()}})
            self._unsaved, self._saved_at = None, time.monotonic()


class _Training:
    """Network and optimiser, what is best so far, and all of it as tensors."""

    def __init__(
        self, network: nn.Module, *, lr: float, weight_decay: float, betas: tuple[float, float], generator: torch.Generator
    ) -> None:
        self._network = network
        self.generator = generator
        self._trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
        self._optimizer: torch.optim.Optimizer = kind(self._trained, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)
        self.best: Tensors = {}
        self.best_loss = math.inf
        self.latest: float | None = None
        self.epoch = 0
        self.waited = 0
        self.finished = False

    def run_epoch(self, loss: Callable[[torch.Tensor, torch.Generator], torch.Tensor], plan: _Plan, clock: _Clock) -> bool:
        """One pass over the rows, which leaves the network in eval mode; whether all losses were finite."""
        self._network.train()
        finite = torch.ones((), dtype=torch.bool, device=self._trained[0].device)
        for step, chosen in enumerate(plan.epoch(self.generator)):
            done = self.epoch * plan.per_epoch + step
            value = loss(chosen, self.generator)
            self._step(value, plan.rate(done))
            finite &= value.detach().isfinite()  # read once an epoch: reading waits for the GPU
            clock.tell(done + 1, self.latest)
        self._network.eval()
        return bool(finite)

    def _step(self, loss: torch.Tensor, lr: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def end_epoch(self, loss: float) -> None:
        self.epoch += 1
        self.latest = loss
        self.waited += 1
        if loss < self.best_loss:
            self.best, self.best_loss, self.waited = _copied(self._network.state_dict()), loss, 0

    def end(self) -> None:
        """Leave the network with its best epoch's values, in eval mode."""
        self._network.load_state_dict(self.best)
        self._network.zero_grad()
        self._network.eval()

    def tensors(self) -> Tensors:
        """Everything that the next epoch depends on."""
        found = self._optimizer.state_dict()["state"]
        moments = {f"{index}/{name}": tensor for index, state in found.items() for name, tensor in state.items()}
        return {
            **_prefixed("network", _copied(self._network.state_dict())),
            **_prefixed("optimizer", _copied(moments)),
            "counts": torch.tensor([self.epoch, self.waited]),
            **self._common(),
        }

    def outcome(self) -> Tensors:
        """What is left of a finished training: its result, and the generator as it leaves it."""
        return {"finished": torch.tensor(True), **self._common()}

    def _common(self) -> Tensors:
        return {
            **_prefixed("best", self.best),
            "best_loss": torch.tensor(self.best_loss, dtype=torch.float64),
            "generator": self.generator.get_state(),
        }

    def resume(self, saved: Tensors, what: str) -> None:
        """Go on from what was saved; start anew, with a warning, where it does not fit."""
        if not saved:
            return
        wrong = self._misfit(saved)
        if wrong:
            warnings.warn(f"{what}: the checkpoint does not fit ({wrong}): the training starts again.", stacklevel=3)
            return
        self.finished = "finished" in saved
        self.best, self.best_loss = _under("best", saved), float(saved["best_loss"])
        self.generator.set_state(saved["generator"].cpu())
        if self.finished:
            return
        self.epoch, self.waited = (int(count) for count in saved["counts"])
        self._network.load_state_dict(_under("network", saved))
        state: dict[int, Tensors] = {}
        for key, tensor in _under("optimizer", saved).items():
            index, _, name = key.partition("/")
            state.setdefault(int(index), {})[name] = tensor
        self._optimizer.load_state_dict({"state": state, "param_groups": self._optimizer.state_dict()["param_groups"]})

    def _misfit(self, saved: Tensors) -> str:
        """What keeps these tensors from being a state of this training; empty if nothing does."""
        expected = {name: tensor.shape for name, tensor in self._network.state_dict().items()}
        own = ("best",) if "finished" in saved else ("best", "network")
        for part in own:
            found = {name: tensor.shape for name, tensor in _under(part, saved).items()}
            if found != expected:
                names = sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))
                return f"{part} differs in {', '.join(names[:3])}"
        state = self.generator.get_state()
        needed = {"best_loss": torch.Size(()), "generator": state.shape}
        if "finished" not in saved:
            needed["counts"] = torch.Size((2,))
            shapes = [parameter.shape for parameter in self._trained]
            for index, shape in enumerate(shapes):
                # A parameter that no loss has reached yet has no moments.
                moments = {name for name in saved if name.startswith(f"optimizer/{index}/")}
                needed |= {name: torch.Size(()) if name.endswith("/step") else shape for name in moments}
            if {name for name in saved if name.startswith("optimizer/")} - set(needed):
                return "the optimiser has other parameters"
        wrong = [name for name, shape in needed.items() if name not in saved or saved[name].shape != shape]
        return f"{', '.join(wrong[:3])} missing or of another shape" if wrong else ""


class _Clock:
    """Tells progress with the time left, measured on this call's own steps."""

    def __init__(self, what: str, *, first: int, epochs: int, per_epoch: int, progress: Progress) -> None:
        self._what = what
        self._first = first * per_epoch
        self._epochs = epochs
        self._per_epoch = per_epoch
        self._progress = progress
        self._start = time.monotonic()

    def tell(self, done: int, loss: float | None) -> None:
        total = self._epochs * self._per_epoch
        seconds = (time.monotonic() - self._start) / (done - self._first) * (total - done)
        epoch = -(-done // self._per_epoch)
        value = "" if loss is None else f", loss {loss:.4f}"
        self._progress(f"{self._what}: epoch {epoch}/{self._epochs}{value}, {_duration(seconds)} left", done, total)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _scale(schedule: Schedule, share: float) -> float:
    """The learning rate, in units of the first, after a share of all steps in [0, 1)."""
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * share))
    return 0.1 if schedule == "step" and share >= 0.75 else 1.0


def _copied(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Copies of their own memory: safetensors refuses tied ones."""
    return {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def _prefixed(part: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {f"{part}/{name}": tensor for name, tensor in tensors.items()}


def _under(part: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items() if name.startswith(f"{part}/")}
