"""The definitions of the defenses that work on the update, against slow and obvious ones."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from test_defenses import random_update

import gitbench
from gitbench.clients.client import client_update, expected_update
from gitbench.clients.data import Data
from gitbench.clients.defense import Expectation, load_defense
from gitbench.core.errors import DefenseError, SpecError
from gitbench.core.random import make_generator
from gitbench.measure.conformance import check_conformance

SPECS = [
    ("laplace_noise(scale=0.1)", True),
    ("laplace_noise(scale=0.0)", False),
    ("clipping(max_norm=0.1, scope='layer')", False),
    ("clipping(max_norm=0.1, scope='example')", False),
    ("sign", False),
    ("sign(scaled=True)", False),
    ("quantization(bits=1)", True),
    ("quantization(bits=8, norm='max')", True),
    ("precision", False),
    ("precision(dtype='float16')", False),
    ("topk(rate=0.1)", False),
    ("topk(rate=0.37, error_feedback=False)", False),
    ("topk(rate=0.001)", False),
    ("dropout(rate=0.5)", True),
    ("dropout(rate=0.2, layers='all')", True),
    ("dropout(rate=0.2) | dp_sgd(noise_multiplier=0.1)", True),
]


def protected(spec: str, update: gitbench.Update, seed: int = 0) -> gitbench.Update:
    return load_defense(spec).protect(update, generator=make_generator(seed))


def tracked(update: gitbench.Update) -> gitbench.Update:
    return update.map(lambda _, tensor: tensor.clone().requires_grad_())


def some(data: Data, count: int = 3, batch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    return data.private.inputs[: count * batch].unflatten(0, (count, batch)), data.private.labels[: count * batch].unflatten(
        0, (count, batch)
    )


def error(found: gitbench.Update, truth: gitbench.Update) -> float:
    return float((found.flatten() - truth.flatten()).norm() / truth.flatten().norm())


# ------------------------------------------------------------------ all of them


@pytest.mark.parametrize(("spec", "random"), SPECS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_each_conforms_to_what_it_declares(spec: str, random: bool, batch_size: int, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    assert check_conformance(load_defense(spec), model, data.public, batch_size=batch_size) is random


@pytest.mark.parametrize("spec", ["sign", "sign(scaled=True)", "quantization(bits=4)", "precision", "topk(rate=0.2)", "dropout(rate=0.3)"])
def test_matching_attacks_have_a_slope_to_follow(spec: str, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data)
    sent = client_update(model, inputs, labels, defense=spec, public=data.public)
    images = inputs.clone().requires_grad_()
    expected = expected_update(model, images, labels, expectation=Expectation(load_defense(spec)), observed=sent)
    (slope,) = torch.autograd.grad((expected.flatten() - sent.flatten()).square().sum() + expected.flatten().sum(), images)
    assert torch.isfinite(slope).all()
    assert (slope.flatten(1).abs().amax(1) > 0).all()


@pytest.mark.parametrize(
    "spec", ["sign", "quantization(bits=4)", "precision", "topk(rate=0.2)", "dropout(rate=0.3)", "laplace_noise(scale=0.01)"]
)
def test_none_is_said_to_mislead(spec: str, data: Data, tiny_npz) -> None:
    result = gitbench.evaluate(
        attack="ridge", defense=spec, model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", victims=8, batch_size=1, device="cpu"
    )
    assert result.error is None
    assert not {"no-slope", "random-scale"} & set(result.flags)


@pytest.mark.parametrize(
    "spec",
    [
        "laplace_noise(scale=-1.0)",
        "clipping(max_norm=1.0, scope='tensor')",
        "sign(scaled='yes')",
        "quantization(bits=0)",
        "quantization(bits=17)",
        "quantization(bits=2.5)",
        "quantization(bits=2, norm='l1')",
        "precision(dtype='int8')",
        "topk(rate=0.0)",
        "topk(rate=1.1)",
        "topk(rate=0.1, age=1)",
        "dropout(rate=1.0)",
        "dropout(rate=-0.1)",
        "dropout(rate=0.1, layers='first')",
    ],
)
def test_impossible_options_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="refuses its options: expected"):
        load_defense(spec)


# ------------------------------------------------------------------ laplace_noise


def test_laplace_noise_is_laplaces_and_fresh_for_each_victim() -> None:
    noisy = protected("laplace_noise(scale=0.3)", gitbench.Update({"w": torch.zeros(2, 20_000)}), seed=1).tensors["w"]
    assert stats.kstest(noisy.flatten().numpy(), stats.laplace(scale=0.3).cdf).pvalue > 0.01
    assert noisy.std().item() == pytest.approx(0.3 * math.sqrt(2), rel=0.03)
    assert abs(torch.corrcoef(noisy)[0, 1].item()) < 0.05


@given(rounds=st.integers(1, 6), seed=st.integers(0, 100))
def test_laplace_rounds_are_combined_by_their_median(rounds: int, seed: int) -> None:
    updates = [random_update(seed=seed + number) for number in range(rounds)]
    found = load_defense("laplace_noise(scale=1.0)").combined(iter(updates))
    torch.testing.assert_close(found.flatten(), torch.stack([update.flatten() for update in updates]).quantile(0.5, dim=0))


def test_the_median_is_nearer_than_the_mean() -> None:
    update, defense, generator = random_update(victims=40), load_defense("laplace_noise(scale=1.0)"), make_generator(0)
    sent = [defense.protect(update, generator=generator) for _ in range(11)]
    assert error(defense.combined(sent), update) < 0.9 * error(gitbench.Update.mean(sent), update)
    assert defense.combined([update, update]) is update


# ------------------------------------------------------------------ clipping


@given(max_norm=st.floats(0.01, 20), scale=st.floats(1e-2, 1e2))
def test_clipping_by_layer_bounds_each_tensor_and_leaves_short_ones(max_norm: float, scale: float) -> None:
    update = random_update(scale=scale)
    clipped = protected(f"clipping(max_norm={max_norm!r}, scope='layer')", update)
    for name, tensor in update.tensors.items():
        for before, after in zip(tensor.flatten(1), clipped.tensors[name].flatten(1), strict=True):
            factor = min(1.0, max_norm / float(before.norm()))
            torch.testing.assert_close(after, before * factor, rtol=1e-4, atol=1e-7)


@given(max_norm=st.floats(0.01, 20), batch=st.integers(1, 4))
def test_clipping_by_example_is_the_mean_of_clipped_examples(max_norm: float, batch: int) -> None:
    examples = [random_update(seed=seed) for seed in range(batch)]
    every = {name: torch.stack([one.tensors[name] for one in examples], dim=1) for name in examples[0].tensors}
    update = gitbench.Update({name: tensor.mean(1) for name, tensor in every.items()}, every)
    clipped = protected(f"clipping(max_norm={max_norm!r}, scope='example')", update)
    total = torch.zeros_like(update.flatten())
    for one in examples:
        for victim, row in enumerate(one.flatten()):
            total[victim] += row * min(1.0, max_norm / float(row.norm())) / batch
    torch.testing.assert_close(clipped.flatten(), total, rtol=1e-4, atol=1e-5)
    assert (clipped.flatten().norm(dim=1) <= max_norm * (1 + 1e-5)).all()
    noiseless = protected(f"dp_sgd(noise_multiplier=0.0, max_grad_norm={max_norm!r})", update)
    assert torch.equal(clipped.flatten(), noiseless.flatten())


def test_only_clipping_by_example_asks_for_examples() -> None:
    scopes = ("global", "layer", "example")
    assert [load_defense(f"clipping(max_norm=1.0, scope={scope!r})").needs_per_example for scope in scopes] == [False, False, True]
    assert not load_defense("clipping(max_norm=1.0)").needs_per_example
    assert load_defense("clipping(max_norm=1.0, scope='example') | pruning(rate=0.5)").needs_per_example
    with pytest.raises(DefenseError, match="Put it first"):
        protected("clipping(max_norm=1.0, scope='example')", random_update())


@given(max_norm=st.floats(0.01, 20))
def test_clipping_of_the_whole_is_as_it_was(max_norm: float) -> None:
    update = random_update()
    flat = update.flatten()
    before = flat * (max_norm / flat.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1.0)
    for spec in (f"clipping(max_norm={max_norm!r})", f"clipping(max_norm={max_norm!r}, scope='global')"):
        assert torch.equal(protected(spec, update).flatten(), before)


# ------------------------------------------------------------------ sign


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_signs_are_signs_and_scaled_ones_keep_the_mean_size_of_each_tensor(scale: float, seed: int) -> None:
    update = random_update(scale=scale, seed=seed)
    update.tensors["a.bias"][0, 0] = 0
    plain, scaled = protected("sign", update), protected("sign(scaled=True)", update)
    for name, tensor in update.tensors.items():
        assert torch.equal(plain.tensors[name], torch.where(tensor > 0, 1.0, torch.where(tensor < 0, -1.0, 0.0)))
        for victim in range(update.victims):
            size = tensor[victim].abs().sum() / tensor[victim].numel()
            torch.testing.assert_close(scaled.tensors[name][victim], plain.tensors[name][victim] * size)


@given(factor=st.floats(1e-3, 1e3))
def test_what_is_expected_of_signs_is_smooth_and_takes_no_notice_of_scale(factor: float) -> None:
    update = random_update()
    defense = load_defense("sign")
    expected = defense.expected(update, observed=update).flatten()
    torch.testing.assert_close(
        defense.expected(update.map(lambda _, t: t * factor), observed=update).flatten(), expected, rtol=1e-4, atol=1e-6
    )
    assert torch.equal(expected.sign(), protected("sign", update).flatten())
    assert expected.abs().max() <= 1
    assert torch.cosine_similarity(expected, protected("sign", update).flatten()).min() > 0.9
    scaled = load_defense("sign(scaled=True)").expected(update, observed=update)
    for name, tensor in scaled.tensors.items():
        size = update.tensors[name].flatten(1).abs().mean(1)
        torch.testing.assert_close(tensor.flatten(1), defense.expected(update, observed=update).tensors[name].flatten(1) * size[:, None])


def test_an_update_of_zeros_has_no_signs() -> None:
    zeros = random_update().map(lambda _, tensor: torch.zeros_like(tensor))
    for spec in ("sign", "sign(scaled=True)", "quantization(bits=3)", "quantization(bits=3, norm='max')", "topk(rate=0.5)"):
        assert not protected(spec, zeros).flatten().any()
        assert not load_defense(spec).expected(zeros, observed=zeros).flatten().any()


# ------------------------------------------------------------------ quantization


@given(bits=st.integers(1, 8), norm=st.sampled_from(["l2", "max"]), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_each_entry_is_the_level_below_or_above(bits: int, norm: str, scale: float, seed: int) -> None:
    update = random_update(scale=scale, seed=seed)
    sent = protected(f"quantization(bits={bits}, norm={norm!r})", update, seed=seed)
    for name, tensor in update.tensors.items():
        for before, after in zip(tensor.flatten(1).double(), sent.tensors[name].flatten(1).double(), strict=True):
            size = before.norm() if norm == "l2" else before.abs().max()
            levels = after / size * (2**bits - 1)
            assert (levels - levels.round()).abs().max() < 1e-4
            assert levels.abs().max().round() <= 2**bits - 1
            assert (before * after >= 0).all()
            assert ((levels - before / size * (2**bits - 1)).abs() < 1 + 1e-4).all()


@pytest.mark.parametrize("norm", ["l2", "max"])
@pytest.mark.parametrize("bits", [1, 3])
def test_quantization_is_without_bias(bits: int, norm: str) -> None:
    draws = 4000
    one = torch.randn(12, generator=torch.Generator().manual_seed(5))
    sent = protected(f"quantization(bits={bits}, norm={norm!r})", gitbench.Update({"w": one.expand(draws, 12).clone()})).tensors["w"]
    spread = sent.std(0).clamp_min(1e-6) / math.sqrt(draws)
    assert ((sent.mean(0) - one).abs() < 4.5 * spread + 1e-6).all()
    size = float(one.norm() if norm == "l2" else one.abs().max()) / (2**bits - 1)
    share = (one.abs() / size) % 1
    torch.testing.assert_close(sent.std(0), size * (share * (1 - share)).sqrt(), atol=0.03 * size, rtol=0)
    if norm == "max":
        assert (sent[:, one.abs().argmax()] - one[one.abs().argmax()]).abs().max() < 1e-6
    assert (torch.corrcoef(sent[:, share > 0.01].T) - torch.eye(int((share > 0.01).sum()))).abs().max() < 0.08


def test_rounds_of_rounded_updates_are_averaged_whatever_came_before() -> None:
    updates = [random_update(seed=seed) for seed in range(3)]
    mean = gitbench.Update.mean(updates).flatten()
    for last in ("sign", "quantization(bits=2)", "dropout(rate=0.5)"):
        assert torch.equal(load_defense(last).combined(iter(updates)).flatten(), mean)
    for last in ("sign", "quantization(bits=2)"):
        assert torch.equal(load_defense(f"laplace_noise(scale=1.0) | {last}").combined(updates).flatten(), mean)


# ------------------------------------------------------------------ precision


@given(exponent=st.integers(-20, 20), seed=st.integers(0, 100), name=st.sampled_from(["bfloat16", "float16"]))
def test_precision_is_the_nearest_number_of_the_format(exponent: int, seed: int, name: str) -> None:
    update = random_update(scale=2.0**exponent, seed=seed)
    sent = protected(f"precision(dtype={name!r})", update).flatten()
    form = torch.finfo(getattr(torch, name))
    before = update.flatten().clamp(form.min, form.max)
    # Neighbours in the format are a step apart, which is that of the power of two below, or of the subnormal numbers.
    digits = 8 if name == "bfloat16" else 11
    step = 2.0 ** (before.abs().clamp_min(form.tiny).double().log2().floor() - digits + 1)
    assert ((sent.double() - before.double()).abs() <= step / 2 * (1 + 1e-9)).all()
    assert (((sent.double() / step) % 1) == 0).all()
    assert torch.equal(protected(f"precision(dtype={name!r})", update.like(sent)).flatten(), sent)


def test_float16_sends_its_largest_number_in_place_of_a_larger_one() -> None:
    sent = protected("precision(dtype='float16')", gitbench.Update({"w": torch.tensor([[1e6, -1e6, 65519.0, 1e-9]])})).tensors["w"]
    assert sent.tolist() == [[65504.0, -65504.0, 65504.0, 0.0]]


@pytest.mark.parametrize("name", ["bfloat16", "float16"])
def test_precision_is_expected_as_it_is_with_the_slope_of_one(name: str) -> None:
    update = tracked(random_update())
    defense = load_defense(f"precision(dtype={name!r})")
    expected = defense.expected(update, observed=update)
    assert torch.equal(expected.flatten(), defense.protect(update, generator=make_generator(0)).flatten())
    for tensor, slope in zip(
        update.tensors.values(), torch.autograd.grad(expected.flatten().sum(), [*update.tensors.values()]), strict=True
    ):
        assert torch.equal(slope, torch.ones_like(tensor))
