"""Models: the options that all share, and the user's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import gitbench
from gitbench.clients.data import Data
from gitbench.core.errors import ModelError, SpecError

OWN = """
from torch import nn

def build(input_shape, classes, width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(input_shape[0] * input_shape[1] * input_shape[2], width), nn.ReLU(), nn.Linear(width, classes))

def wrong(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, classes + 1))

def nothing():
    return None

def failing():
    raise RuntimeError("no luck")
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def logits(model: nn.Module, data: Data) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(data.public.inputs[:4])
    return found


def test_lenet_is_that_of_dlg(data: Data) -> None:
    model = gitbench.load_model("lenet", data)
    convolutions = [module for module in model if isinstance(module, nn.Conv2d)]
    assert [(layer.out_channels, layer.kernel_size, layer.stride) for layer in convolutions] == [
        (12, (5, 5), (2, 2)),
        (12, (5, 5), (2, 2)),
        (12, (5, 5), (1, 1)),
    ]
    every = torch.cat([parameter.flatten() for parameter in model.parameters()])
    assert every.abs().max() <= 0.5
    assert every.std().item() == pytest.approx(1 / 12**0.5, rel=0.05)
    assert gitbench.load_model("lenet(bias=False)", data)[-1].bias is None
    assert sum(isinstance(module, nn.Conv2d) for module in gitbench.load_model("lenet(layers=5)", data)) == 5


def test_resnet_has_fifteen_layers(data: Data) -> None:
    model = gitbench.load_model("resnet", data)
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.modules()) == 15


def test_training_is_deterministic_cached_and_helps(data: Data, tmp_path: Path) -> None:
    spec = "mlp(trained_epochs=30)"
    first = logits(gitbench.load_model(spec, data, cache=tmp_path), data)
    (file,) = tmp_path.iterdir()
    assert torch.equal(first, logits(gitbench.load_model(spec, data), data))
    file_time = file.stat().st_mtime_ns
    assert torch.equal(first, logits(gitbench.load_model(spec, data, cache=tmp_path), data))
    assert file.stat().st_mtime_ns == file_time
    model, raw = gitbench.load_model(spec, data), gitbench.load_model("mlp", data)
    trained, untrained = (nn.functional.cross_entropy(m(data.public.inputs), data.public.labels) for m in (model, raw))
    assert trained < untrained


def test_other_images_under_the_same_name_are_trained_on_anew(data: Data, tmp_path: Path) -> None:
    darker = dataclasses.replace(data, public=dataclasses.replace(data.public, inputs=data.public.inputs / 2))
    for one in (data, darker, data):
        gitbench.load_model("mlp(trained_epochs=1)", one, cache=tmp_path)
    assert len([*tmp_path.iterdir()]) == 2


def test_a_damaged_cache_is_said_so_and_trained_again(data: Data, tmp_path: Path) -> None:
    spec = "mlp(trained_epochs=1)"
    first = logits(gitbench.load_model(spec, data, cache=tmp_path), data)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match="damaged"):
        again = gitbench.load_model(spec, data, cache=tmp_path)
    assert torch.equal(first, logits(again, data))


def test_train_mode_uses_the_batch_and_leaves_no_trace(data: Data) -> None:
    model = gitbench.load_model("resnet(width=4, mode='train')", data)
    assert model.training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logits(model, data)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mlp(mode='test')", "mode"),
        ("mlp(trained_epochs=-1)", "trained_epochs"),
        ("torchvision(name='resnet19')", "Did you mean 'resnet18'"),
        ("lenet(activation='selu')", "sigmoid, tanh"),
    ],
)
def test_bad_options_are_named(spec: str, message: str, data: Data) -> None:
    with pytest.raises(SpecError, match=message):
        gitbench.load_model(spec, data)


def test_a_vits_patch_must_fit(data: Data) -> None:
    with pytest.raises(ModelError, match="patch that divides 8x8"):
        gitbench.load_model("vit(patch=3)", data)


def test_the_users_own_factory_is_handed_what_it_takes(own: str, data: Data) -> None:
    model = gitbench.load_model(f"{own}:build(width=7)", data)
    assert model[1].out_features == 7
    assert model[-1].out_features == data.classes
    assert torch.equal(logits(model, data), logits(gitbench.load_model(f"{own}:build(width=7)", data), data))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong", r"Expected logits \(2, 4\)"),
        ("nothing", "to return a torch.nn.Module, got NoneType"),
        ("failing", "raised RuntimeError: no luck"),
    ],
)
def test_a_bad_factory_is_named(own: str, name: str, message: str, data: Data) -> None:
    with pytest.raises(ModelError, match=message):
        gitbench.load_model(f"{own}:{name}", data)


def test_an_instance_is_copied_and_takes_no_options(data: Data, tmp_path: Path) -> None:
    path = tmp_path / "net.py"
    size = data.public.inputs[0].numel()
    path.write_text(
        "from torch import nn\n"
        f"net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d({size}, affine=False), nn.Linear({size}, {data.classes}))\n"
    )
    plain, batch = gitbench.load_model(f"{path}:net", data), gitbench.load_model(f"{path}:net(mode='train')", data)
    again = gitbench.load_model(f"{path}:net", data)
    assert (plain.training, batch.training, again.training) == (False, True, False)
    assert torch.equal(logits(plain, data), logits(again, data))
    with pytest.raises(SpecError, match=r"built already and takes no options, got .*nosuch=3"):
        gitbench.load_model(f"{path}:net(nosuch=3)", data)
