"""The client update against a slow, obviously right loop."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import gitbench
from gitbench.clients.client import batchnorm_statistics, gradients
from gitbench.core.errors import DefenseError, ModelError
from helpers import make_data

SPECS = ["mlp", "lenet", "lenet(activation='relu', init='default', bias=False)", "resnet(width=4)", "vit(width=16, heads=2, blocks=1)"]


def loop(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
    """The oracle: one victim after the other with plain autograd."""
    names = [name for name, _ in model.named_parameters()]
    rows = []
    for batch, targets in zip(inputs, labels, strict=True):
        loss = functional.cross_entropy(model(batch), targets)
        rows.append(torch.autograd.grad(loss, list(model.parameters())))
    return {name: torch.stack(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    scale = max(float(tensor.abs().max()) for tensor in expected.values())
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-5 * scale, name


@pytest.mark.parametrize("spec", SPECS)
@given(victims=st.integers(1, 4), batch=st.integers(1, 3), size=st.sampled_from([8, 12]), channels=st.sampled_from([1, 3]))
def test_equals_a_plain_loop(spec: str, victims: int, batch: int, size: int, channels: int) -> None:
    found = make_data(size=size, channels=channels)
    model = gitbench.load_model(spec, found)
    inputs = found.private.inputs[: victims * batch].reshape(victims, batch, channels, size, size)
    labels = found.private.labels[: victims * batch].reshape(victims, batch)
    update = gitbench.client_update(model, inputs, labels)
    assert_close(dict(update.tensors), loop(model, inputs, labels))


def test_equals_a_plain_loop_with_batchnorm_in_train_mode(data: gitbench.Data) -> None:
    model = gitbench.load_model("resnet(width=4, mode='train')", data)
    inputs, labels = data.private.inputs[:12].reshape(3, 4, 3, 8, 8), data.private.labels[:12].reshape(3, 4)
    update = gitbench.client_update(model, inputs, labels)
    assert_close(dict(update.tensors), loop(model, inputs, labels))


def test_train_and_eval_mode_differ(data: gitbench.Data) -> None:
    inputs, labels = data.private.inputs[:4][None], data.private.labels[:4][None]
    flat = [
        gitbench.client_update(gitbench.load_model(f"resnet(width=4, mode={mode!r})", data), inputs, labels).flatten()
        for mode in ("eval", "train")
    ]
    assert not torch.allclose(*flat)


def test_per_example_gradients_average_to_the_update(data: gitbench.Data) -> None:
    model = gitbench.load_model("lenet", data)
    inputs, labels = data.private.inputs[:6].reshape(2, 3, 3, 8, 8), data.private.labels[:6].reshape(2, 3)
    update = gradients(model, inputs, labels, per_example=True)
    assert update.per_example is not None
    assert_close(dict(update.tensors), loop(model, inputs, labels))
    singles = gradients(model, inputs.reshape(6, 1, 3, 8, 8), labels.reshape(6, 1))
    for name, tensor in singles.tensors.items():
        torch.testing.assert_close(update.per_example[name].flatten(0, 1), tensor, rtol=1e-4, atol=1e-6)


def test_per_example_gradients_need_batchnorm_in_eval_mode(data: gitbench.Data) -> None:
    model = gitbench.load_model("resnet(width=4, mode='train')", data)
    defense = gitbench.load_defense("dp_sgd(noise_multiplier=1.0)")
    with pytest.raises(ModelError, match="mode='eval'"):
        gitbench.client_update(model, data.private.inputs[:2][None], data.private.labels[:2][None], defense=defense)


def test_soft_labels_that_are_certain_equal_hard_ones(data: gitbench.Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:2][:, None], data.private.labels[:2][:, None]
    soft = gradients(model, inputs, functional.one_hot(labels, data.classes).float())
    torch.testing.assert_close(soft.flatten(), gradients(model, inputs, labels).flatten())


def test_wrong_shapes_are_named(data: gitbench.Data) -> None:
    with pytest.raises(ModelError, match=r"\(V, B, \*shape\)"):
        gitbench.client_update(gitbench.load_model("mlp", data), data.private.inputs[:2], data.private.labels[:2])


def test_batchnorm_statistics_are_those_of_the_private_batch(data: gitbench.Data) -> None:
    model = gitbench.load_model("resnet(width=4)", data)
    inputs = data.private.inputs[:4].reshape(2, 2, 3, 8, 8)
    found = batchnorm_statistics(model, inputs)
    seen = model[1](model[0](inputs[1]))
    torch.testing.assert_close(found["2"][0][1], seen.mean((0, 2, 3)))
    torch.testing.assert_close(found["2"][1][1], seen.var((0, 2, 3), unbiased=False))
    assert batchnorm_statistics(gitbench.load_model("mlp", data), inputs) == {}


def test_batchnorm_statistics_have_a_slope_and_leave_the_model_as_it_is(data: gitbench.Data) -> None:
    model = gitbench.load_model("resnet(width=4, mode='train')", data)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inputs = data.private.inputs[:4].reshape(2, 2, 3, 8, 8).clone().requires_grad_()
    mean, _ = list(batchnorm_statistics(model, inputs).values())[-1]
    (slope,) = torch.autograd.grad(mean[0].sum(), inputs)
    assert slope[0].abs().sum() > 0
    assert not slope[1].any()  # of another victim
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in model.modules())


class Broken(gitbench.Defense):
    def __init__(self, *, how: str) -> None:
        self.how = how

    def protect(self, update, *, generator):
        tensors = dict(update.tensors)
        first = next(iter(tensors))
        if self.how == "raises":
            raise ZeroDivisionError("oops")
        if self.how == "nothing":
            return None
        if self.how == "missing":
            del tensors[first]
        if self.how == "extra":
            tensors["extra"] = tensors[first]
        if self.how == "shape":
            tensors[first] = tensors[first][:, :1]
        if self.how == "nan":
            tensors[first] = tensors[first] * torch.nan
        if self.how == "dtype":
            tensors[first] = tensors[first].double()
        return gitbench.Update(tensors)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "raised ZeroDivisionError: oops"),
        ("nothing", "returned NoneType"),
        ("missing", "left out the parameter '2.weight'"),
        ("extra", "added 'extra'"),
        ("shape", r"returned \(2, 1, 192\) for '2.weight', expected \(2, 48, 192\)"),
        ("nan", "NaN or infinite values in '2.weight'"),
        ("dtype", "returned torch.float64"),
    ],
)
def test_a_malformed_defense_is_named(data: gitbench.Data, how: str, message: str) -> None:
    model = gitbench.load_model("mlp", data)
    with pytest.raises(DefenseError, match=message) as error:
        gitbench.client_update(model, data.private.inputs[:2][:, None], data.private.labels[:2][:, None], defense=Broken(how=how))
    assert f"Broken(how='{how}')" in str(error.value)
