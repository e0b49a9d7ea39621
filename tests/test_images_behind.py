"""Where a defense transforms images first, auto tries what it may have drawn, and searches the image behind."""

from __future__ import annotations

import pytest
import torch

from gitbench import Data, Defense, Observation, Split, client_update, load_attack, load_defense, load_model
from gitbench.attacker.attacks.auto.averages import mixed_labels, unmixed
from gitbench.attacker.attacks.auto.mirrored import middle_of, unmasked
from gitbench.attacker.attacks.auto.preparation import Behind, untransformed
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.tools.priors import natural, of_spectrum
from gitbench.clients.update import Batch, Update
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data

SIZE = 16


class Shifts(Defense):
    """Half an image to the left or to the right; what is left empty is black."""

    def prepare(self, inputs, labels, *, generator):
        left = (torch.randint(2, labels.shape, generator=generator) > 0).reshape(*labels.shape, 1, 1, 1)
        half = inputs.shape[-1] // 2
        empty = torch.zeros_like(inputs[..., :half])
        return torch.where(left, torch.cat([inputs[..., half:], empty], -1), torch.cat([empty, inputs[..., :half]], -1)), labels


class Rounds(Defense):
    """Pixels without a slope."""

    def prepare(self, inputs, labels, *, generator):
        return inputs.detach().round(), labels


@pytest.fixture(scope="module")
def tiny() -> Data:
    return make_data(size=SIZE, public=200)


def observed(tiny: Data, defense: Defense | str | None, **options: object) -> Observation:
    model = load_model("mlp(hidden=(8,))", tiny)
    update = Update({name: torch.zeros(6, *parameter.shape) for name, parameter in model.named_parameters()})
    return Observation(update=update, model=model, input_shape=tiny.input_shape, public=tiny.public, defense=defense, **options)


def test_the_image_behind_a_shift_is_found(tiny: Data) -> None:
    truth, defense = tiny.private.inputs[:6, None], Shifts()
    sent, _ = defense.prepare(truth, torch.zeros(6, 1, dtype=torch.long), generator=make_generator(3))
    found = untransformed(sent, observed(tiny, defense), of_spectrum(tiny.public.inputs), iterations=40, progress=silent)
    assert found.shape == truth.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    halves = (truth[..., : SIZE // 2], found[..., : SIZE // 2]), (truth[..., SIZE // 2 :], found[..., SIZE // 2 :])
    errors = torch.stack([(one - other).square().flatten(1).mean(1) for one, other in halves]).sort(0).values
    assert errors[0].max() < 1e-3  # the half that was sent is where it was
    assert errors[1].mean() < (truth - tiny.public.inputs.mean(0)).square().mean() / 2  # the other goes on from there


def noisy(count: int, seed: int) -> torch.Tensor:
    """In their prior's coordinates these do not resemble each other, as photographs do not."""
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def mixes() -> Data:
    labels = torch.randint(4, (200,), generator=torch.Generator().manual_seed(0))
    return Data(Split(noisy(200, 1), labels), Split(noisy(6, 2), labels[:6]), classes=4, name="noise")


def test_an_average_with_a_public_image_is_taken_apart(mixes: Data) -> None:
    observation = observed(mixes, "mixup()")
    fitted = observation.without_update().public.inputs  # the others play victims
    for weights in ([0.3, 0.7], [0.2, 0.8], [0.5, 0.2, 0.3]):
        others = fitted[torch.arange(6 * (len(weights) - 1))].unflatten(0, (6, -1))
        averages = weights[0] * mixes.private.inputs[:6] + torch.einsum("k,vkchw->vchw", torch.tensor(weights[1:]), others)
        found = unmixed(averages[:, None], observation, of_spectrum(fitted))
        error = (found[:, 0] - mixes.private.inputs[:6]).square().mean((1, 2, 3))
        # Least squares counts what the private image has in common with the others to their weights.
        assert error.median() < 0.01, weights
    alone = unmixed(mixes.private.inputs[:6, None], observation, of_spectrum(fitted))
    assert torch.equal(alone[:, 0], mixes.private.inputs[:6])


def test_the_mixed_label_is_read_off_the_update(mixes: Data) -> None:
    class Half(Defense):
        def prepare(self, inputs, labels, *, generator):
            return inputs, torch.full((*labels.shape, 4), 0.25) + 0.5 * torch.nn.functional.one_hot(labels, 4) - 0.125

    model = load_model("mlp(hidden=(8,))", mixes)
    truth, labels = mixes.private.inputs[:3, None], mixes.private.labels[:3, None]
    update = client_update(model, truth, labels, defense=Half(), generator=make_generator(0))
    observation = Observation(update=update, model=model, input_shape=mixes.input_shape, public=mixes.public, defense=Half())
    sent = Half().prepare(truth, labels, generator=make_generator(0))[1]
    found = mixed_labels(observation)
    assert found is not None
    torch.testing.assert_close(found, sent / sent.sum(-1, keepdim=True), atol=1e-4, rtol=0)


def test_the_recursion_takes_mixed_labels(mixes: Data) -> None:
    model = load_model("mlp(hidden=(8,))", mixes)
    mixture = 0.6 * mixes.private.inputs[:3, None] + 0.4 * mixes.public.inputs[:3, None]
    labels = torch.nn.functional.one_hot(torch.tensor([[0], [1], [2]]), 4) * 0.6 + 0.1
    update = client_update(model, mixture, labels, defense=load_defense("none"), generator=make_generator(0))
    observation = Observation(update=update, model=model, input_shape=mixes.input_shape, public=mixes.public, labels=labels)
    attack = load_attack("recursion(limit=64, iterations=5)")
    state = attack.fit(observation.without_update(), generator=make_generator(1), progress=silent, checkpoint=NoCheckpoint())
    found = attack.run(observation, state, generator=make_generator(1), progress=silent)
    torch.testing.assert_close(found, mixture, atol=1e-3, rtol=0)


def test_what_has_no_slope_is_no_error(tiny: Data) -> None:
    sent = tiny.private.inputs[:6, None].round()
    found = untransformed(sent, observed(tiny, Rounds()), of_spectrum(tiny.public.inputs), iterations=4, progress=silent)
    assert found.isfinite().all()


def test_it_is_tried_where_an_image_alone_was_transformed(tiny: Data) -> None:
    assert Behind.applies(observed(tiny, Shifts()))
    assert Behind.applies(observed(tiny, load_defense("ats() | gaussian_noise(std=0.01)")))
    assert Behind.applies(observed(tiny, "mixup()"))
    for defense in ("none", "dp_sgd(noise_multiplier=1.0)", "soteria(rate=0.5)"):
        assert not Behind.applies(observed(tiny, defense)), defense
    assert not Behind.applies(observed(tiny, None))
    assert not Behind.applies(observed(tiny, Shifts(), batch_size=2))
    assert not Behind.applies(observed(tiny, Shifts(), parameters=False))


@pytest.fixture(scope="module")
def photographs() -> Data:
    """Images with a photograph's spectrum."""
    prior = natural((3, 16, 16))
    images = prior.drawn(220, torch.Generator().manual_seed(0)).float().reshape(-1, 3, 16, 16).clamp(0, 1)
    labels = torch.randint(4, (220,), generator=torch.Generator().manual_seed(0))
    return Data(Split(images[:200], labels[:200]), Split(images[200:], labels[200:]), classes=4, name="spectrum")


@pytest.mark.parametrize("k", [2, 3])
def test_signs_of_smooth_images_are_no_secret(photographs: Data, k: int) -> None:
    defense, truth = load_defense(f"instahide(k={k})"), photographs.private.inputs[:6, None]
    observation = observed(photographs, defense)
    fitted = observation.without_update().public
    batch = Batch(load_model("mlp(hidden=(8,))", photographs), truth, torch.zeros(6, 1, dtype=torch.long))
    masked, _ = defense.prepare_batch(batch, public=fitted, generator=make_generator(2))
    middle = middle_of(observation)
    assert middle is not None
    found = unmasked(masked, middle, observation, of_spectrum(fitted.inputs), progress=silent)
    assert found.shape == truth.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    error, blind = ((guess - truth).square().mean((1, 2, 3, 4)) for guess in (found, fitted.inputs.mean(0)))
    assert error.median() < blind.median() / 5


def test_where_values_are_mirrored_is_known_if_it_comes_last(tiny: Data) -> None:
    assert middle_of(observed(tiny, "mixup() | instahide() | gaussian_noise(std=0.1)")) is not None
    for spec in ("none", "mixup()", "instahide() | ats()"):
        assert middle_of(observed(tiny, spec)) is None, spec
