"""Dropout as a defense: the masks, by hand; what an attacker makes of them; and where it is refused."""

from __future__ import annotations

import pytest
import torch
from test_defense_catalogue import error, some, tracked
from torch import nn
from torch.nn import functional

import gitbench
from gitbench.clients.client import client_update, expected_update, gradients, own_update
from gitbench.clients.data import Data
from gitbench.clients.defense import Expectation, load_defense
from gitbench.clients.rounds import client_rounds
from gitbench.clients.update import Batch
from gitbench.core.errors import DefenseError
from gitbench.core.random import make_generator


class Repeating(nn.Module):
    """Calls one layer twice, and one on several places of an image; branches on a value, so that it cannot be batched over victims."""

    def __init__(self) -> None:
        super().__init__()
        self.place, self.again, self.last = nn.Linear(24, 6), nn.Linear(48, 48), nn.Linear(48, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.place(inputs.flatten(1).unflatten(1, (8, 24))).sigmoid().flatten(1)
        hidden = self.again(self.again(hidden).tanh())
        return self.last(hidden if float(hidden.sum()) < 1e9 else -hidden)


def model_of(name: str, data: Data) -> nn.Module:
    if name == "mlp":
        return gitbench.load_model("mlp(hidden=(12, 10))", data)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Repeating()


def by_hand(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, factors: torch.Tensor, layers: str) -> torch.Tensor:
    """The gradient of one victim whose linear layers' inputs are multiplied by ``factors`` ``(B, all inputs)``, call by call."""
    taken = 0

    def linear(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        if layers == "last" and layer.out_features != 4:
            return functional.linear(inputs, layer.weight, layer.bias)
        size = inputs[0].numel()
        mask = factors[:, taken : taken + size].reshape(inputs.shape)
        taken += size
        return functional.linear(inputs * mask, layer.weight, layer.bias)

    if isinstance(model, Repeating):
        hidden = linear(model.place, images.flatten(1).unflatten(1, (8, 24))).sigmoid().flatten(1)
        logits = linear(model.last, linear(model.again, linear(model.again, hidden).tanh()))
    else:
        hidden = images
        for module in model:
            hidden = linear(module, hidden) if isinstance(module, nn.Linear) else module(hidden)
        logits = hidden
    assert taken == factors.shape[1]
    found = torch.autograd.grad(functional.cross_entropy(logits, labels), [*model.parameters()])
    return torch.cat([tensor.flatten() for tensor in found])


WIDTHS = {("mlp", "last"): 10, ("mlp", "all"): 192 + 12 + 10, ("repeating", "last"): 48, ("repeating", "all"): 192 + 3 * 48}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "layers"), WIDTHS)
def test_dropout_is_the_gradient_under_masks_of_each_victim_and_image(name: str, layers: str, batch: int, data: Data) -> None:
    model = model_of(name, data)
    inputs, labels = some(data, 4, batch)
    sent = client_update(model, inputs, labels, defense=f"dropout(rate=0.4, layers={layers!r})", generator=make_generator(7))
    drawn = torch.rand((4, batch, WIDTHS[name, layers]), generator=make_generator(7))
    for victim in range(4):
        factors = torch.where(drawn[victim] < 0.4, 0.0, 1 / 0.6)
        truth = by_hand(model, inputs[victim], labels[victim], factors, layers)
        torch.testing.assert_close(sent.flatten()[victim], truth, rtol=1e-4, atol=1e-6)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("layers", ["last", "all"])
def test_dropout_of_nothing_sends_the_gradient(layers: str, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data, 3, 2)
    sent = client_update(model, inputs, labels, defense=f"dropout(rate=0.0, layers={layers!r})")
    torch.testing.assert_close(sent.flatten(), gradients(model, inputs, labels).flatten(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("layers", ["last", "all"])
@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_of_a_single_image_the_attacker_sees_the_mask(rate: float, layers: str, data: Data) -> None:
    model = gitbench.load_model("mlp(hidden=(12,))", data)  # of so few inputs the share that is dropped tells little
    inputs, labels = some(data, 24)
    defense = load_defense(f"dropout(rate={rate}, layers={layers!r})")
    sent = client_update(model, inputs, labels, defense=defense, generator=make_generator(1))
    found = expected_update(model, inputs, labels, expectation=Expectation(defense), observed=sent)
    torch.testing.assert_close(found.flatten(), sent.flatten())
    assert error(gradients(model, inputs, labels), sent) > 0.1


@pytest.mark.parametrize("layers", ["last", "all"])
def test_of_single_images_the_round_is_taken_in_which_fewest_inputs_were_dropped(layers: str, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data, 6)
    defense = load_defense(f"dropout(rate=0.5, layers={layers!r})")
    sent = client_rounds(model, inputs, labels, rounds=5, defense=defense, generator=make_generator(1))
    found = defense.combined(iter(sent))
    for victim in range(6):
        rows = [one.flatten()[victim] for one in sent]
        fewest = min(rows, key=lambda row: int((row == 0).sum()))
        assert torch.equal(found.flatten()[victim], fewest)
    explained = expected_update(model, inputs, labels, expectation=Expectation(defense), observed=found)
    torch.testing.assert_close(explained.flatten(), found.flatten())


@pytest.mark.parametrize("batch", [2, 4])
def test_of_batches_the_mean_is_taken(batch: int, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data, 6, batch)
    defense = load_defense("dropout(rate=0.5)")
    sent = client_rounds(model, inputs, labels, rounds=4, defense=defense, generator=make_generator(1))
    assert torch.equal(defense.combined(iter(sent)).flatten(), gitbench.Update.mean(sent).flatten())


@pytest.mark.parametrize(("batch", "rounds"), [(4, 1), (3, 8), (2, 4)])
def test_where_masks_are_mixed_their_mean_is_expected(batch: int, rounds: int, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data, 6, batch)
    defense = load_defense("dropout(rate=0.5, layers='all')")
    sent = defense.combined(client_rounds(model, inputs, labels, rounds=rounds, defense=defense, generator=make_generator(1)))
    found = expected_update(model, inputs, labels, expectation=Expectation(defense), observed=sent)
    raw = gradients(model, inputs, labels)
    assert error(found, sent) < 1.1 * error(raw, sent)
    assert error(found, raw) < 0.6


def test_zeros_that_are_no_whole_columns_are_not_taken_for_a_mask(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data)
    defense = load_defense("dropout(rate=0.5) | pruning(rate=0.9, by='random')")
    sent = client_update(model, inputs, labels, defense=defense, generator=make_generator(1))
    found = expected_update(model, inputs, labels, expectation=Expectation(load_defense("dropout(rate=0.5)")), observed=sent)
    torch.testing.assert_close(found.flatten(), gradients(model, inputs, labels).flatten())


def test_dp_sgd_may_follow_dropout(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data, 3, 2)
    both = client_update(model, inputs, labels, defense="dropout(rate=0.5) | dp_sgd(noise_multiplier=0.0)", generator=make_generator(2))
    each = [
        client_update(model, inputs[:, one : one + 1], labels[:, one : one + 1], defense="none | dp_sgd(noise_multiplier=0.0)")
        for one in range(2)
    ]
    assert (both.flatten().norm(dim=1) <= 1).all()
    assert error(both, gitbench.Update.mean(each)) > 0.05


def test_dropout_comes_first_and_of_clients_that_send_their_gradient(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data, 2, 2)
    with pytest.raises(DefenseError, match=r"dropout\(rate=0.5\) computes the client's gradient anew.*Put it first"):
        client_update(model, inputs, labels, defense="gaussian_noise(std=0.1) | dropout(rate=0.5)")
    with pytest.raises(DefenseError, match="sends one difference of weights"):
        client_update(model, inputs, labels, defense="dropout(rate=0.5)", client="fedavg(steps=2)")
    summed = client_update(
        model, inputs, labels, defense="dropout(rate=0.5)", client="secure_aggregation(clients=2)", generator=make_generator(3)
    )
    alone = client_update(
        model, inputs.flatten(0, 1)[:, None], labels.flatten()[:, None], defense="dropout(rate=0.5)", generator=make_generator(3)
    )
    torch.testing.assert_close(summed.flatten(), alone.flatten().unflatten(0, (2, 2)).sum(1))


def test_a_model_without_linear_layers_is_refused(data: Data) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    inputs, labels = some(data)
    with pytest.raises(DefenseError, match="drops the inputs of the last linear layer"):
        client_update(model, inputs, labels, defense="dropout(rate=0.5)")
    with pytest.raises(DefenseError, match="calls no linear layer"):
        client_update(model, inputs, labels, defense="dropout(rate=0.5, layers='all')")


def test_the_models_own_dropout_drops_the_same_at_each_call(data: Data) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 4)).train()
    inputs, labels = some(data)
    state = torch.get_rng_state()
    one, other = (client_update(model, inputs, labels, defense="dropout(rate=0.0)").flatten() for _ in range(2))
    assert torch.equal(one, other)
    torch.testing.assert_close(one, gradients(model, inputs, labels, per_example=True).flatten())
    assert torch.equal(torch.get_rng_state(), state)


def test_what_dropout_expects_changes_with_what_it_is_given_where_images_have_no_slope(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data)
    defense = load_defense("dropout(rate=0.5)")
    own = own_update(model, inputs, labels, client=gitbench.load_client("fedsgd"), defense=defense).detach()
    given = tracked(own)
    each = {name: tensor.clone().requires_grad_() for name, tensor in own.per_example.items()}
    found = defense.expected(gitbench.Update(given.tensors, each, Batch(model, inputs, labels)), observed=own)
    assert torch.equal(found.flatten(), defense.expected(own, observed=own).flatten())
    (slope,) = torch.autograd.grad(found.flatten().sum(), [given.tensors["2.weight"]])
    assert torch.equal(slope, torch.ones_like(slope))
