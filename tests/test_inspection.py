"""Ranks of the equations in a layer's input, against the matrix written out."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.autograd.functional import jacobian
from torch.nn import functional

import gitbench
from gitbench.cli import main
from gitbench.core.errors import ModelError
from gitbench.publish import inspection
from gitbench.publish.inspection import TOLERANCE, LayerRank, inspect_model, table
from helpers import make_data

SHAPE = (2, 6, 6)


def model_of(first: nn.Module, activation: nn.Module, *rest: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    front = nn.Sequential(first, activation, *rest, nn.Flatten())
    with torch.no_grad():
        width = front(torch.zeros(1, *SHAPE)).shape[1]
    return nn.Sequential(*front, nn.Linear(width, 4)).double()


def written_out(model: nn.Module, inputs: torch.Tensor, label: torch.Tensor, known: torch.Tensor | None) -> tuple[int, int, float]:
    """Rank of the gradient's equations, of both, and their condition: by differentiating the equations themselves."""
    layer, rest = model[0], model[1:]
    delta = jacobian(lambda z: functional.cross_entropy(rest(z), label), layer(inputs))

    def gradient(x: torch.Tensor) -> torch.Tensor:
        weight = layer.weight.detach().clone().requires_grad_()
        if isinstance(layer, nn.Conv2d):
            out = functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
        else:
            out = functional.linear(x, weight)
        return torch.autograd.grad((out * delta).sum(), weight, create_graph=True)[0].flatten()

    def forward(x: torch.Tensor) -> torch.Tensor:
        return layer(x)[delta != 0 if known is None else known.expand(delta.shape)]

    count = inputs.numel()
    functions = [gradient] if known is NONE else [gradient, forward]
    blocks = [jacobian(function, inputs).reshape(-1, count) for function in functions]
    scaled = torch.cat([block / torch.linalg.matrix_norm(block, 2) for block in blocks])
    values = torch.linalg.svdvals(scaled)
    values = values[values > TOLERANCE * values[0]]
    rank = int((torch.linalg.svdvals(blocks[0]) > TOLERANCE * torch.linalg.matrix_norm(blocks[0], 2)).sum())
    return rank, len(values), float(values[0] / values[-1])


ALL, NONE = torch.tensor(True), torch.tensor(False)


@pytest.mark.parametrize(
    ("layer", "activation", "known"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), nn.Sigmoid(), ALL),
        (nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.Tanh(), ALL),
        (nn.Conv2d(2, 1, (2, 3)), nn.LeakyReLU(), ALL),
        (nn.Conv2d(2, 4, 2, stride=3), nn.Sigmoid(), ALL),
        (nn.Conv2d(2, 3, 3, dilation=2, padding=2), nn.Sigmoid(), ALL),
        (nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), None),
        (nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), NONE),
        (nn.Linear(6, 3), nn.Sigmoid(), ALL),  # 12 positions
        (nn.Linear(6, 9), nn.GELU(), NONE),
    ],
    ids=str,
)
def test_ranks_are_those_of_the_equations_written_out(layer: nn.Module, activation: nn.Module, known: torch.Tensor | None) -> None:
    model = model_of(layer, activation)
    torch.manual_seed(1)
    inputs, label = torch.rand(1, *SHAPE, dtype=torch.float64), torch.tensor([2])
    found = inspect_model(model, inputs, label)[0]
    rank, both, condition = written_out(model, inputs, label, known)
    assert found.unknowns == 72
    assert (found.gradient_rank, found.rank) == (rank, both)
    assert found.condition == pytest.approx(condition, rel=1e-4)
    assert found.gradient == layer.weight.numel()
    if known is ALL:
        assert found.forward == layer(inputs).numel()
    assert not found.why


def test_the_last_layers_input_is_determined_by_its_gradient_alone() -> None:
    data = make_data()
    for name in ("mlp", "lenet", "resnet(width=4)", "vit(width=16, heads=2, blocks=1)"):
        model = gitbench.load_model(name, data)
        last = inspect_model(model, data.public.inputs[:1], data.public.labels[:1])[-1]
        assert last.gradient_rank == last.rank == last.unknowns, name


def test_layers_come_from_the_image_to_the_logits_with_their_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LARGEST", 1024)  # 3072 take seconds
    data = make_data(size=32)
    model = gitbench.load_model("lenet", data)
    layers = inspect_model(model, data.public.inputs[:1], data.public.labels[:1])
    assert [layer.name for layer in layers] == ["1", "3", "5", "8"]
    assert [layer.unknowns for layer in layers] == [3072, 3072, 768, 768]
    assert [layer.forward for layer in layers] == [3072, 768, 768, 4]
    assert [layer.gradient for layer in layers] == [900, 3600, 3600, 4 * 768]
    assert layers[0].gradient_rank == 900


def test_what_is_too_large_is_counted_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "LARGEST", 200)
    data = make_data(size=16)
    layers = inspect_model(gitbench.load_model("resnet(width=4)", data), data.public.inputs[:1], data.public.labels[:1])
    assert (layers[1].unknowns, layers[1].gradient_rank, layers[1].rank) == (4 * 256, None, None)
    assert layers[1].why == "256 positions, at most 200 are decomposed"
    third = next(layer for layer in layers if layer.input_shape == (8, 8, 8))
    assert (third.gradient_rank is None, third.rank) == (False, None)
    assert third.why == "512 unknowns, at most 200 are decomposed"
    assert "not computed" in table(layers)


def test_other_convolutions_are_counted_and_named() -> None:
    model = model_of(nn.Conv2d(2, 4, 3, groups=2), nn.Sigmoid())
    found = inspect_model(model, torch.rand(1, *SHAPE).double(), torch.tensor([0]))[0]
    assert (found.unknowns, found.gradient, found.gradient_rank, found.rank) == (72, 36, None, None)
    assert "groups" in found.why


def test_a_dead_layer_determines_nothing() -> None:
    model = model_of(nn.Conv2d(2, 3, 3), nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(-100)
    found = inspect_model(model, torch.rand(1, *SHAPE).double(), torch.tensor([0]))[0]
    assert (found.forward, found.gradient_rank, found.rank, found.condition) == (0, 0, 0, None)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(72, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs.flatten(1)) if inputs.sum() > 0 else self.linear(-inputs.flatten(1))


def test_a_model_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ModelError, match=r"torch\.fx can trace, but Untraceable") as caught:
        inspect_model(Untraceable(), torch.rand(1, *SHAPE), torch.tensor([0]))
    assert "git(" not in str(caught.value)


def test_the_command_line_prints_a_table_or_json(tiny_npz, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = f"npz(path={str(tiny_npz)!r})"
    assert main(["inspect", "mlp", "--dataset", dataset]) == 0
    shown = capsys.readouterr().out
    assert "192 (100 %)" in shown
    assert main(["inspect", "mlp", "--dataset", dataset, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [LayerRank(**{**layer, "input_shape": tuple(layer["input_shape"])}).unknowns for layer in found["layers"]] == [192, 48]
    assert all(layer["condition"] is None or math.isfinite(layer["condition"]) for layer in found["layers"])
    assert main(["inspect", "mpl", "--dataset", dataset]) == 2
    assert "Did you mean 'mlp'?" in capsys.readouterr().err
