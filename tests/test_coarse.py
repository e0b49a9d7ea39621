"""Coarse-GIT and Module-GIT: the steps read off a model's graph, and what the chain makes of an update."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from gitbench.attacker.attacks.git.coarse import fit_coarse, run_coarse
from gitbench.attacker.attacks.git.options import GitOptions
from gitbench.attacker.attacks.ridge import Ridge
from gitbench.attacker.layers.blocks import modules
from gitbench.attacker.layers.graph import Step, steps
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.clients.model import load_model
from gitbench.clients.update import Update
from gitbench.core.errors import AttackError
from gitbench.core.progress import silent
from helpers import make_data

SHAPE = (3, 8, 8)
OPTIONS = GitOptions(coarse_width=16, sketch=64, epochs=2, draws=2)


class Skip(nn.Module):
    """A user's model: a skip around one convolution, and no names that anything could go by."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 6, 3, padding=1)
        self.b = nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Linear(6 * 16, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.a(inputs))
        pooled = nn.functional.avg_pool2d(hidden + torch.relu(self.b(hidden)), 2)
        logits: torch.Tensor = self.c(pooled.flatten(1))
        return logits


class Untraceable(Skip):
    """Its way depends on numbers, which a symbolic trace does not have."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if inputs.shape[1] > 2:
            return super().forward(inputs)
        raise ValueError("too few channels")


class Bare(nn.Module):
    """Scales by a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.last = nn.Linear(192, 4)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.last(inputs.flatten(1)) * self.scale
        return logits


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data(public=240, private=16)


def model_of(spec: str, data: Data) -> nn.Module:
    if spec == "skip":
        torch.manual_seed(0)
        return Skip()
    if spec == "untraceable":
        torch.manual_seed(0)
        return Untraceable()
    return load_model(spec, data)


def meta(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).to("meta")


def by_name(model: nn.Module) -> dict[str, Step]:
    return {step.name: step for step in steps(meta(model), SHAPE)}


def observe(spec: str, data: Data, *, batch: int = 1, defense: str = "none") -> Observation:
    model = model_of(spec, data)
    inputs = data.private.inputs.reshape(-1, batch, *SHAPE)
    update = client_update(model, inputs, data.private.labels.reshape(-1, batch), defense=defense)
    return Observation(update=update, model=model, input_shape=SHAPE, batch_size=batch, public=data.public, defense=defense)


def reconstruct(observation: Observation, *, module: bool = False, options: GitOptions = OPTIONS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    state = fit_coarse(
        observation.without_update(), module=module, options=options, generator=generator, progress=silent, checkpoint=NoCheckpoint()
    )
    found = run_coarse(observation, state, module=module, options=options, progress=silent)
    assert found.shape == (observation.update.victims, observation.batch_size, *SHAPE)
    assert found.isfinite().all()
    assert found.min() >= 0
    assert found.max() <= 1
    return found


def error(found: torch.Tensor, data: Data) -> float:
    return float((found.flatten(0, 1) - data.private.inputs).square().mean())


def blind(data: Data) -> float:
    return error(data.public.inputs.mean(0).expand(16, 1, *SHAPE), data)


def test_a_chain_comes_last_layer_first(data: Data) -> None:
    found = steps(meta(load_model("mlp(hidden=[8, 6])", data)), SHAPE)
    assert [step.name for step in found] == ["6", "4", "2"]
    assert [step.feeds for step in found] == [(), ("6",), ("4",)]
    assert [step.activation for step in found] == [None, "sigmoid", "sigmoid"]
    assert [step.reads_image for step in found] == [False, False, True]
    assert (found[2].kind, found[2].weight, found[2].bias, found[2].input_shape, found[2].output_shape) == (
        "linear",
        "2.weight",
        "2.bias",
        (192,),
        (8,),
    )


def test_convolutions_keep_their_maps(data: Data) -> None:
    found = steps(meta(load_model("lenet(bias=False)", data)), SHAPE)
    assert [step.kind for step in found] == ["linear", "conv2d", "conv2d", "conv2d"]
    assert found[0].bias is None
    assert (found[-1].input_shape, found[-1].output_shape, found[-1].reads_image) == (SHAPE, (12, 4, 4), True)


@pytest.mark.parametrize("norm", ["batch", "none"])
def test_a_skip_feeds_both_branches(data: Data, norm: str) -> None:
    found = by_name(load_model(f"resnet(width=4, norm='{norm}')", data))
    assert found["4"].feeds == ("7.conv1", "7.skip")
    assert found["7.conv1"].feeds == ("7.conv2",)
    assert found["7.conv2"].feeds == found["7.skip"].feeds == ("8.conv1", "8.skip")
    assert found["10.conv2"].feeds == ("13",)
    assert found["7.conv2"].activation == "relu"
    assert found["7.conv1"].others == (("7.norm1.weight", "7.norm1.bias") if norm == "batch" else ())


def test_every_gradient_belongs_to_one_step(data: Data) -> None:
    for spec in ("resnet(width=4)", "vit(width=8, blocks=2)", "lenet", "skip"):
        model = model_of(spec, data)
        named = [name for step in steps(meta(model), SHAPE) for name in step.parameters]
        assert sorted(named) == sorted(name for name, _ in model.named_parameters()), spec


def test_a_transformers_steps_follow_its_residual_stream(data: Data) -> None:
    found = by_name(load_model("vit(width=8, blocks=2)", data))
    assert found["2.attention.query"].feeds == ("2.attention.out",)
    assert found["2.mlp.0"].feeds == ("2.mlp.2",)
    assert found["2.mlp.0"].activation == "gelu"
    assert found["3.attention.out"].feeds == ("3.mlp.0", "6")
    assert found["1.project"].feeds[:4] == ("2.attention.query", "2.attention.key", "2.attention.value", "2.mlp.0")
    assert found["1.project"].observed_delta == "1.position"
    assert found["2.mlp.2"].observed_delta is None


def test_the_observed_delta_is_the_layers_own(data: Data) -> None:
    model = load_model("vit(width=8, blocks=1, patch=2)", data)
    step = by_name(model)["1.project"]
    project = model.get_submodule("1.project")
    assert step.delta_index is not None
    seen: list[torch.Tensor] = []
    handle = project.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    loss = nn.functional.cross_entropy(model(data.public.inputs[:1]), data.public.labels[:1])
    handle.remove()
    delta, position = torch.autograd.grad(loss, [seen[0], dict(model.named_parameters())["1.position"]])
    assert step.delta_index.shape == (8, 4, 4)
    torch.testing.assert_close(position.flatten()[step.delta_index], delta[0])


def test_a_users_model_with_a_skip(data: Data) -> None:
    found = steps(meta(Skip()), SHAPE)
    assert [(step.name, step.feeds, step.activation) for step in found] == [
        ("c", (), None),
        ("b", ("c",), "relu"),
        ("a", ("b", "c"), "tanh"),
    ]
    assert error(reconstruct(observe("skip", data)), data) < blind(data) / 2


@pytest.mark.parametrize(
    ("layer", "kind"),
    [(nn.ConvTranspose2d(3, 3, 1), "ConvTranspose2d"), (nn.LSTM(8, 8, batch_first=True), "LSTM"), (nn.Conv3d(1, 1, 1), "Conv3d")],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_unsupported_layer_is_named(layer: nn.Module, kind: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = layer
            self.last = nn.Linear(192, 4)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            hidden = self.odd(inputs[:, 0]) if kind == "LSTM" else self.odd(inputs)
            logits: torch.Tensor = self.last((hidden[0] if kind == "LSTM" else hidden).flatten(1))
            return logits

    with pytest.raises(AttackError, match=rf"The layer 'odd' \({kind}\).*torch.nn.Linear.*git\(variant='module'\)"):
        steps(meta(Model()) if kind != "LSTM" else meta(_wide(Model())), SHAPE)


def _wide(model: nn.Module) -> nn.Module:
    model.last = nn.Linear(64, 4)
    return model


def test_a_bare_parameter_and_a_shared_layer_are_named() -> None:
    with pytest.raises(AttackError, match=r"'scale' \(Parameter\) is used in mul.*git\(variant='module'\)"):
        steps(meta(Bare()), SHAPE)
    shared = nn.Linear(192, 192)
    with pytest.raises(AttackError, match=r"more than once"):
        steps(meta(nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(192, 4))), SHAPE)


def test_what_cannot_be_traced_is_refused_with_a_way_out() -> None:
    with pytest.raises(AttackError, match=r"trace, but Untraceable raised.*git\(variant='module'\)"):
        steps(meta(Untraceable()), SHAPE)


def test_modules_of_any_model_in_the_order_in_which_they_run(data: Data) -> None:
    vit = modules(meta(load_model("vit(width=8, blocks=2)", data)), SHAPE)
    assert [block.name for block in vit] == ["1", "2", "3", "4", "6"]
    assert "2.attention.query.weight" in vit[1].parameters
    assert [block.name for block in modules(meta(Untraceable()), SHAPE)] == ["a", "b", "c"]
    assert [block.name for block in modules(meta(Bare()), SHAPE)] == ["parameters", "last"]

    class Reversed(Skip):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 3, 1)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(self.first(inputs))

    assert [block.name for block in modules(meta(nn.Sequential(Reversed())), SHAPE)] == ["0.first", "0.a", "0.b", "0.c"]


def test_what_the_gradient_shows_is_taken_in_closed_form(data: Data) -> None:
    # The first layer of an MLP, and a patch embedding with positions: an undefended update holds the image.
    assert error(reconstruct(observe("mlp(hidden=[12])", data)), data) < 1e-6
    assert error(reconstruct(observe("mlp(hidden=[16, 12])", data)), data) < 1e-6
    assert error(reconstruct(observe("vit(width=32, blocks=1)", data)), data) < 1e-3


@pytest.mark.parametrize("spec", ["lenet", "resnet(width=4)"])
def test_no_worse_than_ridge(data: Data, spec: str) -> None:
    observation = observe(spec, data)
    ridge, generator = Ridge(), torch.Generator().manual_seed(0)
    state = ridge.fit(observation.without_update(), generator=generator, progress=silent, checkpoint=NoCheckpoint())
    baseline = error(ridge.run(observation, state, generator=generator, progress=silent), data)
    assert error(reconstruct(observation), data) < 1.3 * baseline


def test_the_order_in_which_tensors_are_stored_means_nothing(data: Data) -> None:
    observation = observe("resnet(width=4)", data)
    generator = torch.Generator().manual_seed(0)
    state = fit_coarse(
        observation.without_update(), module=False, options=OPTIONS, generator=generator, progress=silent, checkpoint=NoCheckpoint()
    )
    turned = observation.with_update(Update(dict(reversed(list(observation.update.tensors.items())))))
    found = [run_coarse(each, state, module=False, options=OPTIONS, progress=silent) for each in (observation, turned)]
    assert torch.equal(*found)


def test_the_same_seed_gives_the_same_bits(data: Data) -> None:
    observation = observe("lenet", data, defense="gaussian_noise(std=0.01)")
    assert torch.equal(reconstruct(observation), reconstruct(observation))


@pytest.mark.parametrize("spec", ["lenet(bias=False)", "vit(width=8, blocks=1, bias=False)", "mlp(hidden=[12], bias=False)"])
@pytest.mark.parametrize("module", [False, True])
def test_without_a_last_bias(data: Data, spec: str, module: bool) -> None:
    assert error(reconstruct(observe(spec, data), module=module), data) < blind(data)


@pytest.mark.parametrize("spec", ["lenet", "vit(width=8, blocks=1)"])
def test_a_batch_of_two(spec: str) -> None:
    errors, guesses = [], []
    for seed in range(3):  # eight victims of one draw of images say little: their errors differ tenfold
        data = make_data(public=240, private=16, seed=seed)
        found = reconstruct(observe(spec, data, batch=2))
        truth = data.private.inputs.reshape(found.shape)
        pairs = [(found[:, order] - truth).square().flatten(1).mean(1) for order in ([0, 1], [1, 0])]
        errors.append(float(torch.minimum(*pairs).mean()))
        guesses.append(blind(data))
    assert sum(errors) < sum(guesses)


@pytest.mark.parametrize("spec", ["vit(width=8, blocks=2)", "untraceable"])
def test_modules_take_the_place_of_layers(data: Data, spec: str) -> None:
    assert error(reconstruct(observe(spec, data), module=True), data) < blind(data) / 2


def test_gradients_that_are_not_kept_are_drawn_a_few_times(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gitbench.attacker.attacks.git.coarse.KEPT", 0)
    assert error(reconstruct(observe("lenet", data, defense="gaussian_noise(std=0.001)")), data) < blind(data)


def test_entries_that_a_defense_empties_do_no_harm(data: Data) -> None:
    assert error(reconstruct(observe("resnet(width=4)", data, defense="pruning(rate=0.9)")), data) < 2 * blind(data)


def test_too_few_public_images_are_named() -> None:
    with pytest.raises(AttackError, match="at least 3 public batches"):
        reconstruct(observe("lenet", make_data(public=2, private=16)))
