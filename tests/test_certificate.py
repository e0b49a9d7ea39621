"""Certificates: what explains an update to numerical precision is right, and nothing else is certified."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import gitbench
from gitbench.attacker.attack import Attack, load_attack
from gitbench.attacker.observation import Observation
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.measure.certificate import certified
from gitbench.publish import leaderboard
from gitbench.store.folder import Store
from helpers import make_data
from results import CASE, result, rows, stored, table

TELL = load_attack("ridge")


@pytest.fixture(scope="module")
def small() -> Data:
    return make_data()


def observed(data: Data, model: str = "mlp", *, defense: str | gitbench.Defense | None = None, batch: int = 1, **granted: object):
    network = gitbench.load_model(model, data)
    inputs, labels = (part[: 3 * batch].unflatten(0, (3, batch)) for part in (data.private.inputs, data.private.labels))
    update = client_update(network, inputs, labels, defense=defense, public=data.public)
    told = {"update": update, "model": network, "input_shape": data.input_shape, "batch_size": batch, "defense": defense}
    return inputs, Observation(**{**told, **granted})


@pytest.mark.parametrize("attack", ["recursion", "ridge(adapt=False)+ig(iterations=1)"])
def test_only_what_is_recovered_exactly_is_certified(tiny_npz: Path, attack: str) -> None:
    found = gitbench.evaluate(attack=attack, model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", victims=4, device="cpu")
    assert found.certified is not None
    assert found.certified == tuple(value > 60 for value in found.metrics["psnr"].values)
    assert all(found.certified) == (attack == "recursion")


@pytest.mark.parametrize("defense", [None, "clipping(max_norm=0.01)", "parameter_drift(epochs=0, samples=8)"])
def test_the_truth_is_certified_and_no_other_image(small: Data, defense: str | None) -> None:
    inputs, seen = observed(small, defense=defense)
    assert certified(TELL, seen, inputs) == (True, True, True)
    nearest = torch.cdist(inputs.flatten(1), small.public.inputs.flatten(1)).argmin(1)
    noise = torch.randn(inputs.shape, generator=torch.Generator().manual_seed(0))
    blind = small.public.inputs.mean(0).expand_as(inputs)
    for wrong in (small.public.inputs[nearest][:, None], blind, (inputs + 10**-1.5 * noise).clamp(0, 1), inputs.roll(1, 0)):
        assert certified(TELL, seen, wrong) == (False, False, False)


def test_the_images_of_a_batch_are_certified_in_any_order(small: Data) -> None:
    inputs, seen = observed(small, "mlp(hidden=(200,))", batch=2, defense="clipping(max_norm=0.01)")
    first = certified(TELL, seen, inputs)
    assert first is not None
    assert any(first)
    assert certified(TELL, seen, inputs.flip(1)) == first


@pytest.mark.parametrize(
    "defense", ["gaussian_noise(std=0.01)", "pruning(rate=0.99)", "pruning(rate=1.0)", "parameter_drift(epochs=1, samples=8)"]
)
def test_under_noise_loss_or_drift_nothing_is_certified(tiny_npz: Path, defense: str) -> None:
    options = {"model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 3, "device": "cpu"}
    found = gitbench.evaluate(attack="ridge", defense=defense, **options)
    assert (found.error, found.certified) == (None, (False, False, False))


def test_a_random_defense_never_certifies_however_small_its_noise(small: Data) -> None:
    inputs, seen = observed(small, defense="gaussian_noise(std=1e-12)")
    assert certified(TELL, seen, inputs, exact=False) == (False, False, False)


class Signs(gitbench.Defense):
    """What is sent is explained by many images."""

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor.sign())


class Mixed(gitbench.Defense):
    """What is differentiated are not the private images."""

    def prepare(self, inputs, labels, *, generator):
        return 1 - inputs, labels


@pytest.mark.parametrize("defense", [Signs(), Mixed()])
def test_a_wrong_image_that_explains_is_not_certified(tiny_npz: Path, defense: gitbench.Defense) -> None:
    found = gitbench.evaluate(
        attack="recursion", defense=defense, model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", victims=3, device="cpu"
    )
    assert found.certified == (False, False, False)


def test_an_image_behind_relus_is_explained_and_not_determined() -> None:
    data = make_data(size=32)
    inputs, seen = observed(data, "lenet(activation='relu')")
    assert certified(TELL, seen, inputs) == (False, False, False)


def test_what_the_attacker_lacks_leaves_no_certificate(small: Data) -> None:
    inputs, seen = observed(small, parameters=False)
    assert certified(TELL, seen, inputs) is None
    inputs, seen = observed(small, "mlp(frozen='4')")
    assert certified(TELL, seen, inputs) is None


class Broken(gitbench.Defense):
    def protect(self, update, *, generator):
        return update

    def expected(self, update, *, observed):
        raise RuntimeError("my bad")


def test_nothing_that_raises_ends_the_measurement(tiny_npz: Path) -> None:
    found = gitbench.evaluate(
        attack="ridge(adapt=False)", defense=Broken(), model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", victims=3, device="cpu"
    )
    assert found.certified is None or found.status == "error"
    inputs, seen = observed(make_data(), defense=Broken())
    assert certified(TELL, seen, inputs) is None


def test_an_attacker_that_does_not_adapt_has_no_certificate_of_a_defended_update(small: Data) -> None:
    inputs, seen = observed(small, defense="clipping(max_norm=0.01)")

    def told(attack: Attack) -> object:
        return certified(attack, seen, inputs)

    assert told(load_attack("recursion(adapt=False)")) == (False, False, False)
    assert told(load_attack("recursion")) == (True, True, True)


def test_results_of_before_are_read_and_certificates_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    found = result()
    content = json.loads(found.to_json())
    del content["certified"]
    stored(store, json.dumps(content))
    assert store.load(CASE.case_id) == found
    assert found.certified is None
    sure = found.model_copy(update={"certified": (True, False, True, True)})
    store.save(sure)
    assert store.load(CASE.case_id) == sure
    with pytest.raises(ValueError, match="certified has 1 values for 4 victims"):
        type(found).model_validate({**found.model_dump(by_alias=True), "certified": (True,)})


def test_the_leaderboard_shows_the_share_beside_the_leak_rate() -> None:
    sure = result().model_copy(update={"certified": (True, False, True, True)})
    text = leaderboard.render(table({("none", "ig"): [sure, result(seed=1)], ("none", "ridge"): [result()]}))
    shown = {row[0]: row[1] for row in rows(text[text.index("## Victims past the threshold") :])}
    assert shown["`ig`"].endswith(", 75 % certified")
    assert "certified" not in shown["`ridge`"]
