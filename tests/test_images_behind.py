"""Where a defense transforms images first, auto tries what it may have drawn, and searches the image behind."""

from __future__ import annotations

import pytest
import torch

from gitbench import Data, Defense, Observation, load_defense, load_model
from gitbench.attacker.attacks.auto.preparation import images_behind, looks_behind
from gitbench.attacker.tools.priors import of_spectrum
from gitbench.clients.update import Update
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
    found = images_behind(sent, observed(tiny, defense), of_spectrum(tiny.public.inputs), iterations=40, progress=silent)
    assert found.shape == truth.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    halves = (truth[..., : SIZE // 2], found[..., : SIZE // 2]), (truth[..., SIZE // 2 :], found[..., SIZE // 2 :])
    errors = torch.stack([(one - other).square().flatten(1).mean(1) for one, other in halves]).sort(0).values
    assert errors[0].max() < 1e-3  # the half that was sent is where it was
    assert errors[1].mean() < (truth - tiny.public.inputs.mean(0)).square().mean() / 2  # the other goes on from there


def test_what_has_no_slope_is_no_error(tiny: Data) -> None:
    sent = tiny.private.inputs[:6, None].round()
    found = images_behind(sent, observed(tiny, Rounds()), of_spectrum(tiny.public.inputs), iterations=4, progress=silent)
    assert found.isfinite().all()


def test_it_is_tried_where_an_image_alone_was_transformed(tiny: Data) -> None:
    assert looks_behind(observed(tiny, Shifts()))
    assert looks_behind(observed(tiny, load_defense("ats() | gaussian_noise(std=0.01)")))
    for defense in ("none", "dp_sgd(noise_multiplier=1.0)", "mixup()", "instahide()", "soteria(rate=0.5)"):
        assert not looks_behind(observed(tiny, defense)), defense
    assert not looks_behind(observed(tiny, None))
    assert not looks_behind(observed(tiny, Shifts(), batch_size=2))
    assert not looks_behind(observed(tiny, Shifts(), parameters=False))
