"""Gradients layer by layer are those of the slow ways: all victims under vmap, and one image after the other."""

from __future__ import annotations

import copy
from collections.abc import Callable

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional

import gitbench
from gitbench.clients import differentiation, layerwise
from gitbench.clients.client import gradients
from gitbench.clients.data import Data
from gitbench.clients.differentiation import Aims, stacked_gradients, stacked_products
from gitbench.clients.loss import mean_loss
from gitbench.core.random import make_generator, seeded
from support import ZOO

SIDE, CLASSES = 6, 3


class Added(nn.Module):
    """A branch beside a skip."""

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.branch(inputs)


class Network(nn.Module):
    """Layers of images, then one linear layer of what is left of them, as tokens or side by side."""

    def __init__(self, layers: list[nn.Module], head: nn.Module, tokens: bool) -> None:
        super().__init__()
        self.layers, self.head, self.tokens = nn.Sequential(*layers), head, tokens

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        maps = self.layers(inputs).flatten(2)
        return self.head(maps.transpose(1, 2)).mean(1) if self.tokens else self.head(maps.flatten(1))


@st.composite
def convolutions(draw: st.DrawFn, channels: int, side: int) -> tuple[nn.Module, int, int]:
    groups = draw(st.sampled_from([one for one in (1, 2, 3) if channels % one == 0]))
    outputs, kernel = groups * draw(st.integers(1, 2)), draw(st.integers(1, 3))
    mode = draw(st.sampled_from(["zeros", "zeros", "circular", "same"]))
    dilation = draw(st.integers(1, 2))
    if mode == "zeros":
        padding, stride = draw(st.integers(0, 2)), draw(st.integers(1, 3))
    else:
        padding, stride, kernel = "same", 1, draw(st.sampled_from([1, 3]))  # torch warns of even ones
    after = side if padding == "same" else (side + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    if after < 1:
        kernel, dilation, padding, stride, after = 1, 1, 0, 1, side
    layer = nn.Conv2d(
        channels, outputs, kernel, stride, padding, dilation, groups,
        bias=draw(st.booleans()), padding_mode="circular" if mode == "circular" and dilation * (kernel - 1) <= side else "zeros",
    )  # fmt: skip
    return layer, outputs, after


@st.composite
def networks(draw: st.DrawFn) -> nn.Module:
    """In eval mode, in double precision, with norms that have something to do."""
    with seeded(make_generator(draw(st.integers(0, 99)))):
        layers: list[nn.Module] = []
        channels, side, shared = 2, SIDE, nn.Tanh()
        for _ in range(draw(st.integers(1, 3))):
            layer, channels, side = draw(convolutions(channels, side))
            norms = [nn.Identity(), nn.BatchNorm2d(channels), nn.BatchNorm2d(channels, affine=False), nn.GroupNorm(1, channels)]
            activation = draw(st.sampled_from([nn.Sigmoid(), nn.Tanh(), nn.ELU(inplace=True), nn.SiLU(inplace=True)]))
            layers += [layer, draw(st.sampled_from([*norms, nn.LayerNorm([side, side])])), activation]
            if draw(st.booleans()):
                layers.append(Added(nn.Conv2d(channels, channels, 3, padding=1, groups=draw(st.sampled_from([1, channels])))))
            if draw(st.booleans()):
                layers.append(shared)  # it has no parameters
        tokens = draw(st.booleans())
        network = Network(layers, nn.Linear(channels if tokens else channels * side * side, CLASSES, bias=draw(st.booleans())), tokens)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.5)
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.uniform_(0.5, 2)
        if draw(st.booleans()):
            network.layers[0].requires_grad_(False)
    return network.double().eval()


def trained(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in network.named_parameters() if parameter.requires_grad}


def slowly(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, per_example: bool) -> dict[str, torch.Tensor]:
    def loss(parameters, batch: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return mean_loss(torch.func.functional_call(network, parameters, (batch,)), targets)

    return differentiation._one_by_one(loss, trained(network), inputs, labels, per_example=per_example, own_weights=False)


def assert_products_alike(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    """Inner products, and the slopes of what an attack makes of them, are those of gradients that are written out."""
    sources = [tensor.requires_grad_() for tensor in (inputs, labels) if tensor.is_floating_point()]
    slow = slowly(network, inputs, labels, per_example=False)
    others = {name: torch.randn(tensor.shape, generator=make_generator(1), dtype=tensor.dtype) for name, tensor in slow.items()}
    found = stacked_products(network, trained(network), inputs, labels, Aims(others))
    pairs = [(tensor.flatten(1), others[name].flatten(1)) for name, tensor in slow.items()]
    expected = torch.stack([(one * other).sum(1) for one, other in pairs]), torch.stack([(one * one).sum(1) for one, _ in pairs])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    slopes, aims = (torch.autograd.grad((dots + 2 * squares).sum(), sources, retain_graph=True) for dots, squares in (found, expected))
    torch.testing.assert_close(slopes, aims, rtol=1e-10, atol=1e-10)


def assert_alike(network: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, per_example: bool) -> None:
    """Gradients, and their slopes by the images and by soft labels."""
    sources = [tensor.requires_grad_() for tensor in (inputs, labels) if tensor.is_floating_point()]
    fast = stacked_gradients(network, trained(network), inputs, labels, per_example=per_example)
    slow = slowly(network, inputs, labels, per_example=per_example)
    assert list(fast) == list(slow)
    directions = [torch.randn(tensor.shape, generator=make_generator(1), dtype=tensor.dtype) for tensor in slow.values()]
    for name, tensor in slow.items():
        torch.testing.assert_close(fast[name], tensor, rtol=1e-10, atol=1e-10)
    for one, other in zip(
        torch.autograd.grad([*fast.values()], sources, directions), torch.autograd.grad([*slow.values()], sources, directions), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@settings(deadline=None)
@given(networks(), st.integers(1, 3), st.integers(1, 3), st.booleans(), st.booleans())
def test_equals_one_image_after_the_other(network: nn.Module, victims: int, batch: int, soft: bool, per_example: bool) -> None:
    generator = make_generator(victims, str(batch))
    inputs = torch.rand(victims, batch, 2, SIDE, SIDE, generator=generator, dtype=torch.float64)
    labels = torch.randint(CLASSES, (victims, batch), generator=generator)
    if soft:
        labels = torch.rand(victims, batch, CLASSES, generator=generator, dtype=torch.float64).softmax(-1)
    assert_alike(network, inputs, labels, per_example=per_example)
    assert_products_alike(network, inputs, labels)
    assert taken(network)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("side", "stride"), [(1, 1), (2, 2), (2, 1)])
def test_inner_products_with_wide_layers_of_small_maps(side: int, stride: int, groups: int) -> None:
    """Here no gradient is written out."""
    network = nn.Sequential(
        nn.Conv2d(2, 64, 1), nn.ELU(), nn.Conv2d(64, 64, 3, stride, 1, groups=groups), nn.Sigmoid(), nn.Flatten(),
        nn.Linear(64 * (-(-side // stride)) ** 2, 32), nn.Tanh(), nn.Linear(32, CLASSES),
    ).double().eval()  # fmt: skip
    inputs = torch.rand(3, 2, 2, side, side, generator=make_generator(0), dtype=torch.float64)
    assert_products_alike(network, inputs, torch.tensor([[0, 1], [1, 2], [2, 2]]))
    assert taken(network)


def test_a_cosine_near_one_is_as_exact_as_from_gradients_that_are_written_out(data: Data) -> None:
    """Against double precision, where summands cancel: 1x1 to 4x4 maps of a wide network."""
    torchvision = gitbench.load_model("torchvision(name='resnet18')", data)
    images, labels = data.private.inputs[:4, None], data.private.labels[:4, None]
    near = images + 1e-4 * torch.randn(images.shape, generator=make_generator(0))

    def distances(network: nn.Module, written_out: bool) -> torch.Tensor:
        dtype = next(network.parameters()).dtype
        others = gradients(network, images.to(dtype), labels).tensors
        norm = torch.stack([other.flatten(1).square().sum(1) for other in others.values()]).sum(0)
        if written_out:
            mine = gradients(network, near.to(dtype), labels)
            dots = torch.stack([(mine.tensors[name] * other).flatten(1).sum(1) for name, other in others.items()]).sum(0)
            squares = mine.flatten().square().sum(1)
        else:
            found = stacked_products(network, trained(network), near.to(dtype), labels, Aims(others))
            dots, squares = (each.sum(0) for each in found)
        return 1 - dots / (squares * norm).sqrt()

    exact = distances(copy.deepcopy(torchvision).double(), True)
    errors = [(distances(torchvision, written_out) - exact).abs().max() for written_out in (False, True)]
    assert exact.max() < 1e-4
    assert errors[0] < 2 * errors[1] + 2e-7


def taken(network: nn.Module) -> bool:
    return getattr(network, layerwise._ATTRIBUTE).layerwise


class Written(nn.Module):
    """Two linear layers and a forward pass that somebody wrote."""

    def __init__(self, forward: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 8), nn.Linear(8, CLASSES), nn.Linear(8, CLASSES)
        self.scale = nn.Parameter(torch.ones(8), requires_grad=False)
        self.unused.requires_grad_(False)
        self.written = forward

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.written(self, inputs.flatten(1))


def tied_twice(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(inputs).tanh() @ model.first.weight)


def called_twice(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(model.first(inputs).tanh()).tanh())


def used_outside_alone(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    model.first(inputs)
    return model.second(functional.linear(inputs, model.first.weight, model.first.bias).tanh())


def mixing(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(inputs - inputs.mean(0)).tanh())


def mixing_in_secret(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(inputs).tanh() / inputs.detach().std())


def branching(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    hidden = model.first(inputs).tanh()
    return model.second(hidden * 3 if float(inputs.detach().mean()) > 0.9 else hidden)


def noisy(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(inputs).tanh() * torch.rand(8, dtype=inputs.dtype))


def dropping(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(functional.dropout(model.first(inputs).tanh(), 0.5))


def written(forward: Callable[[Written, torch.Tensor], torch.Tensor], *, mode: bool = False) -> nn.Module:
    with seeded(make_generator(0)):
        return Written(forward).double().train(mode)


def plain(model: Written, inputs: torch.Tensor) -> torch.Tensor:
    return model.second(model.first(inputs).tanh() * model.scale)


def victims() -> tuple[torch.Tensor, torch.Tensor]:
    generator = make_generator(0)
    return torch.rand(3, 2, 2, 2, 2, generator=generator, dtype=torch.float64), torch.randint(CLASSES, (3, 2), generator=generator)


@pytest.mark.parametrize("forward", [tied_twice, called_twice, used_outside_alone, branching])
def test_what_cannot_be_told_layer_by_layer_is_not(forward: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
    network = written(forward)
    assert_alike(network, *victims(), per_example=False)
    assert_products_alike(network, *victims())
    assert not taken(network)


@pytest.mark.parametrize("forward", [mixing, mixing_in_secret, noisy, dropping])
def test_victims_that_would_have_a_say_in_each_other_are_kept_apart(forward: Callable[[Written, torch.Tensor], torch.Tensor]) -> None:
    network = written(forward)
    stacked_gradients(network, trained(network), *victims(), per_example=False)
    assert not taken(network)


def test_frozen_parameters_may_be_anywhere() -> None:
    network = written(plain)
    assert_alike(network, *victims(), per_example=False)
    assert taken(network)


def test_train_mode_is_not_even_looked_at() -> None:
    network = written(plain, mode=True)
    assert_alike(network, *victims(), per_example=False)
    assert not hasattr(network, layerwise._ATTRIBUTE)


def test_a_model_is_looked_at_once_and_again_where_it_has_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    network, looks = written(plain), []
    look = layerwise._looked_at
    monkeypatch.setattr(layerwise, "_looked_at", lambda *arguments: looks.append(1) or look(*arguments))
    for _ in range(2):
        assert_alike(network, *victims(), per_example=False)
    assert len(looks) == 1
    assert_alike(copy.deepcopy(network), *victims(), per_example=False)
    assert len(looks) == 1
    network.scale.requires_grad_(True)  # a parameter of no layer
    assert_alike(network, *victims(), per_example=False)
    assert len(looks) == 2
    assert not taken(network)


def test_what_others_hang_on_a_layer_is_left_to_the_slow_way() -> None:
    network = written(plain)
    assert_alike(network, *victims(), per_example=False)
    network.first.register_forward_hook(lambda _layer, _inputs, output: output * 2)
    assert_alike(network, *victims(), per_example=False)
    network.second.register_forward_pre_hook(lambda _layer, inputs: inputs[0] * 2)
    assert_alike(network, *victims(), per_example=False)


def test_only_one_tap_of_a_kernel_reads_a_map_of_one_pixel() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4, CLASSES)).double().eval()
    inputs = torch.rand(3, 1, 2, 1, 1, dtype=torch.float64)
    assert_alike(network, inputs, torch.tensor([[0], [1], [2]]), per_example=False)
    weight = stacked_gradients(network, trained(network), inputs, torch.tensor([[0], [1], [2]]), per_example=False)["0.weight"]
    assert weight.count_nonzero() == weight[..., 1, 1].numel()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        *(("resnet", True), ("vit", False), (f"{ZOO}:group_norm", True), (f"{ZOO}:layer_norm", True)),
        *((f"{ZOO}:{kind}", False) for kind in ("tied", "lstm", "multihead_attention", "branching", "spectral_norm", "weight_norm")),
    ],
)
def test_which_models_are_taken_layer_by_layer(spec: str, expected: bool, data: Data) -> None:
    network = gitbench.load_model(spec, data)
    gradients(network, data.private.inputs[:2, None], data.private.labels[:2, None])
    assert taken(network) == expected
