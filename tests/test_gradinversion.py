"""What gradinversion promises: its priors, seeds that agree, and nothing read that is not granted."""

from __future__ import annotations

import pytest
import torch

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.gradinversion import GradInversion, _GroupSearch
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.activations import activations_of
from gitbench.attacker.tools.assignment import aligned
from gitbench.attacker.tools.batchnorm_prior import BatchNormPrior, running_statistics
from gitbench.attacker.tools.labels import restored_labels
from gitbench.attacker.tools.matching import Objective
from gitbench.attacker.tools.registration import consensus
from gitbench.clients.client import batchnorm_statistics
from gitbench.clients.data import Data
from gitbench.clients.model import without_values
from gitbench.core.errors import ModelError, NotGrantedError
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data, smooth

FAST = {"iterations": 6, "seeds": 2, "group_every": 2}


def private_of(data: Data, victims: int, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = data.private.inputs[: victims * batch].reshape(victims, batch, *data.input_shape)
    return inputs, data.private.labels[: victims * batch].reshape(victims, batch)


def observe(data: Data, *, victims: int = 2, batch: int = 2, model: str = "mlp", granted: bool = False) -> Observation:
    network = gitbench.load_model(model, data)
    inputs, labels = private_of(data, victims, batch)
    return Observation(
        update=gitbench.client_update(network, inputs, labels), model=network, input_shape=data.input_shape, batch_size=batch,
        public=data.public, labels=labels if granted else None, defense="none",
        batchnorm_statistics=batchnorm_statistics(network, inputs) if granted else None,
    )  # fmt: skip


def run(attack: gitbench.Attack, observation: Observation) -> torch.Tensor:
    return attack(observation, generator=make_generator(0)).inputs


@pytest.fixture(scope="module")
def trained() -> Data:
    return make_data(size=8, public=64)


MODEL = "resnet(width=4, trained_epochs=1)"


# ------------------------------------------------------------------ what is granted


def test_labels_and_private_statistics_are_never_read_where_they_are_not_granted(trained: Data) -> None:
    """The same bits with and without them in the observation: what is not asked for is not there to be read."""
    secret, open_ = (observe(trained, model=MODEL, granted=granted) for granted in (False, True))
    few = {"iterations": 2, "seeds": 2, "group_every": 1}
    for options in ({}, {"labels": "restored"}, {"labels": "drawn"}):
        attack = GradInversion(**few, **options)
        assert not {"labels", "batchnorm_statistics"} & (attack.requires | attack.uses)
        assert torch.equal(run(attack, secret), run(attack, open_))
    for options, name in (({"labels": "known"}, "labels"), ({"statistics": "private"}, "batchnorm_statistics")):
        with pytest.raises(NotGrantedError, match=name):
            run(GradInversion(**few, **options), secret)
        assert run(GradInversion(**few, **options), open_).shape == (2, 2, *trained.input_shape)


def test_as_a_refiner_it_reads_no_more(trained: Data) -> None:
    found = [run(load_attack("ridge+gradinversion(iterations=3)"), observe(trained, granted=granted)) for granted in (False, True)]
    assert torch.equal(*found)


def test_whose_statistics_are_matched_is_printed() -> None:
    from gitbench.attacker.attack import settings

    assert settings(load_attack("gradinversion"))["statistics"] == "'running'"
    assert settings(load_attack("gradinversion(statistics='private')"))["statistics"] == "'private'"
    skipped = gitbench.load_attack("gradinversion(statistics='private')").requires
    assert "batchnorm_statistics" in skipped


# ------------------------------------------------------------------ its parts


def test_the_prior_is_zero_at_the_truth_and_only_there(trained: Data) -> None:
    observation = observe(trained, model=MODEL, granted=True)
    truth, _ = private_of(trained, 2, 2)
    prior = BatchNormPrior.of(observation, "private")
    assert prior is not None
    rows = torch.arange(2)
    assert prior(truth, rows).max() < 1e-3
    assert prior(truth.flip(0), rows).min() > 1e-2
    assert BatchNormPrior.of(observation, "none") is None


def test_a_model_that_saw_no_data_has_no_running_statistics(trained: Data) -> None:
    fresh, seen = (gitbench.load_model(model, trained) for model in ("resnet(width=4)", MODEL))
    assert running_statistics(fresh) == {}
    assert len(running_statistics(seen)) == 10
    assert BatchNormPrior.of(observe(trained, model="resnet(width=4)"), "running") is None


def test_restored_labels_are_those_of_a_batch_of_distinct_ones(trained: Data) -> None:
    model = gitbench.load_model("lenet(init='default')", trained)
    labels = torch.tensor([[0, 2], [1, 3], [2, 3]])
    inputs = trained.private.inputs[:6].reshape(3, 2, *trained.input_shape)
    update = gitbench.client_update(model, inputs, labels)
    seen = Observation(update=update, model=model, input_shape=trained.input_shape, batch_size=2)
    assert torch.equal(restored_labels(seen), labels)
    with pytest.raises(ModelError, match="at least 5 classes, got 4 classes"):
        restored_labels(Observation(update=update, model=model, input_shape=trained.input_shape, batch_size=5))


def test_candidates_are_aligned_within_their_labels() -> None:
    reference = smooth(4, (3, 8, 8))
    labels = torch.tensor([0, 0, 1, 1])
    assert aligned(reference[[1, 0, 3, 2]], reference, labels).tolist() == [1, 0, 3, 2]
    # An image of another label is no candidate, however near.
    assert set(aligned(reference[[2, 3, 0, 1]], reference, labels)[:2].tolist()) == {0, 1}


def test_shifted_candidates_are_registered_before_they_are_averaged() -> None:
    image = smooth(1, (3, 24, 24))[0]
    candidates = torch.stack([image.roll(shift, dims=(1, 2)) for shift in ((0, 0), (2, 0), (-2, 0), (0, 2), (0, -2))])
    inner = (slice(None), slice(4, -4), slice(4, -4))
    plain, registered = (consensus(candidates, registration=how)[inner] for how in ("none", "phase"))
    assert (registered - image[inner]).square().mean() < 0.5 * (plain - image[inner]).square().mean()
    flat = torch.full((3, 3, 8, 8), 0.5)
    assert torch.equal(consensus(flat, registration="phase"), flat[0])


def test_activations_are_counted_without_values() -> None:
    data = make_data(size=32, public=8, private=4)
    model = gitbench.load_model("lenet", data)
    counted = activations_of(without_values(model), (3, 32, 32))
    assert counted == 3 * 32 * 32 + 2 * 12 * (16 * 16 + 8 * 8 + 8 * 8) + 12 * 64 + data.classes
    assert activations_of(torch.nn.Linear(3, 3).to("meta"), (3, 4, 4)) == 64 * 48


# ------------------------------------------------------------------ the search


def test_a_victim_does_not_depend_on_the_others_nor_on_how_many_are_taken_at_once(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    attack = GradInversion(**FAST)
    few, many = (run(attack, observe(data, victims=victims)) for victims in (1, 4))
    assert torch.allclose(few[0], many[0], atol=1e-5)
    monkeypatch.setattr("gitbench.attacker.attacks.gradinversion._ROOM", 1)
    assert torch.allclose(run(attack, observe(data, victims=4)), many, atol=1e-5)


def test_the_seed_with_the_lowest_distance_is_returned(data: Data) -> None:
    observation = observe(data, victims=4, batch=1)
    objective, labels = Objective(observation, distance="layerwise"), private_of(data, 4, 1)[1]
    one, four = (run(GradInversion(iterations=20, seeds=seeds, group=0.0), observation) for seeds in (1, 4))
    assert (objective(four, labels) <= objective(one, labels) + 0.02).all()
    assert objective(four, labels).mean() <= objective(one, labels).mean()


def test_seeds_are_drawn_to_each_other(data: Data) -> None:
    observation = observe(data, batch=1)  # in a batch, seeds may keep images of one label in orders of their own
    labels, spreads = private_of(data, 2, 1)[1], []
    for group in (0.0, 10.0):
        options = GradInversion.Options(iterations=20, seeds=3, group=group, group_start=0.0, group_every=5)
        search = _GroupSearch(observation, options, labels, None, 0, silent)
        search.run()
        spreads.append(float(search.points[0].detach().std(1).mean()))
    assert spreads[1] < 0.7 * spreads[0]


@pytest.mark.parametrize("distance", ["l2", "cosine"])
def test_other_distances(distance: str, data: Data) -> None:
    found = run(GradInversion(**FAST, distance=distance), observe(data))
    assert found.isfinite().all()


def test_memory_is_known_before_it_starts(data: Data) -> None:
    small, large = (GradInversion().memory(observe(data, victims=victims)) for victims in (1, 8))
    assert 0 < small < large
