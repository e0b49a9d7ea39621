"""GIT: the recursion's algebra against slow and plain oracles, its weights, and the attack as a whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gitbench
from gitbench.attacker.attacks.git.attack import Git
from gitbench.attacker.attacks.git.trained import TrainedRecursion, train_weights
from gitbench.attacker.attacks.git.walk import complete, read_top
from gitbench.attacker.attacks.git.weights import solve_weights
from gitbench.attacker.layers import operators
from gitbench.attacker.layers.chain import Chain, Layer, read_chain
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.tools.regression import LinearMap, fit_linear
from gitbench.clients.client import client_update, gradients
from gitbench.clients.data import Data, Split
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from helpers import make_data


def chain_of(model: nn.Module, shape: tuple[int, int, int]) -> Chain:
    found = read_chain(model, shape)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def rough() -> Data:
    """Rough enough that the first layer's weights show: purely smooth images leave most of each patch unused."""
    found = make_data(size=16, public=600, private=24)
    generator = torch.Generator().manual_seed(9)

    def rough(split: Split) -> Split:
        return Split((0.8 * split.inputs + 0.2 * torch.rand(split.inputs.shape, generator=generator)).clamp(0, 1), split.labels)

    return Data(rough(found.public), rough(found.private), classes=found.classes, name="rough")


def pairs(model: nn.Module, data: Data, count: int) -> tuple[Update, torch.Tensor, torch.Tensor]:
    inputs, labels = data.public.inputs[:count], data.public.labels[:count]
    return gradients(model, inputs[:, None], labels[:, None]), inputs, labels


# ------------------------------------------------------------------ reading the model


@pytest.mark.parametrize("spec", ["lenet", "lenet(activation='relu', layers=4)", "mlp", "mlp(hidden=(24, 16), activation='tanh')"])
def test_chain_of_the_sequential_models(spec: str, rough: Data) -> None:
    model = gitbench.load_model(spec, rough)
    chain = chain_of(model, rough.input_shape)
    assert [f"{layer.name}.weight" for layer in chain.layers] == [name for name, _ in model.named_parameters() if name.endswith("weight")]
    assert chain.layers[-1].activation is None
    assert all(layer.activation is not None for layer in chain.layers[:-1])


@pytest.mark.parametrize("spec", ["resnet", "vit"])
def test_what_is_no_chain_is_none(spec: str, rough: Data) -> None:
    assert read_chain(gitbench.load_model(spec, rough), rough.input_shape) is None


def test_two_layers_without_an_activation_are_no_chain() -> None:
    assert read_chain(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Linear(5, 3)), (3, 2, 2)) is None


# ------------------------------------------------------------------ one layer


def conv_layer(side: int, stride: int, padding: int, kernel: int, inputs: int = 2, outputs: int = 3) -> Layer:
    out = (side + 2 * padding - kernel) // stride + 1
    return Layer("c", (inputs, side, side), (outputs, out, out), nn.Sigmoid(), stride, padding, (kernel, kernel))


@given(side=st.integers(4, 9), stride=st.integers(1, 3), padding=st.integers(0, 2), kernel=st.integers(1, 4), seed=st.integers(0, 2**30))
@settings(max_examples=30, deadline=None)
def test_layer_operators_agree_with_autograd(side: int, stride: int, padding: int, kernel: int, seed: int) -> None:
    layer = conv_layer(side, stride, padding, kernel)
    generator = torch.Generator().manual_seed(seed)
    conv = nn.Conv2d(2, 3, kernel, stride=stride, padding=padding).double()
    inputs = torch.randn(1, 2, side, side, generator=generator, dtype=torch.float64, requires_grad=True)
    outputs = conv(inputs)
    delta = torch.randn(outputs.shape, generator=generator, dtype=torch.float64)
    by_input, by_weight, by_bias = torch.autograd.grad((outputs * delta).sum(), [inputs, conv.weight, conv.bias])
    found = operators.gradient(layer, inputs.detach(), delta)
    torch.testing.assert_close(found[0][0], by_weight)
    torch.testing.assert_close(found[1][0], by_bias)
    torch.testing.assert_close(operators.backward(layer, conv.weight.detach(), delta), by_input)


@given(side=st.integers(4, 7), stride=st.integers(1, 2), padding=st.integers(0, 2), kernel=st.integers(1, 4), seed=st.integers(0, 2**30))
@settings(max_examples=20, deadline=None)
def test_solve_agrees_with_dense_least_squares(side: int, stride: int, padding: int, kernel: int, seed: int) -> None:
    layer = conv_layer(side, stride, padding, kernel)
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    delta, gradient, prior = drawn(2, *layer.output_shape), drawn(2, 3, 2, kernel, kernel), drawn(2, *layer.input_shape)
    root = drawn(side * side, side * side)
    precision, variance = root @ root.T + torch.eye(side * side), 0.3
    found = operators.solve(layer, delta, gradient, prior=prior, precision=precision, variance=variance)
    for victim in range(2):
        # The operator column by column: what one pixel of one channel adds to the gradient.
        columns = []
        for pixel in range(side * side):
            basis = torch.zeros(1, 2, side, side, dtype=torch.float64)
            basis[0, 0].view(-1)[pixel] = 1
            columns.append(operators.gradient(layer, basis, delta[victim : victim + 1])[0][0, :, 0].flatten())
        operator = torch.stack(columns, dim=1)
        for channel in range(2):
            aim = gradient[victim, :, channel].flatten() - operator @ prior[victim, channel].flatten()
            step = torch.linalg.solve(operator.T @ operator / variance + precision, operator.T @ aim / variance)
            torch.testing.assert_close(found[victim, channel].flatten(), prior[victim, channel].flatten() + step)


@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.Tanh(), nn.LeakyReLU(0.1), nn.ReLU()])
def test_derivative_and_inverse_follow_from_the_output(activation: nn.Module) -> None:
    inputs = torch.linspace(-2, 2, 41, dtype=torch.float64, requires_grad=True)
    outputs = activation(inputs)
    (slope,) = torch.autograd.grad(outputs.sum(), inputs)
    torch.testing.assert_close(operators.derivative(activation, outputs.detach()), slope)
    back = operators.inverse(activation, outputs.detach())
    kept = inputs.detach() > 0 if isinstance(activation, nn.ReLU) else torch.ones(41, dtype=torch.bool)
    torch.testing.assert_close(back[kept], inputs.detach()[kept])


def test_a_system_beyond_float32_leaves_the_prior() -> None:
    layer = conv_layer(4, 1, 1, 3)
    prior = torch.rand(2, 2, 4, 4)
    bad = torch.full((2, 3, 4, 4), float("nan"))
    found = operators.solve(layer, bad, torch.rand(2, 3, 2, 3, 3), prior=prior, precision=torch.eye(16), variance=1.0)
    assert torch.equal(found, prior)


# ------------------------------------------------------------------ the recursion


@pytest.mark.parametrize("activation", ["sigmoid", "tanh", "leaky_relu"])
@pytest.mark.parametrize("hidden", [(48,), (32, 24)])
def test_recursion_with_the_true_weights_recovers_the_input(activation: str, hidden: tuple[int, ...], rough: Data) -> None:
    model = gitbench.load_model(f"mlp(hidden={hidden}, activation={activation!r})", rough).double()
    chain = chain_of(model, rough.input_shape)
    inputs = rough.private.inputs[:16].double()
    raw = gradients(model, inputs[:, None], rough.private.labels[:16, None])
    # No bias's gradient but the last layer's: delta comes down by the weights alone.
    seen = {name: tensor for name, tensor in raw.tensors.items() if name.endswith("weight") or name.startswith(chain.layers[-1].name)}
    recursion = TrainedRecursion(chain, {name: parameter.detach() for name, parameter in model.named_parameters()})
    torch.testing.assert_close(recursion(seen).detach(), inputs.flatten(1), atol=1e-6, rtol=0)


def centred(weight: torch.Tensor) -> torch.Tensor:
    """The last layer's rows are known up to a common one: a softmax does not see it."""
    return weight - weight.mean(0)


def test_trained_weights_converge_to_the_models(rough: Data) -> None:
    model = gitbench.load_model("mlp", rough)
    chain = chain_of(model, rough.input_shape)
    raw, inputs, _ = pairs(model, rough, 400)
    truth = centred(dict(model.named_parameters())["4.weight"].detach())
    distances, losses = [], []

    def watch(_step: int, loss: float, weights: dict[str, torch.Tensor]) -> None:
        distances.append(float((centred(weights["4.weight"]) - truth).norm() / truth.norm()))
        losses.append(loss)

    train_weights(chain, raw, inputs, generator=make_generator(0), progress=silent, watch=watch)
    assert distances[-1] < distances[0] / 10
    assert losses[-1] < losses[0] / 10


def test_trained_weights_refuse_a_convolution(rough: Data) -> None:
    model = gitbench.load_model("lenet", rough)
    raw, inputs, _ = pairs(model, rough, 8)
    with pytest.raises(AttackError, match="weights='solved'"):
        train_weights(chain_of(model, rough.input_shape), raw, inputs, generator=make_generator(0), progress=silent)


@pytest.mark.parametrize("spec", ["lenet", "lenet(layers=2)", "mlp(hidden=(24, 16))"])
def test_solved_weights_are_the_models(spec: str, rough: Data) -> None:
    model = gitbench.load_model(spec, rough)
    chain = chain_of(model, rough.input_shape)
    raw, inputs, labels = pairs(model, rough, 600)
    found = solve_weights(chain, raw, inputs, labels)
    assert found is not None
    truth = {name: parameter.detach() for name, parameter in model.named_parameters()}
    for name, tensor in found.items():
        aim = centred(truth[name]) if name.startswith(chain.layers[-1].name) else truth[name]
        if name.endswith("weight"):
            assert float((tensor - aim).norm() / aim.norm()) < 0.1, name


def test_too_few_pairs_solve_no_weights(rough: Data) -> None:
    model = gitbench.load_model("lenet", rough)
    raw, inputs, labels = pairs(model, rough, 40)
    assert solve_weights(chain_of(model, rough.input_shape), raw, inputs, labels) is None


# ------------------------------------------------------------------ the top


def test_top_is_exact_without_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn(5, 4, generator=generator)
    delta = delta - delta.mean(1, keepdim=True)
    feature = torch.rand(5, 7, generator=generator)
    weight = delta[:, :, None] * feature[:, None]
    mean, spread = torch.full((7,), 0.5), torch.full((7,), 0.3)
    for bias in (delta, None):
        found, read, seen = read_top(weight, bias, mean=mean, spread=spread, noise=0.0, sparse=False)
        assert seen.all()
        torch.testing.assert_close(found[:, :, None] * read[:, None], weight)
        if bias is not None:
            torch.testing.assert_close(read, feature, atol=1e-4, rtol=1e-3)


def test_completion_is_the_gaussian_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator))
    power, rest = torch.tensor([3.0, 2.0, 1.0, 0.5, 0.4, 0.3]), torch.full((6,), 1e-4)
    centre, values = torch.randn(6, generator=generator), torch.randn(1, 6, generator=generator)
    seen = torch.tensor([[True, True, False, True, False, False]])
    found = complete(values, seen, centre, basis, power, rest)
    covariance = basis @ torch.diag(power) @ basis.T
    there = seen[0]
    inner = covariance[there][:, there] + 1e-4 * torch.eye(3)
    told = covariance[~there][:, there] @ torch.linalg.solve(inner, (values[0] - centre)[there])
    torch.testing.assert_close(found[0, ~there], centre[~there] + told, atol=1e-3, rtol=1e-3)
    assert torch.equal(found[seen], values[seen])


# ------------------------------------------------------------------ regression


def test_linear_map_finds_a_linear_relation_and_travels() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(200, 6, generator=generator), torch.randn(6, 3, generator=generator)
    targets = inputs @ weight + 2
    found = fit_linear(inputs, targets, held=torch.arange(200) >= 150)
    torch.testing.assert_close(found(inputs), targets, atol=1e-3, rtol=0)
    again = LinearMap.stored(found.tensors("x"), "x")
    assert torch.equal(again(inputs), found(inputs))


# ------------------------------------------------------------------ the attack


def observe(model: nn.Module, data: Data, update: Update, **granted: object) -> gitbench.Observation:
    return gitbench.Observation(
        update=update, model=model, input_shape=data.input_shape, batch_size=1, public=data.public, parameters=False, **granted
    )


def attacked(attack: Git, model: nn.Module, data: Data, update: Update, **granted: object) -> torch.Tensor:
    return attack(observe(model, data, update, **granted), generator=make_generator(0)).inputs


def victims_of(data: Data, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    return data.private.inputs[:count, None], data.private.labels[:count, None]


@pytest.mark.parametrize("variant", ["exact", "coarse"])
def test_result_does_not_depend_on_the_order_of_the_tensors(variant: str, rough: Data) -> None:
    model = gitbench.load_model("lenet", rough)
    update = client_update(model, *victims_of(rough))
    turned = Update(dict(reversed(update.tensors.items())))
    attack = Git(variant=variant, epochs=1, width=16)
    assert torch.equal(attacked(attack, model, rough, update), attacked(attack, model, rough, turned))


@pytest.mark.parametrize(("spec", "least"), [("lenet", 20.0), ("mlp", 40.0)])
def test_exact_reads_neither_labels_nor_parameters_and_is_far_better_than_blind(spec: str, least: float, rough: Data) -> None:
    model = gitbench.load_model(spec, rough)
    inputs, labels = victims_of(rough)
    found = attacked(Git(variant="exact", epochs=1, width=16), model, rough, client_update(model, inputs, labels))
    assert float(gitbench.score(found, inputs)["psnr"].mean()) > least


def test_knowing_the_noise_helps(rough: Data) -> None:
    model = gitbench.load_model("lenet", rough)
    inputs, labels = victims_of(rough)
    defense = gitbench.load_defense("gaussian_noise(std=0.05)")
    update = client_update(model, inputs, labels, defense=defense, generator=make_generator(1))
    errors = []
    for adapt in (True, False):
        found = attacked(Git(variant="exact", epochs=1, width=16, polish=0, adapt=adapt), model, rough, update, defense=defense)
        errors.append(float((found - inputs).square().mean()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "defense",
    [
        *("pruning(rate=0.9)", "pruning(rate=0.999)", "clipping(max_norm=0.1)"),
        pytest.param("dp_sgd(noise_multiplier=1.0)", marks=pytest.mark.slow),
    ],
)
def test_exact_survives_every_kind_of_update(defense: str, rough: Data) -> None:
    model = gitbench.load_model("lenet", rough)
    inputs, labels = victims_of(rough)
    built = gitbench.load_defense(defense)
    sent = client_update(model, inputs, labels, defense=built, generator=make_generator(1))
    empty = sent.map(lambda _, tensor: torch.zeros_like(tensor))
    attack, generator = Git(variant="exact", epochs=1, width=16, draws=1), make_generator(0)
    known = observe(model, rough, sent, defense=built).without_update()
    state = attack.fit(known, generator=generator, progress=silent, checkpoint=NoCheckpoint())
    for update in (sent, empty):
        found = attack.run(observe(model, rough, update, defense=built), state, generator=generator, progress=silent)
        assert torch.isfinite(found).all()


def test_auto_takes_coarse_where_the_weights_do_not_follow(rough: Data) -> None:
    model = gitbench.load_model("resnet(width=4)", rough)
    inputs, labels = victims_of(rough)
    observation = observe(model, rough, client_update(model, inputs, labels))
    state = Git(epochs=1).fit(observation.without_update(), generator=make_generator(0), progress=silent, checkpoint=NoCheckpoint())
    assert not bool(state["exact"])
    with pytest.raises(AttackError, match="no chain of linear layers"):
        Git(variant="exact")(observation, generator=make_generator(0))


def test_memory_of_what_is_no_chain_is_bounded(rough: Data) -> None:
    model = gitbench.load_model("resnet", rough)
    observation = observe(model, rough, client_update(model, *victims_of(rough, 1)))
    entries = sum(parameter.numel() for parameter in model.parameters())
    assert Git().memory(observation) <= 2 * 4 * entries * len(rough.public)
    assert Git().memory(observation) <= 6 * 2**30


def test_trained_weights_serve_the_attack(rough: Data) -> None:
    model = gitbench.load_model("mlp", rough)
    inputs, labels = victims_of(rough)
    attack = Git(variant="exact", weights="trained", epochs=1, width=16)
    found = attacked(attack, model, rough, client_update(model, inputs, labels))
    assert float(gitbench.score(found, inputs)["psnr"].mean()) > 30


@pytest.mark.parametrize("options", [{"variant": "fine"}, {"weights": "known"}, {"width": 0}, {"holdout": 1.0}, {"limit": 3}])
def test_bad_options_are_named(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Git(**options)
