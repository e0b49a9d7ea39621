"""Defenses on the representation or the model: Soteria and PRECODE against slow definitions, and layers that draw."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import gitbench
import zoo
from gitbench.clients.client import client_update, gradients, own_update
from gitbench.clients.differentiation import _one_by_one
from gitbench.clients.model import last_linear
from gitbench.clients.output import output_of
from gitbench.clients.procedure import load_client
from gitbench.clients.rounds import client_rounds
from gitbench.clients.stochastic import Stochastic, drawing, stochastic_layers
from gitbench.clients.update import Batch, Update
from gitbench.core.errors import DefenseError, SpecError
from gitbench.core.random import derived_seed, make_generator, seeded_by
from helpers import make_data

DATA = make_data()
MLP = "mlp(hidden=(12, 8), activation='{}')"


def victims(count: int = 3, size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = DATA.private.inputs[: count * size], DATA.private.labels[: count * size]
    return inputs.unflatten(0, (count, size)), labels.unflatten(0, (count, size))


def raw_update(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Update:
    return gradients(model, inputs, labels).of(Batch(model, inputs, labels))


# ------------------------------------------------------------------ Soteria


def slow_scores(model: nn.Module, layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    """As the authors' code: an image, a feature at a time."""
    found = []
    for images in inputs:
        total = torch.zeros(layer.in_features)
        for image in images:
            features = lambda one: _input_of(model, layer, one[None])[0]  # noqa: E731
            jacobian = torch.autograd.functional.jacobian(features, image)
            for feature, value in enumerate(features(image)):
                total[feature] += jacobian[feature].norm() / (value.detach() + 0.1)
        found.append(total.abs())
    return torch.stack(found)


def _input_of(model: nn.Module, layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _layer, arguments: seen.append(arguments[0]))
    model(inputs)
    handle.remove()
    return seen[0]


@settings(max_examples=10)
@given(
    rate=st.floats(0, 1),
    activation=st.sampled_from(["sigmoid", "relu", "tanh"]),
    layer=st.sampled_from([None, "6", "4"]),
    size=st.integers(1, 3),
)
def test_soteria_zeroes_the_columns_of_the_features_with_the_lowest_scores(
    rate: float, activation: str, layer: str | None, size: int
) -> None:
    model = gitbench.load_model(MLP.format(activation), DATA)
    defended = model.get_submodule(layer or "6")
    defense = gitbench.load_defense(f"soteria(rate={rate!r}, layer={layer!r})")
    update = raw_update(model, *victims(size=size))
    sent = defense.protect(update, generator=make_generator(0))
    scores = slow_scores(model, defended, update.batch.inputs)
    torch.testing.assert_close(defense.scores(update.batch), scores, rtol=1e-3, atol=1e-5)
    weight = f"{layer or '6'}.weight"
    for name, tensor in sent.tensors.items():
        if name != weight:
            assert torch.equal(tensor, update.tensors[name])
    zeroed = round(rate * defended.in_features)
    for row, (score, before, after) in enumerate(
        zip(defense.scores(update.batch), update.tensors[weight], sent.tensors[weight], strict=True)
    ):
        lowest = score.argsort()[:zeroed]
        kept = torch.ones(len(score), dtype=torch.bool)
        kept[lowest] = False
        if zeroed in (0, len(score)) or score.sort().values[zeroed - 1] < score.sort().values[zeroed]:  # of ties, any
            assert torch.equal(after, before * kept), row
        # The authors' mask: below a percentile.
        theirs = score.numpy() < np.percentile(score.numpy(), 100 * rate)
        assert abs(int(theirs.sum()) - zeroed) <= 1 or len(score.unique()) < len(score)


@pytest.mark.parametrize("model", ["lenet", "mlp(activation='relu')"])
def test_the_attacker_sees_which_columns_are_gone(model: str) -> None:
    network = gitbench.load_model(model, DATA)
    update = raw_update(network, *victims())
    defense = gitbench.load_defense("soteria(rate=0.5)")
    sent = defense.protect(update, generator=make_generator(0))
    torch.testing.assert_close(defense.expected(update, observed=sent).flatten(), sent.flatten())
    torch.testing.assert_close(defense.expected(Update(update.tensors), observed=sent).flatten(), sent.flatten(), atol=1e-6, rtol=0.0)
    other = raw_update(network, *(tensor.flip(0) for tensor in victims()))
    seen = defense.expected(other, observed=sent).tensors
    weight = f"{last_linear(network)[0]}.weight"
    gone = (sent.tensors[weight] == 0).all(1)
    assert (seen[weight] == 0).all(1)[gone].all()
    assert torch.equal(seen[weight].mT[~gone], other.tensors[weight].mT[~gone])


def test_soteria_in_train_mode_is_of_each_victims_own_batch() -> None:
    model = gitbench.load_model(f"{zoo.__file__}:batch_norm(mode='train')", DATA)
    defense, (inputs, labels) = gitbench.load_defense("soteria(rate=0.5)"), victims()
    alone = torch.cat([defense.scores(Batch(model, inputs[row : row + 1], labels[row : row + 1])) for row in range(3)])
    torch.testing.assert_close(defense.scores(Batch(model, inputs, labels)), alone)


@pytest.mark.parametrize(
    ("spec", "model", "message"),
    [
        ("soteria(rate=0.5, layer='9')", "mlp", r"to name a torch.nn.Linear, found no module. There are: 2, 4\."),
        ("soteria(rate=0.5, layer='1')", "lenet", "found Conv2d"),
        ("soteria(rate=0.5)", "mlp(frozen='4')", r"no gradient of '4.weight'.*it is frozen. Choose another layer="),
        ("soteria(rate=0.5, layer='blocks.0.mlp.0')", "vit", "one vector of features for each image"),
        ("precode", "mlp", r"without a bottleneck. Use precode.modify_model\(model\)"),
    ],
)
def test_what_cannot_be_defended_is_an_error_that_says_what_to_do(spec: str, model: str, message: str) -> None:
    network = gitbench.load_model(model, DATA)
    if "vit" in model:
        linear = next(name for name, module in network.named_modules() if isinstance(module, nn.Linear))
        spec = f"soteria(rate=0.5, layer={linear!r})"
    with pytest.raises(DefenseError, match=message):
        client_update(network, *victims(), defense=spec)


# ------------------------------------------------------------------ PRECODE


def bottled(model: str = "mlp(hidden=(12,))", spec: str = "precode(width=5)") -> nn.Module:
    return gitbench.load_defense(spec).modify_model(gitbench.load_model(model, DATA))


def slow_gradients(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, noise: torch.Tensor, *, beta: float) -> list[torch.Tensor]:
    """By the definition, from the modules of an ``mlp``, of one victim."""
    model = copy.deepcopy(model)
    bottleneck = model.get_submodule("4.precode")
    features = model[:4](images)
    statistics = bottleneck.encoder(features)
    mean, std = statistics[:, :5], functional.softplus(statistics[:, 5:])
    logits = model.get_submodule("4.classifier")(bottleneck.decoder(mean + std * noise))
    normal = torch.distributions.Normal
    bits = torch.distributions.kl_divergence(normal(mean, std), normal(0.0, 1.0)).sum(1).mean() / math.log(2)
    loss = functional.cross_entropy(logits, labels) + beta * bits
    return list(torch.autograd.grad(loss, [*model.parameters()]))


@settings(max_examples=10)
@given(seed=st.integers(0, 99), beta=st.sampled_from([0.0, 1e-3, 0.5]), size=st.integers(1, 3))
def test_precode_is_the_gradient_of_the_sampled_loss_with_its_divergence(seed: int, beta: float, size: int) -> None:
    defense = f"precode(width=5, beta={beta})"
    model, (inputs, labels) = bottled(spec=defense), victims(size=size)
    found = client_update(model, inputs, labels, defense=defense, generator=make_generator(seed))
    drawn = int(torch.randint(2**62, (), generator=make_generator(seed)))
    with seeded_by(derived_seed(drawn, "1")):
        noise = torch.randn(3, size, 5)
    for row in range(3):
        slow = slow_gradients(model, inputs[row], labels[row], noise[row], beta=beta)
        for (name, tensor), expected in zip(found.tensors.items(), slow, strict=True):
            torch.testing.assert_close(tensor[row], expected, atol=1e-5, rtol=1e-3, msg=lambda text, name=name: f"{name}: {text}")


def test_an_attacker_computes_with_the_mean() -> None:
    model, (inputs, labels) = bottled(), victims()
    own = own_update(model, inputs, labels, client=load_client(None), defense=gitbench.load_defense("precode(width=5)"))
    for row in range(3):
        slow = slow_gradients(model, inputs[row], labels[row], torch.zeros(2, 5), beta=1e-3)
        for tensor, expected in zip(own.tensors.values(), slow, strict=True):
            torch.testing.assert_close(tensor[row], expected, atol=1e-5, rtol=1e-3)
    assert all(layer.seed is None for layer in stochastic_layers(model))
    observed = client_update(model, inputs, labels, defense="precode(width=5)")
    seen = gitbench.load_defense("precode(width=5)").expected(own, observed=observed).tensors
    for name, tensor in seen.items():
        assert torch.equal(tensor, (own if name.startswith("2.") else observed).tensors[name])


@pytest.mark.parametrize("client", ["fedsgd", "fedavg(steps=3, lr=0.1)", "secure_aggregation(clients=2)"])
def test_the_sample_is_fresh_for_each_victim_round_and_step(client: str) -> None:
    model = bottled()
    inputs, labels = (tensor[:1].expand(3, *tensor.shape[1:]) for tensor in victims(size=4))
    rounds = client_rounds(model, inputs, labels, rounds=2, defense="precode(width=5)", client=client)
    rows = torch.cat([update.flatten() for update in rounds])
    assert len(rows.unique(dim=0)) == 6
    again = client_rounds(model, inputs, labels, rounds=2, defense="precode(width=5)", client=client)
    assert torch.equal(rows, torch.cat([update.flatten() for update in again]))
    other = client_update(model, inputs, labels, defense="precode(width=5)", client=client, generator=make_generator(7))
    assert not (other.flatten() == rows[:3]).all(1).any()


class Counted(Stochastic):
    """Adds noise to the logits, and keeps what it drew."""

    def __init__(self):
        super().__init__()
        self.seen: list[torch.Tensor] = []

    def forward(self, inputs):
        noise = self.noise(inputs)
        if not torch._C._functorch.is_functorch_wrapped_tensor(noise):
            self.seen.append(noise)
        return inputs + noise


def test_the_noise_is_standard_normal_and_zero_for_everybody_else() -> None:
    layer = Counted()
    assert torch.equal(layer(torch.zeros(4, 3)), torch.zeros(4, 3))
    client = drawing(layer, make_generator(0))
    assert layer.seed is None
    before = torch.get_rng_state()
    found = torch.cat([client(torch.zeros(2000, 3)) for _ in range(4)])
    assert torch.equal(torch.get_rng_state(), before)
    assert found.mean().item() == pytest.approx(0, abs=0.03)
    assert found.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(found.reshape(4, -1)).fill_diagonal_(0).abs().max() < 0.05
    plain = nn.Linear(2, 2)
    assert drawing(plain, make_generator(0)) is plain


def test_one_victim_after_the_other_draws_for_each_by_itself() -> None:
    model, (inputs, labels) = drawing(bottled(), make_generator(0)), victims()
    parameters = dict(model.named_parameters())

    def loss(weights, batch, targets):
        return functional.cross_entropy(torch.func.functional_call(model, (dict(weights),), (batch,)), targets)

    same = inputs[:1].expand(3, -1, -1, -1, -1), labels[:1].expand(3, -1)
    found = _one_by_one(loss, parameters, *same, per_example=False, own_weights=False)
    assert len(found["2.weight"].flatten(1).unique(dim=0)) == 3
    recurrent = gitbench.load_defense("precode(width=5)").modify_model(gitbench.load_model(f"{zoo.__file__}:lstm", DATA))
    sent = client_update(recurrent, *same, defense="precode(width=5)").flatten()
    assert len(sent.unique(dim=0)) == 3


@pytest.mark.parametrize("model", ["mlp", "lenet", "resnet", "vit", "torchvision(name='resnet18')"])
def test_the_bottleneck_stands_before_the_classifier_of_any_model(model: str) -> None:
    data = make_data(size=32, public=8, private=4) if "torchvision" in model else DATA
    network = gitbench.load_model(model, data)
    values = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    defense = gitbench.load_defense("precode")
    one, same = defense.modify_model(network), defense.modify_model(network)
    other = defense.modify_model(gitbench.load_model(model, data, seed=1))
    assert all(torch.equal(tensor, values[name]) for name, tensor in network.state_dict().items())
    assert all(torch.equal(tensor, same.state_dict()[name]) for name, tensor in one.state_dict().items())
    (bottleneck,) = stochastic_layers(one)
    assert not torch.equal(bottleneck.encoder.weight, stochastic_layers(other)[0].encoder.weight)
    assert bottleneck.encoder.out_features == 2 * 256
    assert output_of(one).classifier == f"{last_linear(network)[0]}.classifier" == last_linear(one)[0]
    inputs, labels = data.private.inputs[:2][:, None], data.private.labels[:2][:, None]
    assert torch.isfinite(client_update(one, inputs, labels, defense=defense).flatten()).all()
    assert not one.training


@pytest.mark.parametrize(
    "spec", ["soteria(rate=1.5)", "soteria(rate=0.5, layer=4)", "precode(width=0)", "precode(width=2.5)", "precode(beta=-1)"]
)
def test_impossible_options_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="refuses its options: expected"):
        gitbench.load_defense(spec)
