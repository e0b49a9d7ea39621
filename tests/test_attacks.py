"""Properties of the attacks' parts, against slow oracles."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gitbench
from gitbench.attacker.tools.features import last_features
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.lbfgs import BatchedLbfgs
from gitbench.attacker.tools.matching import DISTANCES, Objective
from gitbench.attacker.tools.regression import fit_linear
from gitbench.clients.data import Data
from gitbench.core.random import make_generator
from helpers import CIFAR10, make_data


def quadratic(victims: int, size: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(victims, size, size, generator=generator, dtype=torch.float64)
    matrix = matrix @ matrix.transpose(1, 2) / size + 0.1 * torch.eye(size, dtype=torch.float64)
    shift = torch.randn(victims, size, generator=generator, dtype=torch.float64)

    def loss(points: torch.Tensor, rows=slice(None)) -> torch.Tensor:
        bowl = 0.5 * torch.einsum("vi,vij,vj->v", points, matrix[rows], points) - (shift[rows] * points).sum(1)
        return bowl + 0.01 * points.pow(4).sum(1)

    return loss, torch.randn(victims, size, generator=generator, dtype=torch.float64)


@given(seed=st.integers(0, 1000), steps=st.integers(1, 25))
def test_lbfgs_does_for_each_victim_what_torch_does_for_one(seed: int, steps: int) -> None:
    loss, start = quadratic(3, 6, seed)

    def closure(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        points = points.detach().requires_grad_(True)
        losses = loss(points)
        return losses.detach(), torch.autograd.grad(losses.sum(), points)[0]

    ours = BatchedLbfgs(start)
    for _ in range(steps):
        ours.step(closure, active=torch.ones(3, dtype=torch.bool))
    for victim in range(3):
        point = start[victim].clone().requires_grad_(True)
        theirs = torch.optim.LBFGS([point], lr=1, max_iter=steps, max_eval=10_000, tolerance_grad=0, tolerance_change=0)

        def one(point=point, victim=victim, theirs=theirs) -> torch.Tensor:
            theirs.zero_grad()
            value = loss(point[None], slice(victim, victim + 1)).sum()
            value.backward()
            return value

        theirs.step(one)
        torch.testing.assert_close(ours.points[victim], point.detach(), rtol=1e-5, atol=1e-7)


def test_lbfgs_leaves_inactive_victims_alone() -> None:
    loss, start = quadratic(2, 4, 0)
    optimizer = BatchedLbfgs(start)
    optimizer.step(lambda points: (loss(points), points), active=torch.tensor([True, False]))
    assert torch.equal(optimizer.points[1], start[1])
    assert not torch.equal(optimizer.points[0], start[0])


@pytest.mark.parametrize("model", ["mlp", "lenet", "resnet(width=4)", "vit(width=16, heads=2, blocks=1)"])
def test_the_last_layers_input_follows_exactly(model: str, data: Data) -> None:
    network = gitbench.load_model(model, data)
    inputs, labels = data.private.inputs[:4][:, None], data.private.labels[:4][:, None]
    observation = gitbench.Observation(update=gitbench.client_update(network, inputs, labels), model=network, input_shape=data.input_shape)
    with torch.no_grad():
        true = network[:-1](inputs[:, 0])
    torch.testing.assert_close(last_features(observation, observation.update, labels)[:, 0], true, rtol=1e-3, atol=1e-4)


def test_ridge_regression_is_that_of_the_normal_equations() -> None:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    pixels = features @ torch.randn(5, 3, generator=generator, dtype=torch.float64) * 0.05 + 0.5
    fitted = fit_linear(features, pixels, held=torch.arange(200) >= 180, thorough=True)
    design = torch.cat([features, torch.ones(200, 1, dtype=torch.float64)], 1)
    expected = design @ torch.linalg.lstsq(design, pixels).solution
    torch.testing.assert_close(fitted(features), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("model", ["mlp", "lenet", "lenet(bias=False)"])
@given(seed=st.integers(0, 100))
def test_labels_of_single_examples_are_inferred(model: str, seed: int) -> None:
    found = make_data(seed=seed)
    network = gitbench.load_model(model, found, seed=seed)
    inputs, labels = found.private.inputs[:8][:, None], found.private.labels[:8][:, None]
    observation = gitbench.Observation(update=gitbench.client_update(network, inputs, labels), model=network, input_shape=found.input_shape)
    assert torch.equal(infer_labels(observation), labels)


def test_labels_of_a_batch_with_repeats_are_inferred(data: Data) -> None:
    network = gitbench.load_model("lenet(init='default')", data)
    labels = torch.tensor([[0, 0, 3, 1], [2, 2, 2, 2]])
    inputs = data.private.inputs[:8].reshape(2, 4, *data.input_shape)
    observation = gitbench.Observation(
        update=gitbench.client_update(network, inputs, labels), model=network, input_shape=data.input_shape, batch_size=4
    )
    assert torch.equal(infer_labels(observation), labels.sort(dim=1).values)


@pytest.mark.parametrize(
    "defense", ["none", "clipping(max_norm=0.1)", "pruning(rate=0.8)", "dp_sgd(noise_multiplier=0.0, max_grad_norm=0.1)"]
)
@pytest.mark.parametrize("distance", DISTANCES)
def test_an_adaptive_attacker_sees_no_distance_at_the_truth(distance: str, defense: str, data: Data) -> None:
    network = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:6].reshape(3, 2, *data.input_shape), data.private.labels[:6].reshape(3, 2)
    protect = gitbench.load_defense(defense)
    observation = gitbench.Observation(
        update=gitbench.client_update(network, inputs, labels, defense=protect),
        model=network,
        input_shape=data.input_shape,
        labels=labels,
        defense=protect,
    )
    adaptive, oblivious = (Objective(seen, distance=distance)(inputs, labels) for seen in (observation, observation.undefended()))
    assert (adaptive.abs() < 1e-5).all()
    if defense != "none" and distance not in ("cosine", "weighted"):
        assert (oblivious > adaptive).all()


def distance_by_hand(distance: str, mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of one victim's gradients, tensor by tensor."""
    if distance == "l2":
        return sum(float((mine[name] - theirs[name]).square().sum()) for name in theirs)
    if distance in ("cosine", "weighted"):
        power = {"cosine": 0.0, "weighted": 0.25}[distance]
        one, other = (torch.cat([tensors[name].flatten() / theirs[name].norm() ** power for name in theirs]) for tensors in (mine, theirs))
        return 1 - float(one @ other / one.norm() / other.norm())
    found = 0.0
    for name, seen in theirs.items():
        one, other = mine[name].flatten(), seen.flatten()
        found += float(1 - one @ other / one.norm() / other.norm() + 0.03 * (one.norm() / other.norm()).log() ** 2) / len(theirs)
    return found


@pytest.mark.parametrize("model", ["mlp", "lenet"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_are_what_they_are_said_to_be(distance: str, model: str, data: Data) -> None:
    network = gitbench.load_model(model, data)
    inputs, labels = data.private.inputs[:6].reshape(3, 2, *data.input_shape), data.private.labels[:6].reshape(3, 2)
    update, guess = gitbench.client_update(network, inputs, labels), inputs.flip(0)
    observation = gitbench.Observation(update=update, model=network, input_shape=data.input_shape, labels=labels)
    mine = gitbench.client_update(network, guess, labels)
    by_hand = [
        distance_by_hand(distance, *({name: tensor[victim].double() for name, tensor in one.tensors.items()} for one in (mine, update)))
        for victim in range(3)
    ]
    assert Objective(observation, distance=distance)(guess, labels).tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-6)


def test_restarts_keep_the_best_matching_loss(data: Data) -> None:
    network = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:4][:, None], data.private.labels[:4][:, None]
    observation = gitbench.Observation(update=gitbench.client_update(network, inputs, labels), model=network, input_shape=data.input_shape)
    objective = Objective(observation, distance="layerwise")
    one, three = (
        gitbench.load_attack(f"ig(iterations=30, tv=0.0, restarts={restarts})")(observation, generator=make_generator(0)).inputs
        for restarts in (1, 3)
    )
    assert (objective(three, labels) <= objective(one, labels) + 1e-6).all()


@pytest.mark.skipif(not CIFAR10.exists(), reason="../shared/data is absent")
def test_ridge_on_cifar10_reaches_its_published_strength() -> None:
    result = gitbench.evaluate(attack="ridge", model="lenet", dataset=f"npz(path={str(CIFAR10)!r})", victims=64, device="cpu")
    assert result.metrics["psnr"].mean >= 23
