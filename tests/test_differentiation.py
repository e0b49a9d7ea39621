"""Gradients of models whose layers have no batched form, or no second derivative in their fast form."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

import gitbench
from gitbench.attacker.layers.blocks import modules
from gitbench.attacker.layers.chain import read_chain
from gitbench.clients.client import batchnorm_statistics, gradients
from gitbench.clients.data import Data
from gitbench.core.errors import AttackError
from gitbench.core.random import make_generator
from support import ZOO

KINDS = [
    "tied", "multihead_attention", "transformer_encoder", "lstm", "gru", "branching", "spectral_norm", "weight_norm", "deformable",
    "pixel_embedding", "hardsigmoid", "repeated",
]  # fmt: skip


def victims(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    return data.private.inputs[:6].reshape(3, 2, *data.input_shape), data.private.labels[:6].reshape(3, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_a_plain_loop_also_for_each_example(kind: str, data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:{kind}", data)
    inputs, labels = victims(data)
    update, single = gradients(model, inputs, labels), gradients(model, inputs, labels, per_example=True).per_example
    assert list(update.tensors) == list(single) == [name for name, _ in model.named_parameters()]
    for victim, (batch, targets) in enumerate(zip(inputs, labels, strict=True)):
        found = torch.autograd.grad(functional.cross_entropy(model(batch), targets), list(model.parameters()))
        first = torch.autograd.grad(functional.cross_entropy(model(batch[:1]), targets[:1]), list(model.parameters()))
        for name, whole, one in zip(update.tensors, found, first, strict=True):
            torch.testing.assert_close(update.tensors[name][victim], whole, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(single[name][victim, 0], one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "kind",
    ["multihead_attention", "lstm", "gru", "branching", "tied", "spectral_norm", "group_norm", "layer_norm", "hardsigmoid"],
)
def test_the_second_derivative_is_that_of_finite_differences(kind: str, data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:{kind}", data).double()
    inputs, labels = victims(data)
    inputs = inputs.double().requires_grad_()
    direction, step = torch.randn(inputs.shape, generator=make_generator(0), dtype=torch.float64), 1e-5

    def length(images: torch.Tensor) -> torch.Tensor:
        return gradients(model, images, labels).flatten().square().sum()

    (slope,) = torch.autograd.grad(length(inputs), inputs)
    with torch.no_grad():
        numeric = (length(inputs + step * direction) - length(inputs - step * direction)) / (2 * step)
    torch.testing.assert_close((slope * direction).sum(), numeric, rtol=1e-5, atol=1e-8)


def test_a_layer_that_stands_in_two_places_is_left_as_it_was(data: Data) -> None:
    """torch.func.functional_call alone would leave it with the weights that it was called with."""
    model = gitbench.load_model(f"{ZOO}:repeated", data)
    before = dict(model.named_parameters())
    assert len(before) == 6
    gradients(model, *victims(data))
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is tensor for name, tensor in before.items())
    assert model[2] is model[4]


def test_attention_is_as_fast_as_before_outside_of_gradients(data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:transformer_encoder", data)
    torch.backends.mha.set_fastpath_enabled(True)
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled(), torch.backends.cudnn.enabled
    gradients(model, *victims(data))
    gradients(gitbench.load_model(f"{ZOO}:lstm", data), *victims(data))
    assert before == (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cudnn.enabled,
    )
    assert torch.backends.mha.get_fastpath_enabled()


def test_what_a_model_counts_in_train_mode_is_forgotten(data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:spectral_norm(mode='train')", data)
    before = copy.deepcopy(model.state_dict())
    first, second = (gradients(model, *victims(data)).flatten() for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_architecture_keeps_which_layers_share_a_weight_and_no_values(data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:tied", data)
    seen = gitbench.Observation(update=gradients(model, *victims(data)), model=model, input_shape=data.input_shape)
    found = seen.architecture
    assert found.third.weight is found.second.weight
    assert {tensor.device.type for tensor in (*found.parameters(), *found.buffers())} == {"meta"}
    assert [block.parameters for block in modules(found, data.input_shape)] == [
        ("first.weight", "first.bias"),
        ("second.weight", "second.bias"),
        ("third.bias",),
        ("head.weight", "head.bias"),
    ]


def test_a_chain_whose_layers_share_a_weight_is_none(data: Data) -> None:
    model = gitbench.load_model("mlp(hidden=(12, 12, 12))", data)
    assert read_chain(model, data.input_shape) is not None
    model[6].weight = model[4].weight
    assert read_chain(model, data.input_shape) is None


def test_layers_that_share_a_weight_can_be_trained_and_kept(data: Data, tmp_path) -> None:
    first, second = (gitbench.load_model(f"{ZOO}:tied(trained_epochs=1)", data, cache=tmp_path) for _ in range(2))
    assert torch.equal(first.third.weight, second.third.weight)
    assert second.third.weight is second.second.weight


def test_a_layer_without_a_second_derivative_is_said_to_be_one_in_every_matching_attack(data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:deformable", data)
    seen = gitbench.Observation(update=gradients(model, *victims(data)), model=model, input_shape=data.input_shape, batch_size=2)
    with pytest.raises(AttackError, match=r"a layer of Deformable has no second derivative .*deform_conv2d.* Use ridge, git"):
        gitbench.load_attack("dlg(iterations=1)")(seen, generator=make_generator(0))


def test_batchnorm_statistics_of_a_model_that_branches_are_those_of_each_victim(data: Data) -> None:
    model = gitbench.load_model(f"{ZOO}:branching_norm", data)
    inputs, _ = victims(data)
    mean, var = batchnorm_statistics(model, inputs)["norm"]
    hidden = model.hidden(inputs[1].flatten(1))
    torch.testing.assert_close(mean[1], hidden.mean(0))
    torch.testing.assert_close(var[1], hidden.var(0, unbiased=False))
