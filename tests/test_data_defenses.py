"""Defenses on the data: MixUp, InstaHide and ATS against slow definitions, and soft labels on their whole way."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from torch.nn import functional

import gitbench
from gitbench.clients.client import client_update, gradients
from gitbench.clients.data import Data, Split
from gitbench.clients.differentiation import _one_by_one, mean_loss, stacked_gradients
from gitbench.clients.mixing import SOURCES, draw_partners
from gitbench.clients.rounds import client_rounds
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Batch
from gitbench.core.errors import DefenseError, SpecError
from gitbench.core.random import make_generator
from gitbench.measure.evaluator import Evaluator
from gitbench.run.bench import case_of
from gitbench_defenses.ats import LIBRARY, Ats, transformed
from helpers import make_data, smooth

DATA = make_data()


def unit_batch(victims: int = 3, size: int = 4, *, labels: torch.Tensor | None = None) -> Batch:
    """Image ``b`` of each victim is 1 at pixel ``b``, and 0 elsewhere: what was mixed can be read off."""
    inputs = torch.zeros(victims, size, *DATA.input_shape)
    inputs.flatten(2)[:, torch.arange(size), torch.arange(size)] = 1.0
    drawn = torch.randint(DATA.classes, (victims, size), generator=torch.Generator().manual_seed(1))
    return Batch(gitbench.load_model("mlp", DATA), inputs, drawn if labels is None else labels)


def unit_public(count: int = 5, *, first: int = 100) -> Split:
    """The same, of pixels from ``first`` on."""
    inputs = torch.zeros(count, *DATA.input_shape)
    inputs.flatten(1)[torch.arange(count), first + torch.arange(count)] = 1.0
    return Split(inputs, torch.arange(count) % DATA.classes)


def prepared(spec: str, batch: Batch, *, public: Split | None = None, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    return gitbench.load_defense(spec).prepare_batch(batch, public=public, generator=make_generator(seed))


# ------------------------------------------------------------------ soft labels


@pytest.mark.parametrize("per_example", [False, True])
@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_the_gradient_of_mixed_labels_is_the_mix_of_the_gradients_of_each(model: str, per_example: bool) -> None:
    network = gitbench.load_model(model, DATA)
    inputs = DATA.private.inputs[:6].unflatten(0, (3, 2))
    soft = torch.rand(3, 2, DATA.classes, generator=torch.Generator().manual_seed(0)).softmax(2)
    # Linear in the labels: by the definition of cross-entropy, a class at a time.
    alone = [gradients(network, inputs, torch.full((3, 2), c), per_example=True).per_example for c in range(DATA.classes)]
    found = gradients(network, inputs, soft, per_example=per_example)
    for name, tensor in found.tensors.items():
        each = sum(soft[..., c].reshape(3, 2, *[1] * (tensor.ndim - 1)) * part[name] for c, part in enumerate(alone))
        torch.testing.assert_close(tensor, each.mean(1), atol=1e-6, rtol=1e-4)


def test_one_victim_after_the_other_takes_mixed_labels_too() -> None:
    network = gitbench.load_model("mlp", DATA)
    inputs, soft = DATA.private.inputs[:6].unflatten(0, (3, 2)), torch.rand(3, 2, DATA.classes).softmax(2)
    parameters = {name: parameter.detach() for name, parameter in trained_parameters(network).items()}

    def loss(weights, batch, targets):
        return mean_loss(torch.func.functional_call(network, (dict(weights),), (batch,)), targets)

    slow = _one_by_one(loss, parameters, inputs, soft, per_example=False, own_weights=False)
    fast = stacked_gradients(network, parameters, inputs, soft, per_example=False)
    for name, tensor in fast.items():
        torch.testing.assert_close(slow[name], tensor, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("client", ["fedsgd", "fedavg(steps=2, lr=0.1)", "secure_aggregation(clients=2)"])
@pytest.mark.parametrize(
    "spec", ["mixup", "instahide", "ats", "mixup | clipping(max_norm=1.0)", "ats | mixup | instahide | soteria(rate=0.5)"]
)
def test_every_client_takes_them(spec: str, client: str) -> None:
    network = gitbench.load_model("mlp", DATA)
    inputs, labels = DATA.private.inputs[:8].unflatten(0, (2, 4)), DATA.private.labels[:8].unflatten(0, (2, 4))
    found = client_update(network, inputs, labels, defense=spec, client=client, public=DATA.public)
    assert torch.isfinite(found.flatten()).all()
    assert not torch.allclose(found.flatten(), client_update(network, inputs, labels, client=client).flatten())
    one, other = client_rounds(network, inputs, labels, rounds=2, defense=spec, client=client, public=DATA.public)
    assert not torch.allclose(one.flatten(), other.flatten())


def test_the_truth_of_a_measurement_are_the_private_images(tiny_npz) -> None:
    options = {"attack": "ridge", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 4, "batch_size": 2}
    settings = {**options, "threat": "server", "profile": "quick", "seed": 0}
    truths = [Evaluator(device="cpu").truth(case_of(defense=spec, **settings)) for spec in ("none", "mixup", "instahide", "ats")]
    assert all(torch.equal(truth, truths[0]) for truth in truths)


# ------------------------------------------------------------------ mixup


@given(k=st.integers(1, 4), size=st.integers(1, 4), alpha=st.floats(0.1, 5), seed=st.integers(0, 99))
def test_mixup_averages_images_and_labels_alike(k: int, size: int, alpha: float, seed: int) -> None:
    batch, public = unit_batch(size=size), unit_public()
    before = batch.inputs.clone(), batch.labels.clone()
    inputs, labels = prepared(f"mixup(k={k}, alpha={alpha!r})", batch, public=public, seed=seed)
    assert torch.equal(batch.inputs, before[0])
    assert torch.equal(batch.labels, before[1])
    flat = inputs.flatten(2)
    for victim, place in itertools.product(range(3), range(size)):
        expected = torch.zeros(DATA.classes)
        # Its own weight stands at its own pixel, those of partners at theirs.
        expected[batch.labels[victim, place]] += flat[victim, place, place]
        others = flat[victim, place, 100:105]
        for number, weight in enumerate(others):
            expected[public.labels[number]] += weight
        assert int((others > 0).sum()) <= k - 1
        assert float(flat[victim, place].sum()) == pytest.approx(1, abs=1e-5)
        torch.testing.assert_close(labels[victim, place], expected, atol=1e-5, rtol=0)


@given(k=st.integers(1, 3), size=st.integers(1, 4), seed=st.integers(0, 99))
def test_partners_within_the_batch_are_permutations_of_it(k: int, size: int, seed: int) -> None:
    batch = unit_batch(size=size)
    inputs, labels = prepared(f"mixup(k={k}, partners='batch')", batch, seed=seed)
    weights = inputs.flatten(2)[:, :, :size]  # (V, B, source)
    torch.testing.assert_close(weights.sum(2), torch.ones(3, size), atol=1e-5, rtol=0)
    each = functional.one_hot(batch.labels, DATA.classes).float()
    torch.testing.assert_close(labels, weights @ each, atol=1e-5, rtol=0)
    if size == 1:
        torch.testing.assert_close(inputs, batch.inputs, atol=1e-5, rtol=0)
    if k == 2:  # each image is a partner once: besides its own place each column has one weight more
        assert ((weights > 0).sum(1) <= 2).all()


def test_the_weights_of_two_images_are_beta() -> None:
    from scipy import stats

    batch = unit_batch(victims=500, size=2)
    weights = prepared("mixup(alpha=0.4)", batch, public=unit_public())[0].flatten(2)[:, torch.arange(2), torch.arange(2)]
    assert stats.kstest(weights.flatten().double().numpy(), "beta", args=(0.4, 0.4)).pvalue > 0.01
    assert abs(np.corrcoef(weights.T)[0, 1]) < 0.15


# ------------------------------------------------------------------ instahide


@given(k=st.integers(1, 4), partners=st.sampled_from(SOURCES), seed=st.integers(0, 99))
def test_instahide_mirrors_each_value_of_an_average_at_the_mean(k: int, partners: str, seed: int) -> None:
    inputs, labels = DATA.private.inputs[:6].unflatten(0, (3, 2)), DATA.private.labels[:6].unflatten(0, (3, 2))
    batch, defense = (
        Batch(gitbench.load_model("mlp", DATA), inputs, labels),
        gitbench.load_defense(f"instahide(k={k}, partners={partners!r})"),
    )
    found, soft = defense.prepare_batch(batch, public=DATA.public, generator=make_generator(seed))
    generator = make_generator(seed)
    weights = defense.weights(torch.Size([3, 2]), generator)
    images, others = draw_partners(batch, k - 1, source=partners, public=DATA.public, generator=generator)
    mean = DATA.public.inputs.mean((0, 2, 3))[:, None, None]
    for victim, place in itertools.product(range(3), range(2)):
        average, label = weights[victim, place, 0] * inputs[victim, place], torch.zeros(DATA.classes)
        label[labels[victim, place]] = weights[victim, place, 0]
        for partner in range(k - 1):
            average = average + weights[victim, place, partner + 1] * images[victim, place, partner]
            label = label + weights[victim, place, partner + 1] * others[victim, place, partner]
        torch.testing.assert_close(soft[victim, place], label)
        kept, mirrored = ((found[victim, place] - value).abs() < 1e-5 for value in (average, 2 * mean - average))
        assert (kept | mirrored).all()
        assert 0.3 < float(kept.float().mean()) < 0.7


def test_no_weight_of_instahide_exceeds_the_largest_and_signs_are_fair() -> None:
    defense = gitbench.load_defense("instahide")
    weights = defense.weights(torch.Size([2000, 2]), make_generator(0))
    assert float(weights.max()) <= 0.65
    torch.testing.assert_close(weights.sum(2), torch.ones(2000, 2))
    # The definition, one at a time.
    drawn = np.abs(np.random.default_rng(0).normal(size=(20_000, 4)))
    slow = drawn / drawn.sum(1, keepdims=True)
    slow = slow[slow.max(1) <= 0.65]
    assert float(weights[..., 0].mean()) == pytest.approx(slow[:, 0].mean(), abs=0.01)
    assert float(weights[..., 0].std()) == pytest.approx(slow[:, 0].std(), abs=0.01)
    batch = Batch(gitbench.load_model("mlp", DATA), torch.ones(20, 2, *DATA.input_shape), torch.zeros(20, 2, dtype=torch.long))
    inputs, _ = prepared("instahide(partners='batch')", batch)
    assert set(inputs.round(decimals=4).abs().unique().tolist()) == {0.0, 1.0}  # mirrored at 1/2, where there are no public images
    assert float(inputs.mean()) == pytest.approx(0.5, abs=0.02)
    assert abs(torch.corrcoef(inputs.flatten(1))[0, 1]) < 0.2


def test_a_largest_weight_that_nothing_obeys_is_refused() -> None:
    with pytest.raises(DefenseError, match=r"10,000 draws found no 4 weights of at most 0\.2501: raise largest"):
        client_update(*victims(), defense="instahide(largest=0.2501)", public=DATA.public)


# ------------------------------------------------------------------ ATS

PIL = {
    "color": lambda image, part: ImageEnhance.Color(image).enhance(1 + 0.5 * part),
    "contrast": lambda image, part: ImageEnhance.Contrast(image).enhance(1 + 0.5 * part),
    "sharpness": lambda image, part: ImageEnhance.Sharpness(image).enhance(1 + 0.5 * part),
    "brightness": lambda image, part: ImageEnhance.Brightness(image).enhance(1 + 0.5 * part),
    "posterize": lambda image, part: ImageOps.posterize(image, int(np.round(8 - 4 * part))),
    "solarize": lambda image, part: ImageOps.solarize(image, 256 - 256 * part),
    "autocontrast": lambda image, part: ImageOps.autocontrast(image),
    "equalize": lambda image, part: ImageOps.equalize(image),
    "invert": lambda image, part: ImageOps.invert(image),
    "shear_y": lambda image, part: image.transform(image.size, Image.Transform.AFFINE, (1, 0, 0, 0.3 * part, 1, 0)),
    "translate_x": lambda image, part: image.transform(
        image.size, Image.Transform.AFFINE, (1, 0, -150 / 331 * part * image.size[0], 0, 1, 0)
    ),
    "translate_y": lambda image, part: image.transform(
        image.size, Image.Transform.AFFINE, (1, 0, 0, 0, 1, -150 / 331 * part * image.size[1])
    ),
    "rotate": lambda image, part: image.rotate(30 * part, fillcolor=(128,) * 3),
}
"""The operations as the authors' code has them, by the magnitude as a share of the largest, with its sign."""


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize(("operation", "step"), sorted(set(LIBRARY)))
def test_operations_are_those_of_pil(operation: str, step: int, sign: int) -> None:
    images = (smooth(3, (3, 32, 32)) * 255).round() / 255
    found = transformed(images, operation, step, sign=sign)
    assert found.shape == images.shape
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    signed = operation in {"color", "contrast", "sharpness", "brightness", "shear_y", "translate_x", "translate_y", "rotate"}
    for one, ours in zip(images, found, strict=True):
        picture = Image.fromarray((one.permute(1, 2, 0) * 255).round().byte().numpy())
        theirs = torch.from_numpy(np.array(PIL[operation](picture, step / 9 * (sign if signed else 1)))).permute(2, 0, 1) / 255
        # 8 bits round; and where a pixel lies between two, each may choose another.
        far = (ours - theirs).abs() > 3.1 / 255
        assert float(far.float().mean()) < (0.08 if operation in {"shear_y", "rotate"} else 0.01)


@given(seed=st.integers(0, 50), policy=st.sampled_from(["3-1-7+43-18-18", "0", "11-2", "6+29+12-39"]))
def test_each_image_goes_through_one_list_of_the_policy(seed: int, policy: str) -> None:
    inputs = smooth(6, (3, 16, 16)).unflatten(0, (3, 2))
    before = inputs.clone()
    found, labels = Ats(policy=policy).prepare(inputs, torch.zeros(3, 2, dtype=torch.long), generator=make_generator(seed))
    assert torch.equal(inputs, before)
    assert labels.shape == (3, 2)
    for image, ours in zip(inputs.flatten(0, 1), found.flatten(0, 1), strict=True):
        ways = []
        for part in policy.split("+"):
            numbers = [int(number) for number in part.split("-")]
            for signs in itertools.product((-1, 1), repeat=len(numbers)):
                way = image[None]
                for number, sign in zip(numbers, signs, strict=True):
                    way = transformed(way, *LIBRARY[number], sign=sign)
                ways.append(way[0])
        assert min(float((way - ours).abs().max()) for way in ways) < 1e-5


def test_lists_and_directions_are_drawn_for_each_image() -> None:
    image = smooth(1, (3, 16, 16)).expand(200, -1, -1, -1)[:, None]
    found, _ = Ats().prepare(image, torch.zeros(200, 1, dtype=torch.long), generator=make_generator(0))
    kinds, counts = found.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 16  # two lists of three operations with two directions each, the last two of one of them alike
    assert int(counts.max()) < 60


def test_grey_images_are_transformed_too() -> None:
    inputs = smooth(50, (1, 16, 16))[:, None]
    for number in range(len(LIBRARY)):
        found, _ = Ats(policy=str(number)).prepare(inputs, torch.zeros(50, 1, dtype=torch.long), generator=make_generator(0))
        assert torch.isfinite(found).all()


# ------------------------------------------------------------------ what is refused


def victims(data: Data = DATA) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    return gitbench.load_model("mlp", data), data.private.inputs[:2][:, None], data.private.labels[:2][:, None]


@pytest.mark.parametrize("spec", ["mixup", "instahide"])
def test_mixing_without_public_images_says_what_to_do(spec: str) -> None:
    with pytest.raises(DefenseError, match=r"stand in for the client's other data, and there are none. Pass public="):
        client_update(*victims(), defense=spec)
    client_update(*victims(), defense=f"{spec}(partners='batch')")


@pytest.mark.parametrize(
    "spec",
    [
        *("mixup(k=0)", "mixup(alpha=0)", "mixup(partners='friends')", "instahide(k=0)", "instahide(largest=0.2)", "instahide(largest=2)"),
        *("instahide(partners=None)", "ats(policy='')", "ats(policy='50')", "ats(policy='3-')", "ats(policy=7)", "ats(policy='3-1+²')"),
    ],
)
def test_impossible_options_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="refuses its options: expected"):
        gitbench.load_defense(spec)
