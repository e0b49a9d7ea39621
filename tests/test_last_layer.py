"""The last layer's inputs of a batch: the equations against autograd, and what is solved of real models' updates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn import functional

import gitbench
from gitbench.attacker.attacks.ridge import Ridge
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools import last_layer
from gitbench.attacker.tools.assignment import assigned, matched_error
from gitbench.attacker.tools.batch_equations import Equations, Point, minimised
from gitbench.attacker.tools.features import forward_features
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.last_layer import EXACT, can_be_solved, misfit_of, solved_inputs
from gitbench.attacker.tools.rescaling import is_rescaled
from gitbench.clients.data import Data
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data


@pytest.fixture(scope="module")
def ten() -> Data:
    return make_data(classes=10, public=600, private=64, size=12)


def observe(
    data: Data,
    *,
    batch_size: int = 4,
    victims: int = 6,
    model: str = "mlp(hidden=(40,))",
    defense: str = "none",
    **granted,
):
    network = gitbench.load_model(model, data)
    inputs, labels = gitbench.draw_victims(data.private, victims=victims, batch_size=batch_size, seed=0)
    update = gitbench.client_update(network, inputs, labels, defense=defense, generator=make_generator(0), public=data.public)
    found = {"public": data.public, "defense": defense, **granted}
    observation = Observation(update=update, model=network, input_shape=data.input_shape, batch_size=batch_size, **found)
    return observation, inputs


def problem(seed: int, batch: int, classes: int, features: int = 12) -> tuple[torch.Tensor, Observation, torch.Tensor]:
    """The last layer's inputs ``(1, B, F)`` of a batch, what the server sees, and the labels ``(1, B)``."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(1, batch, features, generator=generator, dtype=torch.float64)
    labels = torch.randint(classes, (1, batch), generator=generator)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes)).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    loss = functional.cross_entropy(model(inputs[0]), labels[0])
    gradients = dict(zip(("1.weight", "1.bias"), torch.autograd.grad(loss, list(model.parameters())), strict=True))
    update = gitbench.Update({name: gradient[None] for name, gradient in gradients.items()})
    return inputs, Observation(update=update, model=model, input_shape=(1, 1, features), batch_size=batch), labels


def mixtures_of(inputs: torch.Tensor, equations: Equations) -> torch.Tensor:
    return functional.pad(inputs, (0, 1), value=1.0) @ torch.linalg.pinv(equations.turn @ equations.spanned)


@given(seed=st.integers(0, 10_000), batch=st.integers(2, 4), classes=st.integers(6, 7))
def test_the_jacobian_s_products_are_those_of_autograd(seed: int, batch: int, classes: int) -> None:
    inputs, observation, labels = problem(seed, batch, classes)
    equations = Equations.of(observation, labels)
    away = torch.randn(1, batch, batch - 1, generator=make_generator(seed), dtype=torch.float64)
    start = mixtures_of(inputs, equations) + functional.pad(away, (1, 0))
    point = Point(start, equations)

    def residual(flat: torch.Tensor) -> torch.Tensor:
        mixture = torch.cat([start[0, :, :1], flat.reshape(batch, batch - 1)], dim=1)
        seen = mixture @ equations.turn[0] @ equations.spanned[0]
        errors = ((seen @ equations.layer.T).softmax(1) - equations.classes[0]) / batch
        weighed = equations.weights[0][:, None] * (errors.T @ seen - equations.gradient[0])
        return (weighed @ equations.spanned[0].T).flatten()

    jacobian = torch.func.jacfwd(residual)(start[0, :, 1:].flatten())
    step = torch.randn(1, batch, batch - 1, generator=make_generator(seed + 1), dtype=torch.float64)
    near = {"rtol": 1e-6, "atol": 1e-9 * float(torch.maximum(jacobian.square().sum(), jacobian.norm()))}
    assert torch.allclose(point.residual.flatten(), residual(start[0, :, 1:].flatten()), **near)
    assert torch.allclose(point.pushed_forward(functional.pad(step, (1, 0))).flatten(), jacobian @ step.flatten(), **near)
    assert torch.allclose(point.pulled_back(point.residual).flatten(), jacobian.T @ point.residual.flatten(), **near)
    assert torch.allclose(point.normal()[0], jacobian.T @ jacobian, **near)


@given(seed=st.integers(0, 10_000), batch=st.integers(2, 4), factor=st.floats(0.01, 100))
def test_at_an_unknown_scale_the_slope_is_that_of_the_best_factor(seed: int, batch: int, factor: float) -> None:
    """The slope of the squared residual is exact; the curvature is that of a residual whose factor moves with the mixtures."""
    inputs, observation, labels = problem(seed, batch, 7)
    sent = observation.with_update(observation.update.map(lambda _, tensor: factor * tensor))
    equations = Equations.of(sent, labels, rescaled=True)
    away = functional.pad(torch.randn(1, batch, batch - 1, generator=make_generator(seed), dtype=torch.float64), (1, 0))
    truth = mixtures_of(inputs, equations)
    assert torch.allclose(Point(truth, equations).factor, torch.tensor(factor, dtype=torch.float64))
    assert float(equations.misfit_of(inputs)) < 1e-20
    assert torch.allclose(equations.inputs(truth), inputs)
    point = Point(truth + away, equations)
    if float(point.factor) == 0:
        return

    def value(flat: torch.Tensor) -> torch.Tensor:
        mixture = torch.cat([truth[0, :, :1], flat.reshape(batch, batch - 1)], dim=1)
        seen = mixture @ equations.turn[0] @ equations.spanned[0]
        errors = ((seen @ equations.layer.T).softmax(1) - equations.classes[0]) / batch
        made = equations.weights[0][:, None] * (errors.T @ seen @ equations.spanned[0].T)
        aim = equations.target[0]
        return ((made * aim).sum() / made.square().sum() * made - aim).square().sum()

    slope = torch.func.grad(value)((truth + away)[0, :, 1:].flatten())
    found = 2 * point.pulled_back(point.residual).flatten()
    assert torch.allclose(found, slope, rtol=1e-5, atol=1e-8 * float(slope.norm()) + 1e-12)
    steps = torch.eye(batch * (batch - 1), dtype=torch.float64).reshape(-1, batch, batch - 1)
    columns = torch.stack([point.pushed_forward(functional.pad(step, (1, 0))[None]).flatten() for step in steps])
    assert torch.allclose(point.normal()[0], columns @ columns.T, rtol=1e-6, atol=1e-9 * float(columns.square().sum()))


def test_a_search_that_starts_at_the_solution_stays_there_and_others_fall() -> None:
    inputs, observation, labels = problem(0, 3, 6)
    equations = Equations.of(observation, labels).of_victims(torch.zeros(2, dtype=torch.long))
    truth = mixtures_of(inputs, equations)[0]
    away = functional.pad(0.1 * torch.randn(3, 2, generator=make_generator(0), dtype=torch.float64), (1, 0))
    starts = torch.stack([truth, truth + away])
    found, misfit = minimised(starts, equations)
    assert torch.allclose(found[0], truth)
    assert misfit[0] < 1e-18
    assert misfit[1] < 1e-3 * Point(starts, equations).value[1] / equations.scale[1]
    assert torch.allclose(equations.inputs(found)[0], inputs[0])


def test_a_row_that_was_not_sent_is_no_equation() -> None:
    inputs, observation, labels = problem(1, 3, 7)
    left = next(label for label in range(7) if label not in labels)
    for tensor in observation.update.tensors.values():
        tensor[:, left] = 0
    assert float(misfit_of(observation, labels, inputs)) < 1e-20


@pytest.mark.parametrize("model", ["mlp(hidden=(40,))", "lenet"])
def test_every_example_s_own_input_is_found(ten: Data, model: str) -> None:
    observation, inputs = observe(ten, model=model)
    assert can_be_solved(observation)
    found = solved_inputs(observation, infer_labels(observation), progress=silent)
    assert found.solved.float().mean() > 0.8
    truth = forward_features(observation.model, inputs.flatten(0, 1))[0].reshape(found.inputs.shape)
    for solution, own in zip(found.inputs[found.solved], truth[found.solved], strict=True):
        distances = torch.cdist(own, solution)
        rows, columns = linear_sum_assignment(distances.numpy())
        assert distances[rows, columns].max() < 1e-2 * own.norm(dim=1).max()


def test_two_runs_find_the_same(ten: Data) -> None:
    observation, _ = observe(ten)
    labels = infer_labels(observation)
    assert torch.equal(*(solved_inputs(observation, labels, progress=silent).inputs for _ in range(2)))


def test_an_update_that_was_clipped_is_solved_with_its_factor(ten: Data) -> None:
    observation, inputs = observe(ten, defense="clipping(max_norm=0.01)")
    found = solved_inputs(observation, infer_labels(observation), progress=silent)
    truth = forward_features(observation.model, inputs.flatten(0, 1))[0].unflatten(0, found.inputs.shape[:2])
    assert found.solved.float().mean() > 0.8
    errors = (found.inputs - assigned(found.inputs, truth))[found.solved]
    assert errors.abs().max() < 1e-2 * truth.norm(dim=2).max()


def test_an_update_that_was_blurred_is_not_said_to_be_solved(ten: Data) -> None:
    observation, _ = observe(ten, defense="gaussian_noise(std=0.01)")
    found = solved_inputs(observation, infer_labels(observation), progress=silent)
    assert not found.solved.any() and (found.misfit > 1e-9).all()


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 1}, {"batch_size": 10}, {"public": None}, {"parameters": False}],
    ids=str,
)
def test_where_nothing_can_be_solved(ten: Data, changes: dict) -> None:
    known = {name: changes[name] for name in ("public", "parameters") if name in changes}
    observation, _ = observe(ten, batch_size=changes.get("batch_size", 4), victims=2, **known)
    assert not can_be_solved(observation)


def test_a_frozen_bias_leaves_nothing_to_solve(ten: Data) -> None:
    observation, _ = observe(ten, victims=2)
    list(observation.model.parameters())[-1].requires_grad_(False)
    assert not can_be_solved(observation)


def test_ridge_sees_each_image_of_a_batch_where_rows_show_a_mixture(ten: Data) -> None:
    observation, inputs = observe(ten, victims=8)

    def error(seen: Observation) -> float:
        attack, generator = Ridge(), make_generator(0)
        state = attack.fit(seen.without_update(), generator=generator, progress=silent, checkpoint=NoCheckpoint())
        found = attack.run(seen, state, generator=generator, progress=silent)
        return float(matched_error(found.flatten(2), inputs.flatten(2)))

    rows = error(observation.restricted(frozenset({"architecture", "public", "defense"})))
    assert error(observation) < 0.5 * rows


def test_a_defense_that_spares_the_last_layer_does_not_hide_its_inputs(ten: Data) -> None:
    observation, _ = observe(ten, defense="pruning(rate=0.5)")  # takes the small entries, which are those of the first layer
    assert solved_inputs(observation, infer_labels(observation), progress=silent).solved.any()


def misfit_that_is_trusted(data: Data, defense: str, client: str) -> float:
    network = gitbench.load_model("mlp(hidden=(40,))", data)
    inputs, labels = gitbench.draw_victims(data.private, victims=2, batch_size=3, seed=0)
    update = gitbench.client_update(network, inputs, labels, defense=defense, client=client)
    known = {"model": network, "input_shape": data.input_shape, "public": data.public, "defense": defense, "client": client}
    observation = Observation(update=update, batch_size=3, **known)
    state = Ridge().fit(observation.without_update(), generator=make_generator(0), progress=silent, checkpoint=NoCheckpoint())
    return float(state["start.solved.tolerance"])


def test_how_far_a_solution_is_trusted_is_learned_from_played_clients(ten: Data) -> None:
    """A difference of float32 weights has few digits of the gradient, and is solved all the same; of noise nothing is."""
    assert misfit_that_is_trusted(ten, "none", "fedsgd") == EXACT
    assert EXACT < misfit_that_is_trusted(ten, "none", "fedavg(steps=1, lr=0.01)") < 1e-6
    assert misfit_that_is_trusted(ten, "gaussian_noise(std=0.1)", "fedsgd") == 0


@pytest.mark.parametrize(
    ("defense", "rescaled"),
    [
        ("none", False),
        ("clipping(max_norm=1e9)", False),
        ("clipping(max_norm=0.01)", True),
        ("clipping(max_norm=0.01, scope='layer')", False),
        ("gaussian_noise(std=0.01)", False),
        ("pruning(rate=0.99)", False),
        ("parameter_drift(epochs=1, samples=64)", False),
    ],
)
def test_an_unknown_scale_is_seen_on_played_clients(ten: Data, defense: str, rescaled: bool) -> None:
    assert is_rescaled(observe(ten, defense=defense)[0]) == rescaled
    assert not is_rescaled(observe(ten, defense=defense, public=None)[0])


def test_the_misfit_of_the_truth_is_rounding(ten: Data) -> None:
    observation, inputs = observe(ten)
    labels = gitbench.draw_victims(ten.private, victims=6, batch_size=4, seed=0)[1]
    truth = forward_features(observation.model, inputs.flatten(0, 1))[0].unflatten(0, labels.shape)
    assert float(misfit_of(observation, labels, truth).max()) < 1e-11
    assert float(misfit_of(observation, labels, truth + 0.1).min()) > 1e-6


def test_of_what_solves_the_equations_the_most_like_public_inputs_is_kept(ten: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where two pairs of one class are nearly alike, a rotation of both differences leaves next to no residual."""
    network = gitbench.load_model("mlp(hidden=(40,))", ten)
    with torch.no_grad():
        list(network.parameters())[-2].mul_(0.02)  # logits that hardly differ, as in a deep network that has not been trained
    rows = torch.cat([(ten.private.labels == label).nonzero().flatten()[:2] for label in (1, 2)])
    inputs, labels = ten.private.inputs[rows][None], ten.private.labels[rows][None]
    update = gitbench.client_update(network, inputs, labels)
    observation = Observation(update=update, model=network, input_shape=ten.input_shape, batch_size=4, public=ten.public)
    public = last_layer._Public(observation, Equations.of(observation, labels).layer)
    found = [solved_inputs(observation, labels, progress=silent)]
    monkeypatch.setattr(last_layer, "_ROUNDS", 1)
    monkeypatch.setattr(last_layer, "_TURNS", 0)
    found.append(solved_inputs(observation, labels, progress=silent))
    several, one = (float(public.plausibility(solution.inputs)) for solution in found)
    assert all(solution.solved.all() for solution in found)
    assert several >= one


def test_examples_of_different_contrast_are_told_from_their_rotation(ten: Data) -> None:
    observation, _ = observe(ten)
    public = last_layer._Public(observation, Equations.of(observation, infer_labels(observation)).layer)
    features = forward_features(observation.model, ten.public.inputs)[0]
    mean = features.mean(0)
    pair = torch.stack([mean + 0.5 * (features[0] - mean), mean + 2 * (features[1] - mean)])
    half = torch.tensor(0.5).sqrt().double()
    mixed = mean + torch.stack([half * (pair[0] + pair[1] - 2 * mean), half * (pair[0] - pair[1])])
    assert public.plausibility(pair[None]) > public.plausibility(mixed[None])
