"""The base of the searching attacks: the best of each victim, restarts, and what is left when time is up."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.tools.optimisation import AdamOptimisation, Best
from gitbench.clients.data import Data
from gitbench.core.progress import Progress, TimeUp, silent
from gitbench.core.random import make_generator

losses = st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=3, max_size=3)


class Bowl(AdamOptimisation):
    """One pixel per victim, whose loss is its squared distance from 0.5; each restart begins somewhere else."""

    def __init__(self, starts: list[float], *, iterations: int = 50, schedule: str = "cosine", progress: Progress = silent) -> None:
        best = Best(2, torch.device("cpu"))
        super().__init__("bowl", best, iterations=iterations, restarts=len(starts), schedule=schedule, progress=progress)
        self.starts = starts
        self.rates: list[float] = []

    def begin(self, restart: int) -> None:
        self.start(torch.full((2, 1, 1, 1, 1), self.starts[restart]), lr=0.1)

    def images(self) -> torch.Tensor:
        self.rates.append(self._adam.param_groups[0]["lr"])
        return self.points[0]

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return (images - 0.5).square().flatten(1).sum(1)


def until(count: int) -> Progress:
    """Time is up after so many steps."""
    told = []

    def progress(what: str, done: int, total: int) -> None:
        told.append(done)
        if len(told) >= count:
            raise TimeUp

    return progress


@given(offered=st.lists(losses, min_size=1, max_size=6))
def test_the_best_of_each_victim_is_kept(offered: list[list[float]]) -> None:
    best = Best(3, torch.device("cpu"))
    for index, each in enumerate(offered):
        best.offer(torch.tensor(each), torch.full((3, 2), float(index)), torch.full((3,), float(index)))
    for victim in range(3):
        column = [torch.tensor(each[victim]).item() for each in offered]
        finite = [loss for loss in column if loss < math.inf]
        wanted = column.index(min(finite)) if finite else 0
        assert best.found[0][victim].tolist() == [wanted, wanted]
        assert best.found[1][victim] == wanted
        assert best.losses[victim] == min([*finite, math.inf])


def test_of_several_restarts_the_best_is_kept_and_what_was_offered_is_left_alone() -> None:
    search = Bowl([5.0, 0.6, 9.0])
    search.run()
    assert (search.best.losses < 1e-3).all()
    assert torch.allclose(search.best.found[0], torch.tensor(0.5), atol=0.05)
    alone = Bowl([0.6])
    alone.run()
    assert torch.equal(search.best.found[0], alone.best.found[0])


@pytest.mark.parametrize("steps", [1, 7, 60])
def test_when_time_is_up_the_best_so_far_is_left(steps: int) -> None:
    search, told = Bowl([5.0, 0.6], progress=until(steps)), Bowl([5.0, 0.6])
    search.run()
    told.run()
    assert (search.best.losses >= told.best.losses).all()
    assert len(search.rates) == steps + (steps > 50)  # the end of a whole restart is judged too


def test_out_of_time_with_nothing_found_is_told() -> None:
    class Slow(Bowl):
        def images(self) -> torch.Tensor:
            raise TimeUp

    with pytest.raises(TimeUp):
        Slow([5.0]).run()


def test_schedules() -> None:
    cosine, step, ramp = (Bowl([5.0], iterations=80, schedule=schedule) for schedule in ("cosine", "step", "ramp"))
    for search in (cosine, step, ramp):
        search.run()
    assert max(ramp.rates[:80]) == pytest.approx(0.1)
    assert ramp.rates[:4] == pytest.approx([0.1 * (done + 1) / 81 / 0.05 for done in range(4)])
    assert ramp.rates[79] < 0.001
    assert cosine.rates[:80] == pytest.approx([0.05 * (1 + math.cos(math.pi * index / 80)) for index in range(80)])
    assert step.rates[:80] == pytest.approx([0.1 * 0.1 ** sum(index >= 80 * eighths // 8 for eighths in (3, 5, 7)) for index in range(80)])


class Transposed(AdamOptimisation):
    """Towards an image, by gradients whose entries lie in memory in another order than the points'."""

    def __init__(self, aim: torch.Tensor, *, in_order: bool) -> None:
        super().__init__("transposed", Best(2, torch.device("cpu")), iterations=30, schedule="cosine", progress=silent)
        self.aim, self.in_order = aim, in_order

    def begin(self, restart: int) -> None:
        self.start(torch.zeros(2, 1, 3, 4, 5), lr=0.1)

    def images(self) -> torch.Tensor:
        return self.points[0]

    def loss(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.aim).square().flatten(1).sum(1)

    def followed(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient if self.in_order else gradient.transpose(3, 4).contiguous().transpose(3, 4)


def test_the_order_of_a_gradients_entries_in_memory_changes_no_step() -> None:
    aim = torch.rand(2, 1, 3, 4, 5, generator=make_generator(0))
    found = []
    for in_order in (True, False):
        search = Transposed(aim, in_order=in_order)
        search.run()
        found.append(search.points[0].detach())
    assert torch.equal(found[0], found[1])
    assert (found[0] - aim).abs().mean() < 0.1


@pytest.mark.parametrize(
    "attack",
    [
        "ig(iterations=9, restarts=2)",
        "dlg(iterations=9)",
        "gias(latent_iterations=4, iterations=5, epochs=1, limit=40)",
        "gifd(latent_iterations=4, iterations=5, epochs=1, limit=40)",
        "gradinversion(iterations=9, seeds=2, group_every=2)",
    ],
)
@pytest.mark.parametrize("steps", [1, 6])
def test_an_attack_that_is_out_of_time_shows_what_it_has(attack: str, steps: int, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    update = gitbench.client_update(model, data.private.inputs[:2, None], data.private.labels[:2, None])
    observation = gitbench.Observation(update=update, model=model, input_shape=data.input_shape, public=data.public)
    loaded = load_attack(attack)
    seen = loaded.seen_of(observation)
    state = loaded._fitted(seen.without_update(), generator=make_generator(0), progress=silent, fits=None).state
    found = loaded.run(seen, state, generator=make_generator(0), progress=until(steps)).inputs
    assert found.shape == (2, 1, *data.input_shape)
    assert found.isfinite().all()
