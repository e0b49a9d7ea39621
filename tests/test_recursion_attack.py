"""The attack `recursion`: closed forms against dense oracles, then images."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.recursion import step, through
from gitbench.attacker.attacks.recursion.step import Estimate, System, conjugate_gradients, matrix, solve
from gitbench.attacker.attacks.recursion.walk import KnownWalk
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Layer, read_chain
from gitbench.attacker.tools.priors import Gaussian, natural, of_samples
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.core.errors import AttackError
from gitbench.core.random import make_generator
from helpers import make_data


@pytest.fixture(scope="module")
def smooth() -> Data:
    return make_data(size=12, public=300, private=16)


def observed(
    data: Data, model: nn.Module, defense: str | None = None, *, count: int = 6, batch: int = 1, public: bool = True
) -> tuple[gitbench.Observation, torch.Tensor]:
    inputs = data.private.inputs[: count * batch].reshape(count, batch, *data.input_shape)
    labels = data.private.labels[: count * batch].reshape(count, batch)
    update = client_update(model, inputs, labels, defense=defense, public=data.public)
    split = data.public if public else None
    return gitbench.Observation(
        update=update, model=model, input_shape=data.input_shape, batch_size=batch, public=split, defense=defense
    ), inputs


def psnr(attack: str, data: Data, model: nn.Module, defense: str | None = None, **options) -> torch.Tensor:
    seen, inputs = observed(data, model, defense, **options)
    found = load_attack(attack, profile="quick")(seen, generator=make_generator(0))
    return gitbench.score(found.inputs, inputs)["psnr"].mean(1)


def test_an_mlp_is_inverted_to_rounding_in_float64() -> None:
    data = make_data(size=6, public=40, private=4)
    model = gitbench.load_model("mlp(hidden=(20, 16))", data).double()
    inputs, labels = data.private.inputs[:, None].double(), data.private.labels[:, None]
    update = client_update(model, inputs, labels).tensors
    chain = read_chain(model, data.input_shape)
    priors = tuple(
        Gaussian(torch.full((width,), 0.5, dtype=torch.float64), torch.ones(width, dtype=torch.float64), None) for width in (108, 20, 16)
    )
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    found = KnownWalk(chain, weights, priors, 0)(update, labels[:, 0], noise=dict.fromkeys(update, 0.0))
    assert (found - inputs.flatten(1)).abs().max() < 1e-8


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "leaky_relu"])
def test_an_mlp_is_exact(activation: str, smooth: Data) -> None:
    assert psnr("recursion", smooth, gitbench.load_model(f"mlp(activation={activation!r})", smooth)).mean() > 60


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
def test_a_lenet_is_far_better_than_ridge(activation: str, smooth: Data) -> None:
    model = gitbench.load_model(f"lenet(activation={activation!r})", smooth)
    assert psnr("recursion", smooth, model).mean() > psnr("ridge", smooth, model).mean() + 10


def test_a_last_layer_without_bias_is_walked_from_too(smooth: Data) -> None:
    assert psnr("recursion", smooth, gitbench.load_model("mlp(bias=False)", smooth)).mean() > 60


def test_hidden_layers_without_bias_are_walked_through_too(smooth: Data) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hidden = [nn.Linear(432, 64, bias=False), nn.Tanh(), nn.Linear(64, 32, bias=False), nn.Tanh()]
        model = nn.Sequential(nn.Flatten(), *hidden, nn.Linear(32, smooth.classes))
    assert psnr("recursion", smooth, model).mean() > 60


def test_without_public_images_a_prior_of_photographs_does(smooth: Data) -> None:
    model = gitbench.load_model("lenet", smooth)
    assert psnr("recursion", smooth, model, public=False).mean() > 40


@pytest.mark.parametrize("std", [1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("model", ["mlp", "lenet"])
def test_under_noise_it_is_not_below_ridge(model: str, std: float, smooth: Data) -> None:
    network, defense = gitbench.load_model(model, smooth), f"gaussian_noise(std={std})"
    assert psnr("recursion", smooth, network, defense).mean() > psnr("ridge", smooth, network, defense).mean() - 0.2


def test_the_scale_of_a_clipped_update_is_found(smooth: Data) -> None:
    assert psnr("recursion", smooth, gitbench.load_model("lenet", smooth), "clipping(max_norm=0.5)").mean() > 40


@pytest.mark.parametrize(
    "defense",
    [
        "pruning(rate=0.99)",
        "dp_sgd(noise_multiplier=0.1)",
        "gaussian_noise(std=100.0)",
        "pruning(rate=1.0)",
        "clipping(max_norm=1.0) | gaussian_noise(std=0.01)",
        "parameter_drift(epochs=1, samples=64)",
    ],
)
@pytest.mark.parametrize("model", ["lenet", "lenet(activation='leaky_relu')"])
def test_no_defense_makes_it_fail(model: str, defense: str, smooth: Data) -> None:
    assert psnr("recursion(iterations=5)", smooth, gitbench.load_model(model, smooth), defense, count=3).isfinite().all()


def test_a_residual_network_is_better_than_where_it_starts(smooth: Data) -> None:
    model = gitbench.load_model("resnet(width=4)", smooth)
    start = psnr("recursion(iterations=0)", smooth, model, count=3)
    assert psnr("recursion(iterations=80)", smooth, model, count=3).mean() > start.mean()


def test_a_batch_is_looked_for_with_all_its_images(smooth: Data) -> None:
    # As many examples as classes: the last layer's inputs cannot be solved, and the start shows mixtures.
    model = gitbench.load_model("mlp", smooth)
    start = psnr("recursion(iterations=0)", smooth, model, count=3, batch=4)
    assert psnr("recursion(iterations=60)", smooth, model, count=3, batch=4).mean() > start.mean() + 3


def test_a_batch_whose_last_layer_is_solved_starts_near_its_images(smooth: Data) -> None:
    assert psnr("recursion(iterations=0)", smooth, gitbench.load_model("mlp", smooth), count=3, batch=2).mean() > 40


def test_unsupported_layers_are_all_named(smooth: Data) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(4 * 10 * 10, 4))
    seen, _ = observed(smooth, model.eval())
    model.train()
    with pytest.raises(AttackError, match=r"'1' \(BatchNorm2d: .*whole batch.*'2' \(Dropout: .*Use ig or dlg"):
        load_attack("recursion")(seen, generator=make_generator(0))


def test_options_are_checked() -> None:
    with pytest.raises(gitbench.GitbenchError, match="limit"):
        load_attack("recursion(limit=0)")


# ------------------------------------------------------------------ one layer


def a_system(layer: Layer, *, seed: int = 0) -> tuple[System, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    unknowns, outputs = math.prod(layer.input_shape), math.prod(layer.output_shape)
    shape = (layer.output_shape[0], layer.input_shape[0], *(layer.kernel or ()))
    weight, inputs, delta = draw(*shape), draw(3, *layer.input_shape), draw(3, *layer.output_shape)
    forward = operators.forward(layer, weight, torch.zeros(shape[0], dtype=torch.float64), inputs).flatten(1)
    doubt = draw(3, outputs).exp()
    doubt[:, ::3] = math.inf
    known = torch.where(doubt.isfinite(), forward, 0)
    gradient = operators.gradient(layer, inputs, delta)[0] + 0.01 * draw(3, *shape)
    prior = Gaussian(draw(unknowns), draw(1).exp().expand(unknowns), None)
    return System(layer, weight, Estimate(known, doubt), delta, gradient, draw(3, shape[0]).exp(), prior), inputs.flatten(1)


LAYERS = {
    "dense": Layer("conv", (2, 6, 6), (3, 3, 3), None, stride=2, padding=1, kernel=(3, 3)),
    "blocks": Layer("conv", (5, 15, 15), (4, 8, 8), None, stride=2, padding=1, kernel=(3, 3)),
    "iterated": Layer("conv", (2, 24, 24), (3, 24, 24), None, stride=1, padding=1, kernel=(3, 3)),
    "wide": Layer("linear", (1100,), (7,), None),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layers_estimate_is_that_of_the_normal_equations_written_out(kind: str) -> None:
    layer = LAYERS[kind]
    system, _ = a_system(layer)
    found = solve(system, iterations=2000)
    unknowns = math.prod(layer.input_shape)
    unit = torch.eye(unknowns, dtype=torch.float64)
    weight = matrix(layer, system.weight)
    for victim in range(2):
        delta = system.delta[victim : victim + 1].expand(unknowns, *layer.output_shape)
        columns = operators.gradient(layer, unit, delta)[0]
        extra = (1,) * (columns.ndim - 2)
        design = (columns / system.deviation[victim].reshape(-1, *extra)).flatten(1)
        aim = (system.gradient[victim] / system.deviation[victim].reshape(-1, *extra)).flatten()
        certainty = 1 / system.forward.variance[victim]
        whole = design @ design.T + weight.T @ (certainty[:, None] * weight) + system.prior.precision()
        right = design @ aim + weight.T @ (certainty * system.forward.mean[victim]) + system.prior.mean / system.prior.spread
        exact = torch.linalg.solve(whole, right)
        assert (found.mean[victim] - exact).abs().max() < 1e-5 * exact.abs().max()
        if kind in ("dense", "wide"):
            assert torch.allclose(found.variance[victim], torch.linalg.inv(whole).diagonal(), rtol=1e-6)
        if kind == "blocks":  # of 16 samples
            ratio = found.variance[victim] / torch.linalg.inv(whole).diagonal()
            assert 0.9 < ratio.mean() < 1.1


@given(size=st.integers(1, 9), inner=st.integers(1, 5), strip=st.integers(1, 10), seed=st.integers(0, 99))
def test_a_symmetric_product_is_right_below_its_diagonal(size: int, inner: int, strip: int, seed: int) -> None:
    left = torch.randn(size, inner, generator=make_generator(seed), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "_STRIP", strip)
        found = step._lower(left, 2 * left)
    torch.testing.assert_close(found.tril(), (2 * left @ left.T).tril())


@given(
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)), side=st.integers(3, 6), stride=st.integers(1, 2), padding=st.integers(0, 1),
    entries=st.sampled_from([1, 50, 2**22]), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_covariance_through_a_convolution_is_the_product_of_written_out_matrices(
    channels: tuple[int, int], side: int, stride: int, padding: int, entries: int, seed: int
) -> None:
    inputs, outputs = channels
    out = (side + 2 * padding - 3) // stride + 1
    layer = Layer("conv", (inputs, side, side), (outputs, out, out), None, stride=stride, padding=padding, kernel=(3, 3))
    weight, root = (
        torch.randn(shape, generator=make_generator(seed), dtype=torch.float64) for shape in ((outputs, inputs, 3, 3), (side**2, 4))
    )
    covariance = root @ root.T
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(through, "_ENTRIES", entries)
        found = through.covariance_through(layer, through.kernel_pairs(weight), covariance)
    written = matrix(layer, weight)
    torch.testing.assert_close(found.tril(), (written @ torch.block_diag(*[covariance] * inputs) @ written.T).tril())


def test_conjugate_gradients_solve_every_system_of_a_stack() -> None:
    generator = torch.Generator().manual_seed(0)
    roots = torch.randn(4, 12, 12, generator=generator, dtype=torch.float64)
    matrices = roots @ roots.mT + torch.eye(12, dtype=torch.float64)
    right = torch.randn(4, 12, generator=generator, dtype=torch.float64)

    def apply(vectors: torch.Tensor) -> torch.Tensor:
        return torch.einsum("vij,vj->vi", matrices, vectors)

    found = conjugate_gradients(apply, right, torch.zeros_like(right), lambda vectors: vectors, iterations=60)
    assert torch.allclose(found, torch.linalg.solve(matrices, right), atol=1e-5)


# ------------------------------------------------------------------ priors


def test_a_prior_knows_how_far_unseen_images_lie_from_it() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(200, 200, generator=generator, dtype=torch.float64) / torch.arange(1, 201)
    rows = torch.randn(600, 200, generator=generator, dtype=torch.float64) @ mixing.T
    prior = of_samples(rows[:400].split(20), hidden=False)
    squares = prior.directions.coordinates(rows[400:] - prior.mean).square() / prior.spread
    assert 0.9 < squares.mean() < 1.2


def test_the_prior_of_photographs_is_one() -> None:
    prior = natural((3, 8, 8))
    covariance = prior.directions.scaled(prior.spread)
    near, far, colour = covariance[0, 1], covariance[0, 7], covariance[0, 64]
    assert prior.spread.min() > 0
    assert covariance[0, 0] > near > far > 0
    assert colour > near
