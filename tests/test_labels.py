"""Labels of batches: counts against an oracle that tries them all, and what each kind of knowledge gives."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gitbench
from gitbench import Observation
from gitbench.attacker.tools import labels as read_labels
from gitbench.attacker.tools.label_counts import most_likely_counts, most_likely_rescaled_counts
from gitbench.attacker.tools.labels import class_signal, greedy_counts, infer_labels
from gitbench.clients.data import Data
from gitbench.core.random import make_generator
from gitbench.measure.evaluator import Evaluator
from gitbench.run.bench import case_of
from helpers import make_data


@pytest.fixture(scope="module")
def ten() -> Data:
    return make_data(classes=10, public=400, private=200)


def observe(
    data: Data,
    model: str,
    labels: torch.Tensor,
    *,
    public: bool = True,
    parameters: bool = True,
    defense: str = "none",
    granted: bool = True,
):
    network = gitbench.load_model(model, data)
    inputs = data.private.inputs[: labels.numel()].reshape(*labels.shape, *data.input_shape)
    update = gitbench.client_update(network, inputs, labels, defense=defense, generator=make_generator(0), public=data.public)
    return gitbench.Observation(
        update=update, model=network, input_shape=data.input_shape, batch_size=labels.shape[1], parameters=parameters,
        public=data.public if public else None, defense=defense if granted else None,
    )  # fmt: skip


def labels_of(*, victims: int, size: int, classes: int = 10, distinct: bool = False, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if distinct:
        return torch.stack([torch.randperm(classes, generator=generator)[:size] for _ in range(victims)])
    return torch.randint(classes, (victims, size), generator=generator)


# The counts


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 4), size=st.integers(1, 6))
def test_the_search_finds_what_trying_all_counts_finds(seed: int, classes: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(1, classes, 5, generator=generator, dtype=torch.float64)
    mixing = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    noise = 0.01 * (mixing @ mixing.T + torch.eye(5))[None]
    true = torch.randint(classes, (3, size), generator=generator)
    exact = torch.nn.functional.one_hot(true, classes).sum(1).double() @ means[0]
    observed = exact + torch.linalg.cholesky(noise[0]) @ torch.randn(5, generator=generator, dtype=torch.float64)
    found, error = most_likely_counts(means, noise, observed, batch_size=size)
    assert (found.sum(1) == size).all()
    assert (found >= 0).all()
    inverse = torch.linalg.inv(noise[0])
    for row in range(3):

        def price(counts: torch.Tensor, row: int = row) -> float:
            rest = observed[row] - counts.double() @ means[0]
            return float(rest @ inverse @ rest) + 2 * sum(math.lgamma(count + 1) for count in counts.tolist())

        every = [torch.tensor(counts) for counts in itertools.product(range(size + 1), repeat=classes) if sum(counts) == size]
        assert price(found[row]) <= min(price(counts) for counts in every) + 1e-3
        rest = observed[row] - found[row].double() @ means[0]
        assert float(error[row]) == pytest.approx(float(rest @ inverse @ rest) / 5, rel=1e-3)


def test_every_victim_may_have_means_of_its_own() -> None:
    means = torch.eye(3)[None] * torch.tensor([1.0, 2.0])[:, None, None]
    counts = torch.tensor([[2.0, 0, 1], [0, 3, 0]])
    observed = torch.einsum("vk,vkd->vd", counts, means)
    found, _ = most_likely_counts(means, 1e-4 * torch.eye(3).expand(2, 3, 3), observed, batch_size=3)
    assert found.tolist() == [[2, 0, 1], [0, 3, 0]]


def test_nothing_to_go_by_is_no_error() -> None:
    found, _ = most_likely_counts(torch.zeros(1, 3, 2), torch.zeros(1, 2, 2), torch.zeros(2, 2), batch_size=4)
    assert (found.sum(1) == 4).all()


# Labels


@pytest.mark.parametrize("size", [2, 5, 10])
@pytest.mark.parametrize("model", ["mlp", "lenet", "resnet(width=4)"])
@pytest.mark.parametrize(("public", "parameters"), [(True, True), (False, True), (True, False)])
def test_distinct_labels_at_initialisation_are_all_found(ten: Data, model: str, size: int, public: bool, parameters: bool) -> None:
    labels = labels_of(victims=16, size=size, distinct=True)
    found = infer_labels(observe(ten, model, labels, public=public, parameters=parameters))
    assert torch.equal(found, labels.sort(dim=1).values)


@pytest.mark.parametrize(("public", "parameters"), [(True, True), (False, True), (True, False)])
def test_repeats_that_the_greedy_way_misses_are_found(ten: Data, public: bool, parameters: bool) -> None:
    labels = labels_of(victims=6, size=32)
    observation = observe(ten, "mlp", labels, public=public, parameters=parameters)
    true = torch.nn.functional.one_hot(labels, 10).sum(1)
    found = torch.nn.functional.one_hot(infer_labels(observation), 10).sum(1)
    right, before = (int(torch.minimum(counts, true).sum()) for counts in (found, greedy_counts(observation)))
    assert right == labels.numel() if public else right >= 0.97 * labels.numel()
    assert before < 0.9 * labels.numel()


def test_without_a_bias_public_images_tell(ten: Data) -> None:
    labels = labels_of(victims=6, size=16)
    for parameters in (True, False):
        found = infer_labels(observe(ten, "mlp(bias=False)", labels, parameters=parameters))
        assert torch.equal(found, labels.sort(dim=1).values)


def test_with_neither_parameters_nor_public_images_it_is_greedy(ten: Data) -> None:
    observation = observe(ten, "mlp", labels_of(victims=4, size=8), public=False, parameters=False)
    assert torch.equal(torch.nn.functional.one_hot(infer_labels(observation), 10).sum(1), greedy_counts(observation))


def test_one_example_is_idlg(ten: Data) -> None:
    observation = observe(ten, "lenet", labels_of(victims=8, size=1))
    assert torch.equal(infer_labels(observation), class_signal(observation).argmin(dim=1, keepdim=True))


@pytest.mark.parametrize("defense", ["gaussian_noise(std=0.003)", "pruning(rate=0.9)", "clipping(max_norm=0.5)"])
def test_a_known_defense_is_rehearsed(ten: Data, defense: str) -> None:
    labels = labels_of(victims=8, size=8)
    true = torch.nn.functional.one_hot(labels, 10).sum(1)

    def right(observation: gitbench.Observation) -> int:
        found = torch.nn.functional.one_hot(infer_labels(observation), 10).sum(1)
        return int(torch.minimum(found, true).sum())

    known = observe(ten, "mlp", labels, defense=defense)
    assert right(known) >= right(known.undefended())
    assert right(known) >= 0.95 * labels.numel()


@pytest.mark.parametrize("model", ["mlp(hidden=(40,))", "lenet"])
def test_a_clipped_update_is_read_at_its_own_scale(ten: Data, model: str) -> None:
    labels = labels_of(victims=20, size=4)
    plain, clipped = (infer_labels(observe(ten, model, labels, defense=defense)) for defense in ("none", "clipping(max_norm=0.001)"))
    truth = labels.sort(dim=1).values
    assert (clipped == truth).all(1).float().mean() >= (plain == truth).all(1).float().mean() - 0.1


@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100))
def test_counts_at_an_unknown_scale_do_not_depend_on_it(seed: int, factor: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    means = torch.randn(1, 5, 12, generator=generator, dtype=torch.float64)
    truth = torch.bincount(torch.randint(5, (3,), generator=generator), minlength=5)
    observed = truth.double() @ means[0] + 1e-3 * torch.randn(12, generator=generator, dtype=torch.float64)
    noise = 1e-2 * torch.eye(12, dtype=torch.float64)[None]
    counts, _ = most_likely_rescaled_counts(means, noise, factor * observed[None], batch_size=3, length=float(observed.norm()))
    assert counts[0].tolist() == truth.tolist()


def test_the_oblivious_attacker_does_not_read_the_definition(ten: Data) -> None:
    labels = labels_of(victims=4, size=8)
    known, unknown = (observe(ten, "mlp", labels, defense="clipping(max_norm=0.1)", granted=granted) for granted in (True, False))
    assert torch.equal(infer_labels(known.undefended()), infer_labels(unknown))
    # What is no raw gradient is not read as one.
    assert torch.equal(torch.nn.functional.one_hot(infer_labels(unknown), 10).sum(1), greedy_counts(unknown))


def test_the_same_observation_gives_the_same_labels_and_leaves_the_random_state_alone(ten: Data) -> None:
    observation = observe(ten, "lenet", labels_of(victims=4, size=8), defense="gaussian_noise(std=0.01)")
    state = torch.get_rng_state()
    assert torch.equal(infer_labels(observation), infer_labels(observation))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("model", ["resnet(width=4, mode='train')", "vit(width=16, heads=2, blocks=1)"])
def test_other_models_are_read_too(ten: Data, model: str) -> None:
    labels = labels_of(victims=4, size=4)
    found = infer_labels(observe(ten, model, labels))
    assert torch.equal(found, labels.sort(dim=1).values)


def test_a_batch_that_is_larger_than_the_public_split(ten: Data) -> None:
    labels = labels_of(victims=2, size=12)
    few = Data(gitbench.Split(ten.public.inputs[:8], ten.public.labels[:8]), ten.private, classes=10, name="few")
    assert infer_labels(observe(few, "mlp", labels, parameters=False)).shape == (2, 12)
    assert infer_labels(observe(few, "mlp", labels)).shape == (2, 12)


def test_what_a_case_learned_of_public_batches_serves_the_next_of_its_setting(tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[int] = []
    learn = read_labels._of_batches

    def counted(observation: Observation, linear: nn.Linear, wanted: int) -> read_labels._OfBatches:
        learned.append(len(observation.public))
        return learn(observation, linear, 64)

    monkeypatch.setattr(read_labels, "_of_batches", counted)
    evaluator = Evaluator(device="cpu")

    def measured(attack: str, defense: str = "gaussian_noise(std=0.01)", threat: str = "server") -> tuple[float | None, ...]:
        options = {"model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 2, "batch_size": 2, "seed": 0, "profile": "quick"}
        result = evaluator.run(case_of(attack=attack, defense=defense, threat=threat, **options))
        assert result.status == "done", result
        return result.metrics["psnr"].values

    alone = measured("ig(iterations=1)")
    assert len(learned) == 1
    assert measured("ig(iterations=2)") != alone
    assert measured("ig(iterations=1)") == alone
    assert len(learned) == 1
    measured("ig(iterations=1)", defense="gaussian_noise(std=0.02)")
    assert len(learned) == 2
