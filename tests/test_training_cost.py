"""What a defense costs: the training, its pairs, the judge's limit, and two frauds."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path

import pytest
import torch
from opacus.accountants import RDPAccountant

import gitbench
from gitbench.attacker.fit_cache import FileCheckpoint
from gitbench.attacker.learning import NoCheckpoint
from gitbench.clients.data import Data, Split
from gitbench.clients.procedure import load_client
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from gitbench.judge.flags import own_flags
from gitbench.measure.evaluator import Evaluator
from gitbench.measure.training_cost import Course, first_updates, train_defended, training_of
from gitbench.measure.utility import measure_utility
from gitbench.run.bench import Bench, case_of
from gitbench.store.folder import Store
from gitbench.store.result import Training
from helpers import make_data
from results import trained_result


@pytest.fixture(scope="module")
def data() -> Data:
    """Two classes that a linear model tells apart: one is darker."""
    found = make_data(classes=2, public=400, private=32, size=8)

    def told_apart(split: Split) -> Split:
        return Split(0.5 * split.inputs + 0.5 * split.labels[:, None, None, None], split.labels)

    return dataclasses.replace(found, public=told_apart(found.public), private=told_apart(found.private))


def course_of(data: Data, *, rounds: int = 30, batch_size: int = 2, seed: int = 0) -> Course:
    return Course(data.public, load_client(None), batch_size, rounds, seed)


def trained(data: Data, course: Course, defense: gitbench.Defense | str = "none", checkpoint=None) -> dict[str, torch.Tensor]:
    model, loaded = gitbench.load_model("mlp(hidden=(16,))", data), gitbench.load_defense(defense)
    return train_defended(model, course, defense=loaded, progress=silent, checkpoint=checkpoint or NoCheckpoint())


def cost(data: Data, defense: gitbench.Defense | str, *, victims: int = 16, rounds: int = 30) -> Training:
    course, loaded = course_of(data, rounds=rounds), gitbench.load_defense(defense)
    model = gitbench.load_model("mlp(hidden=(16,))", data)
    first = first_updates(model, course, defense=loaded, victims=victims)
    return training_of(trained(data, course, defense), trained(data, course), course, defense=loaded, first=first)


def test_the_raw_gradient_trains_and_costs_nothing(data: Data) -> None:
    found = cost(data, "none")
    assert found.right == found.undefended > 1.2 * found.guessed
    assert (found.lost, found.gained, found.equal) == (0, 0, 1)
    assert found.cosine == pytest.approx(1)
    assert found.right / found.images > 0.9
    assert found.epsilon is None


def test_it_is_the_training_that_torch_does_on_all_images_of_a_round(data: Data) -> None:
    """The slow, obvious way: Adam on the mean loss of the same images."""
    course = course_of(data, rounds=5)
    model = gitbench.load_model("mlp(hidden=(16,))", data)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for round_ in range(5):
        rows = course.batches(round_).flatten()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(data.public.inputs[rows]), data.public.labels[rows]).backward()
        optimizer.step()
    test = course.split[1]
    right = model(data.public.inputs[test]).argmax(1) == data.public.labels[test]
    assert (trained(data, course)["right"].bool() == right).float().mean() > 0.99


def test_what_trains_is_not_what_is_tested_and_batch_sizes_see_the_same_images(data: Data) -> None:
    course = course_of(data)
    train, test = course.split
    assert len({*train.tolist(), *test.tolist()}) == len(train) + len(test) == len(data.public)
    assert set(course.batches(3).flatten().tolist()) <= set(train.tolist())
    assert torch.equal(course.batches(3).flatten(), course_of(data, batch_size=4).batches(3).flatten())
    assert course.clients * course.batch_size == 64


@pytest.mark.parametrize(("setting", "value", "kept"), [("_SAVED_EVERY", 10, 10), ("_SAVED_AFTER", 0.0, 17)])
def test_a_training_that_is_cut_off_goes_on(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, value: float, kept: int
) -> None:
    """It keeps how far it is every so many rounds, and where rounds take long every so many seconds."""
    monkeypatch.setattr(f"gitbench.measure.training_cost.{setting}", value)
    course, path = course_of(data), tmp_path / "checkpoint.safetensors"

    def stops(what: str, done: int, total: int) -> None:
        if done == 17:
            raise KeyboardInterrupt

    model, defense = gitbench.load_model("mlp(hidden=(16,))", data), gitbench.load_defense("gaussian_noise(std=0.01)")
    with pytest.raises(KeyboardInterrupt):
        train_defended(model, course, defense=defense, progress=stops, checkpoint=FileCheckpoint(path))
    assert int(FileCheckpoint(path).load()["round"]) == kept
    again = trained(data, course, "gaussian_noise(std=0.01)", FileCheckpoint(path))
    assert torch.equal(again["right"], trained(data, course, "gaussian_noise(std=0.01)")["right"])


def test_a_defense_keeps_what_it_keeps_from_round_to_round(data: Data) -> None:
    class Counts(gitbench.Defense):
        age = 2
        seen = 0

        def protect(self, update, *, generator):
            self.seen += 1
            return update.map(lambda name, tensor: tensor if self.seen % 2 else tensor * 0)

    found = trained(data, course_of(data), Counts())
    assert found["right"].float().mean() > 0.8


def test_epsilon_is_that_of_opacus(data: Data) -> None:
    found = cost(data, "dp_sgd(noise_multiplier=1.0)")
    accountant = RDPAccountant()
    for _ in range(found.rounds):
        accountant.step(noise_multiplier=1.0, sample_rate=64 / 320)
    assert found.epsilon == pytest.approx(accountant.get_epsilon(delta=found.delta))


def test_fewer_bytes_for_what_is_zero(data: Data) -> None:
    assert cost(data, "pruning(rate=0.9)").bytes_sent < 0.4 * cost(data, "none").bytes_sent


class TrainsNothing(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: 1e-6 * tensor + gitbench.randn_like(tensor, generator))


class BehavesWhenAttacked(gitbench.Defense):
    """Noise for as few victims as a benchmark has, and the raw gradient for the clients of a training."""

    def protect(self, update, *, generator):
        few = len(update) <= 16
        return update.map(lambda name, tensor: tensor + gitbench.randn_like(tensor, generator)) if few else update


@pytest.mark.parametrize(
    ("defense", "flag"), [(TrainsNothing(), "learns-nothing"), (BehavesWhenAttacked(), "trains-otherwise")], ids=["nothing", "otherwise"]
)
def test_two_frauds_are_caught(data: Data, defense: gitbench.Defense, flag: str) -> None:
    model = gitbench.load_model("mlp(hidden=(16,))", data)
    inputs, labels = gitbench.draw_victims(data.private, victims=8, batch_size=2, seed=0)
    sent = gitbench.client_update(model, inputs, labels, defense=defense, generator=make_generator(0))
    utility = measure_utility(model, inputs, labels, sent, random=True)
    training = cost(data, defense, victims=8)
    result = trained_result(defense="mine", gain=0.0, training=training).model_copy(update={"utility": utility})
    assert flag in own_flags(result, still_improving=False)
    honest = trained_result(defense="mine", gain=0.0, training=cost(data, "pruning(rate=0.1)")).model_copy(update={"utility": None})
    assert not {"learns-nothing", "trains-otherwise"} & own_flags(honest, still_improving=False)


def test_the_cost_of_a_stored_result_is_added_without_a_new_attack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitbench.measure.training_cost.ROUNDS", {"quick": 2})
    case = a_case()
    plain = Bench(store=Store(tmp_path), device="cpu").measure(case)
    assert plain.training is None
    monkeypatch.setattr(Evaluator, "run", lambda *_: pytest.fail("measured again"))
    costed = Bench(store=Store(tmp_path), device="cpu", cost=True).measure(case)
    assert costed.metrics == plain.metrics
    assert costed.training is not None and costed.training.rounds == 2
    assert Bench(store=Store(tmp_path), device="cpu").measure(case).training == costed.training
    assert math.isfinite(costed.training.seconds)


def a_case(**changes):
    given = {"attack": "ridge(limit=64)", "defense": "pruning(rate=0.5)", "model": "mlp(hidden=(8,))", "dataset": "photos"}
    return case_of(**{**given, "threat": "server", "profile": "quick", "victims": 2, "batch_size": 1, "seed": 0, **changes})


def test_an_attack_is_not_lost_to_a_training_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluator, "training", cut_off)
    with pytest.raises(KeyboardInterrupt):
        Bench(store=Store(tmp_path), device="cpu", cost=True).measure(a_case(defense="none"))
    assert Store(tmp_path).load(a_case(defense="none").case_id).metrics


def test_a_training_that_was_killed_after_its_last_checkpoint_goes_on(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One round is always left: what was sent last is measured too."""
    monkeypatch.setattr("gitbench.measure.training_cost._SAVED_EVERY", 10)
    course, path = course_of(data, rounds=20), tmp_path / "checkpoint.safetensors"
    first = trained(data, course, checkpoint=FileCheckpoint(path))  # its checkpoint stays, as after a kill
    again = trained(data, course, checkpoint=FileCheckpoint(path))
    assert torch.equal(first["right"], again["right"])
    assert first["bytes"] == again["bytes"]


class Slow(gitbench.Defense):
    def protect(self, update, *, generator):
        if len(update) > 16:  # the clients of a training
            time.sleep(0.2)
        return update.map(lambda name, tensor: tensor / 2)


def test_a_training_that_takes_too_long_is_given_up_once(tmp_path: Path) -> None:
    store, case = Store(tmp_path), a_case(defense=Slow())
    evaluator = Evaluator(store=store, device="cpu", timeout=1.0)
    start = time.monotonic()
    assert evaluator.training(case, Slow()) is None
    assert evaluator.training(case, Slow()) is None
    assert time.monotonic() - start < 10  # of forty seconds and more that each would take


def test_an_attribute_that_is_called_epsilon_is_the_defense_s_own_affair(data: Data) -> None:
    class Local(gitbench.Defense):
        epsilon = 8.0

        def protect(self, update, *, generator):
            return update.map(lambda name, tensor: tensor / 2)

    assert cost(data, Local()).epsilon is None


def test_in_a_composition_the_private_part_tells(data: Data) -> None:
    alone, composed = (
        cost(data, spec, rounds=2).epsilon for spec in ("dp_sgd(noise_multiplier=1.0)", "dp_sgd(noise_multiplier=1.0) | sign()")
    )
    assert alone == composed


def test_a_limit_of_cost_is_heard_by_evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitbench.measure.training_cost.ROUNDS", {"quick": 2})
    found = gitbench.evaluate(
        attack="ridge(limit=64)", defense="pruning(rate=0.5)", model="mlp(hidden=(8,))", profile="quick", victims=2, device="cpu",
        gate={"psnr_gain": 3.0, "accuracy_drop": 2.0}, results=tmp_path,
    )  # fmt: skip
    assert found.training is not None
    assert found.accuracy_drop_limit == 2.0
