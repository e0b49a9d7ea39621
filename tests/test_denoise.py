"""What denoise promises: a denoiser of public images, believed as far as it helped public images that played victims."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from generated import run

import gitbench
from gitbench.attacker.attack import Attack, Fit, Fitted, Hybrid, Refiner, load_attack
from gitbench.attacker.attacks.denoise import Denoise
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.denoiser import Denoiser, denoised, trained
from gitbench.clients.client import batchnorm_statistics
from gitbench.clients.data import Data, Split
from gitbench.clients.modalities.image import ImageData
from gitbench.core.errors import AttackError, GitbenchError, NotGrantedError
from gitbench.core.progress import TimeUp, silent
from gitbench.core.random import make_generator
from helpers import make_data

FAST: Mapping[str, int] = {"width": 4, "epochs": 2, "iterations": 4, "played": 4}
SPEC = "denoise(width=4, epochs=2, iterations=4, played=4)"


class FirstLayer(Attack):
    """The input of an MLP, exactly: a row of the first layer's gradient over its bias's."""

    name = "test_denoise:FirstLayer"
    requires = frozenset({"architecture"})

    def run(self, observation, state, *, generator, progress):
        weight, bias = list(observation.update.tensors.values())[:2]
        unit = bias.abs().argmax(1)
        rows = torch.arange(len(unit))
        found = weight[rows, unit] / bias[rows, unit][:, None]
        return found.reshape(-1, 1, *observation.input_shape).clamp(0, 1)


class Noted(Refiner):
    """Learns a number, plays two public batches and keeps what it was told."""

    name = "test_denoise:Noted"
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"parameters", "defense"})
    fit_uses = frozenset({"public"})

    def fit(self, observation, *, generator, progress, checkpoint):
        return {"one": torch.ones(1)}

    def refine_learned(self, observation, start, state, *, play, generator, progress):
        rows = observation.kept[:2, None]
        self.told = (start, state, play(rows, generator=generator), rows)
        return torch.zeros(observation.victims, 1, *observation.input_shape) if start is None else start


class Counted:
    """Keeps what is learned by the attack's name, and counts."""

    def __init__(self) -> None:
        self.kept: dict[str, Fitted] = {}

    def get(self, attack: Attack, observation: Observation, fit: Fit) -> Fitted:
        assert not isinstance(attack, Hybrid)
        if repr(attack) not in self.kept:
            self.kept[repr(attack)] = Fitted(fit(make_generator(0, repr(attack)), NoCheckpoint()), 1.0)
        return self.kept[repr(attack)]


def observe(data: Data, *, victims: int = 3, batch: int = 1, defense: str = "none", model: str = "mlp", **granted: object) -> Observation:
    network = gitbench.load_model(model, data)
    inputs, labels = truth_of(data, victims, batch)
    update = gitbench.client_update(network, inputs, labels, defense=defense, generator=make_generator(3))
    known = {"public": data.public, "defense": defense} | granted
    return Observation(update=update, model=network, input_shape=data.input_shape, batch_size=batch, **known)


def truth_of(data: Data, victims: int, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    count = victims * batch
    inputs = data.private.inputs[:count].reshape(victims, batch, *data.input_shape)
    return inputs, data.private.labels[:count].reshape(victims, batch)


def error(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float((found - truth).square().mean())


# ------------------------------------------------------------------ the denoiser


def test_the_denoiser_lowers_the_error_of_images_that_it_has_not_seen() -> None:
    data = make_data(public=160)
    attack = Denoise(width=8, epochs=12, batch_size=8)
    seen = observe(data).restricted(frozenset({"public"})).without_update()
    state = attack.fit(seen, generator=make_generator(0), progress=silent, checkpoint=NoCheckpoint())
    network, images = trained(state, device=torch.device("cpu")), data.private.inputs[:, None]
    for level, share in ((0.1, 0.9), (0.2, 0.7), (0.4, 0.5)):
        noisy = images + level * torch.randn(images.shape, generator=make_generator(1))
        assert error(denoised(network, noisy, level), images) < share * error(noisy, images)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 33, 20), (2, 5, 3)])
def test_images_of_any_sides_and_channels(shape: tuple[int, int, int]) -> None:
    images = torch.rand(2, 1, *shape, generator=make_generator(0))
    assert denoised(Denoiser(shape[0], width=2), images, 0.1).shape == images.shape


def test_the_same_seed_trains_the_same_denoiser_which_depends_on_the_public_images_alone(data: Data) -> None:
    found = []
    for defense, model in (("none", "mlp"), ("clipping(max_norm=1.0)", "lenet"), ("none", "mlp")):
        state = Denoise(**FAST)._fitted(
            observe(data, defense=defense, model=model).without_update(),
            generator=make_generator(len(found) // 2),
            progress=silent,
            fits=None,
        )
        found.append(state.state)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    assert any(not torch.equal(found[0][name], found[2][name]) for name in found[0])


def test_too_few_public_images_are_refused(data: Data) -> None:
    few = Data(Split(data.public.inputs[:1], data.public.labels[:1]), data.private, data.classes, data.name)
    with pytest.raises(AttackError, match="needs at least 2 public images to be trained on, found 1"):
        run(load_attack(SPEC), observe(few))


# ------------------------------------------------------------------ how much of it is believed


def test_an_exact_image_stands(data: Data) -> None:
    observation = observe(data)
    before = run(FirstLayer(), observation)
    assert error(before, truth_of(data, 3)[0]) < 1e-8
    assert torch.equal(run(Hybrid(prior=FirstLayer(), refiner=Denoise(**FAST)), observation), before)


@pytest.mark.parametrize(
    "setting",
    ["mlp/gaussian_noise(std=0.01)", "lenet/gaussian_noise(std=0.01)", "lenet/dp_sgd(noise_multiplier=0.1)", "lenet/pruning(rate=0.9)"],
)
def test_it_does_not_lose(setting: str, data: Data) -> None:
    model, defense = setting.split("/")
    observation, (truth, _) = observe(data, victims=8, defense=defense, model=model), truth_of(data, 8)
    before, after = (run(load_attack(spec), observation) for spec in ("ridge", f"ridge+{SPEC}"))
    assert error(after, truth) < 1.05 * error(before, truth)


def test_it_gains_where_there_is_something_left_to_match(data: Data) -> None:
    observation, (truth, _) = observe(data, victims=4, model="lenet"), truth_of(data, 4)
    before, after = (run(load_attack(spec), observation) for spec in ("ridge", "ridge+denoise(width=4, epochs=4, iterations=20)"))
    assert error(after, truth) < error(before, truth) / 1.5


def test_without_parameters_the_image_is_denoised(data: Data) -> None:
    observation, (truth, _) = observe(data, victims=8, defense="gaussian_noise(std=0.3)", parameters=False), truth_of(data, 8)
    before, after = (run(load_attack(spec), observation) for spec in ("ridge", f"ridge+{SPEC[:-1]}, sure=0)"))
    assert not torch.equal(before, after)
    assert error(after, truth) < 1.05 * error(before, truth)


def test_alone_and_without_parameters_there_is_nothing_to_do(data: Data) -> None:
    with pytest.raises(NotGrantedError, match=r"denoise\(.*\) needs parameters.*ridge\+denoise"):
        run(load_attack(SPEC), observe(data, parameters=False))


def test_where_nobody_can_play_the_last_level_is_believed(data: Data) -> None:
    observation = observe(data)
    unplayed = run(load_attack("ridge+denoise(width=4, epochs=2, iterations=4, played=0)"), observation)
    assert not torch.equal(unplayed, run(load_attack("ridge"), observation))
    blind = observe(data, parameters=False)
    assert torch.equal(run(load_attack("ridge+denoise(width=4, epochs=2, played=0)"), blind), run(load_attack("ridge"), blind).clamp(0, 1))


def test_batches(data: Data) -> None:
    observation, (truth, _) = observe(data, victims=2, batch=3), truth_of(data, 2, 3)
    found = run(load_attack(f"ridge+{SPEC}"), observation)
    assert found.shape == truth.shape
    assert torch.equal(found, run(load_attack(f"ridge+{SPEC}"), observation))


def test_when_time_is_up_the_image_before_stands(data: Data) -> None:
    def progress(what: str, done: int, total: int) -> None:
        if what == "denoise":
            raise TimeUp

    observation = observe(data, defense="gaussian_noise(std=0.1)")
    found = load_attack(f"ridge+{SPEC}")(observation, generator=make_generator(0), progress=progress).inputs
    assert torch.equal(found, run(load_attack("ridge"), observation).clamp(0, 1))
    with pytest.raises(TimeUp):
        load_attack(SPEC)(observation, generator=make_generator(0), progress=progress)


# ------------------------------------------------------------------ what it reads


def test_it_reads_neither_labels_nor_statistics(data: Data) -> None:
    """The same bits with and without them in the observation: what is not asked for is not there to be read."""
    inputs, labels = truth_of(data, 2)
    statistics = batchnorm_statistics(gitbench.load_model("mlp", data), inputs)
    closed, open_ = observe(data, victims=2), observe(data, victims=2, labels=labels, batchnorm_statistics=statistics)
    assert torch.equal(run(load_attack(f"ridge+{SPEC}"), closed), run(load_attack(f"ridge+{SPEC}"), open_))


def test_other_kinds_of_data_are_refused(data: Data) -> None:
    class Other(ImageData):
        name = "text"

    with pytest.raises(AttackError, match="is one on image data, and this is text data"):
        run(load_attack(SPEC), observe(data, modality=Other()))


def test_options_are_checked() -> None:
    for options in ("levels=()", "levels=(0.1, 0.2)", "levels=(0.6,)", "levels=0.1", "levels='ab'", "granted=0", "played=-1", "width=0"):
        with pytest.raises(GitbenchError, match="expected"):
            load_attack(f"denoise({options})")


# ------------------------------------------------------------------ refiners that learn


def test_one_denoiser_serves_all_hybrids_and_each_part_keeps_its_own_state(data: Data) -> None:
    fits, seen = Counted(), []
    for spec in (f"ridge+{SPEC}", f"ridge(limit=40)+{SPEC}", SPEC):
        attack = load_attack(spec)
        known = attack.seen_of(observe(data)).without_update()
        seen.append(attack._fitted(known, generator=make_generator(0), progress=silent, fits=fits))
    assert len(fits.kept) == 3
    assert seen[0].seconds == 2
    assert set(seen[0].state) == {f"refiner.{name}" for name in seen[2].state} | {f"prior.{name}" for name in fits.kept["ridge"].state}


def test_a_refiner_that_learns_is_told_its_state_and_plays_the_attack_before_it(data: Data) -> None:
    refiner = Noted()
    labels = truth_of(data, 3)[1]
    observation = observe(data, defense="pruning(rate=0.9)", labels=labels)
    run(Hybrid(prior=load_attack("ig(iterations=2, labels='known')"), refiner=refiner), observation)
    start, state, played, rows = refiner.told
    assert start.shape == (3, 1, *data.input_shape)
    assert set(state) == {"one"}
    assert torch.equal(played.truth, data.public.inputs[rows])
    assert played.start.shape == played.truth.shape
    assert "labels" not in played.observation.granted  # the attack before was told them, the refiner was not
    assert float((played.observation.update.flatten() == 0).float().mean()) > 0.8
    run(refiner, observation)
    start, state, played, _ = refiner.told
    assert start is None
    assert played.start is None
    assert set(state) == {"one"}


def test_who_does_not_know_the_defense_plays_none(data: Data) -> None:
    refiner = Noted()
    refiner.adapt = False
    run(Hybrid(prior=load_attack("ridge"), refiner=refiner), observe(data, defense="pruning(rate=0.9)"))
    assert float((refiner.told[2].observation.update.flatten() == 0).float().mean()) < 0.5


def test_where_it_does_not_surely_help_the_image_before_stands(data: Data) -> None:
    observation = observe(data, defense="gaussian_noise(std=0.1)")
    before = run(load_attack("ridge"), observation)
    assert not torch.equal(run(load_attack(f"ridge+{SPEC}"), observation), before)
    assert torch.equal(run(load_attack(f"ridge+{SPEC[:-1]}, sure=1000)"), observation), before)
