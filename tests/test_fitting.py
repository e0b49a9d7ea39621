"""Training an attack's network: what is kept, what is resumed, and what is told meanwhile."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import nn

from gitbench.attacker.fit_cache import FileCheckpoint
from gitbench.attacker.learning import Checkpoint, NoCheckpoint, train_network
from gitbench.core.errors import AttackError
from gitbench.core.memory import available_memory
from gitbench.core.progress import silent
from pytest_gitbench.report import Pace, running_line

EPOCHS, ROWS, BATCH = 6, 17, 4
STEPS = 4  # the last single row is left out


class Kept:
    """A checkpoint in memory."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] | None = None
        self.saves = 0

    def load(self) -> dict[str, torch.Tensor] | None:
        return None if self.tensors is None else dict(self.tensors)

    def save(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self.saves += 1


class Tied(nn.Module):
    """BatchNorm's buffers, dropout's global randomness, a frozen layer, one without a gradient and one that is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 5)
        self.again = self.first
        self.norm, self.dropout = nn.BatchNorm1d(5), nn.Dropout(0.3)
        self.frozen, self.unused = nn.Linear(5, 5).requires_grad_(False), nn.Linear(2, 2)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.last(self.dropout(self.frozen(self.again(self.norm(self.first(inputs)).relu()))))
        return found


def fit(checkpoint: Checkpoint, *, seed: int = 0, stop: int | None = None, **options: object) -> tuple[object, ...]:
    """Two stages; ``stop`` interrupts at that step of all. Returns what the outcome consists of."""
    torch.manual_seed(seed)
    networks = [Tied(), Tied()]
    inputs, targets = torch.randn(ROWS, 5), torch.randn(ROWS, 5)
    generator = torch.Generator().manual_seed(seed)
    calls = []
    losses = []
    for name, network in zip(("first", "second"), networks, strict=True):

        def loss(index: torch.Tensor, generator: torch.Generator, network: nn.Module = network) -> torch.Tensor:
            calls.append(index)
            if len(calls) == stop:
                raise KeyboardInterrupt
            noise = torch.randn(len(index), 5, generator=generator)
            return (network(inputs[index] + 0.1 * noise) - targets[index]).square().mean()

        def validate(network: nn.Module = network) -> float:
            assert not network.training
            assert not torch.is_grad_enabled()
            return float((network(inputs) - targets).square().mean())

        best = train_network(
            network, loss=loss, rows=ROWS, validate=validate, epochs=EPOCHS, batch_size=BATCH, lr=0.05, generator=generator,
            progress=silent, what=name, checkpoint=checkpoint, **options,
        )  # fmt: skip
        losses.append(best)
    return len(calls), losses, [network.state_dict() for network in networks], generator.get_state()


def same(first: tuple[object, ...], second: tuple[object, ...]) -> bool:
    (_, losses, states, generator), (_, other_losses, other_states, other_generator) = first, second
    return (
        losses == other_losses
        and torch.equal(generator, other_generator)
        and all(torch.equal(one[name], two[name]) for one, two in zip(states, other_states, strict=True) for name in one)
    )


@pytest.mark.parametrize("options", [{}, {"schedule": "step", "weight_decay": 0.1}, {"schedule": "constant", "patience": 2}])
def test_an_interrupted_training_ends_with_the_same_bits(options: dict[str, object]) -> None:
    whole = fit(NoCheckpoint(), **options)
    steps = whole[0]
    for stop in random.Random(0).sample(range(1, steps + 1), 6):
        checkpoint = Kept()
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint, stop=stop, **options)
        resumed = fit(checkpoint, **options)
        assert resumed[0] == steps - (stop - 1) // STEPS * STEPS  # no finished epoch is repeated
        assert same(resumed, whole)


def test_a_training_interrupted_again_and_again_ends_with_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "x.checkpoint.safetensors"
    for _ in range(2 * EPOCHS - 1):
        with pytest.raises(KeyboardInterrupt):
            fit(FileCheckpoint(path), stop=STEPS + 2)
    assert same(fit(FileCheckpoint(path)), fit(NoCheckpoint()))


def test_a_finished_training_is_skipped() -> None:
    checkpoint = Kept()
    whole = fit(checkpoint)
    assert checkpoint.saves == 2
    assert not any("/optimizer/" in name or "/network/" in name for name in checkpoint.tensors or {})
    again = fit(checkpoint)
    assert again[0] == 0
    assert same(again, whole)


def test_saves_are_as_rare_as_they_are_asked_to_be() -> None:
    checkpoint = Kept()
    fit(checkpoint, save_seconds=0.0)
    assert checkpoint.saves == 2 * (EPOCHS + 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("first/network/last.bias"), "network differs in last.bias"),
        (lambda found: found.update({"first/best/last.bias": torch.zeros(3)}), "best differs in last.bias"),
        (lambda found: found.update({"first/optimizer/0/exp_avg": torch.zeros(3)}), "optimizer/0/exp_avg"),
        (lambda found: found.update({"first/optimizer/99/exp_avg": torch.zeros(3)}), "other parameters"),
        (lambda found: found.pop("first/generator"), "generator"),
        (lambda found: found.pop("first/counts"), "counts"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_ignored_with_a_warning(
    change: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    checkpoint = Kept()
    with pytest.raises(KeyboardInterrupt):
        fit(checkpoint, stop=3 * STEPS)
    assert checkpoint.tensors is not None
    change(checkpoint.tensors)
    with pytest.warns(UserWarning, match=message):
        assert same(fit(checkpoint), fit(NoCheckpoint()))


def scripted(
    values: list[float], *, patience: int | None = None, losses: Callable[[int], float] = lambda step: 1.0
) -> tuple[float, float, int]:
    """Train one parameter that grows by about 1 each epoch, with given validation losses: best, parameter, epochs."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    done: list[float] = []
    steps: list[int] = []

    def loss(index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        steps.append(1)
        return -network.weight.sum() * losses(len(steps))

    def validate() -> float:
        done.append(values[len(done)])
        return done[-1]

    best = train_network(
        network, loss=loss, rows=2, validate=validate, epochs=len(values), batch_size=2, lr=1.0, generator=torch.Generator(),
        progress=silent, what="x", checkpoint=NoCheckpoint(), schedule="constant", patience=patience,
    )  # fmt: skip
    return best, network.weight.item(), len(done)


def test_the_best_epoch_is_kept() -> None:
    best, weight, epochs = scripted([3.0, 1.0, 2.0, 4.0])
    assert (best, epochs) == (1.0, 4)
    assert weight == pytest.approx(2.0, abs=1e-3)


def test_patience_ends_a_training_that_no_longer_improves() -> None:
    best, weight, epochs = scripted([3.0, 2.0, 2.5, 2.4, 1.0], patience=2)
    assert (best, epochs) == (2.0, 4)
    assert weight == pytest.approx(2.0, abs=1e-3)


def test_a_training_that_diverges_ends_with_its_best_epoch() -> None:
    assert scripted([2.0, math.nan, 1.0])[0] == 2.0
    best, weight, epochs = scripted([2.0, 1.0, 0.5], losses=lambda step: math.inf if step == 2 else 1.0)
    assert (best, epochs) == (2.0, 1)
    assert weight == pytest.approx(1.0, abs=1e-3)


def test_a_training_that_diverges_at_once_says_so() -> None:
    with pytest.raises(AttackError, match=r"x: expected a finite loss in the first epoch.*Lower lr=1.0"):
        scripted([math.inf, 1.0])


def test_progress_names_epoch_loss_and_time_left() -> None:
    told = []
    network = nn.Linear(2, 2)
    train_network(
        network, loss=lambda index, generator: network.weight.square().sum(), rows=4, validate=lambda: 0.25, epochs=2, batch_size=2,
        lr=0.1, generator=torch.Generator(), progress=lambda *line: told.append(line), what="git", checkpoint=NoCheckpoint(),
    )  # fmt: skip
    assert told == [
        ("git: epoch 1/2, 0 s left", 1, 4),
        ("git: epoch 1/2, 0 s left", 2, 4),
        ("git: epoch 2/2, loss 0.2500, 0 s left", 3, 4),
        ("git: epoch 2/2, loss 0.2500, 0 s left", 4, 4),
    ]


def test_the_line_of_progress_estimates_the_time_left() -> None:
    pace = Pace()
    assert [pace.left("ig", done, 100, now=float(done)) for done in (1, 2, 11)] == [None, None, 89.0]
    assert pace.left("ig", 1, 100, now=12.0) is None  # the next cell
    assert pace.left("dlg", 50, 100, now=30.0) is None
    assert running_line("ig", 11, 100, 89.0) == "      running ig 11/100, about 1 min 29 s left"
    assert running_line("git: epoch 1/2, 3 min left", 11, 100, 89.0) == "      running git: epoch 1/2, 3 min left (11/100)"


def test_memory_that_is_available_is_that_of_the_tightest_limit(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    assert available_memory(cpu, root=tmp_path) is None
    for name, text in {
        "proc/meminfo": "MemTotal: 100 kB\nMemAvailable:   50 kB\n",
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": "40960\n",
        "sys/fs/cgroup/job/memory.current": "30720\n",
        "sys/fs/cgroup/job/memory.stat": "anon 1\ninactive_file 1024\nactive_file 1024\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert available_memory(cpu, root=tmp_path) == 12 * 1024
    (tmp_path / "sys/fs/cgroup/job/memory.max").write_text("max\n")
    assert available_memory(cpu, root=tmp_path) == 50 * 1024
