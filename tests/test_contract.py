"""The contract of every registered component. A new one is tested by being registered."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import pytest
import torch

import gitbench
from gitbench.attacker.attack import Hybrid, load_attack
from gitbench.clients.client import client_update, gradients
from gitbench.clients.data import Data
from gitbench.clients.datasets.torchvision_sets import _TorchvisionSet
from gitbench.clients.update import Batch
from gitbench.core.errors import DataError
from gitbench.core.random import make_generator
from gitbench.core.spec import Kind, Part, parse_spec
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.known_modalities import declared_modality, misfit
from gitbench.identity.loading import load_part
from gitbench.identity.names import entry_points
from helpers import make_data, pair

# Options for components that cannot be built without any; a component that can needs no line here.
ARGUMENTS = {
    "clipping": "clipping(max_norm=1.0)",
    "dp_sgd": "dp_sgd(noise_multiplier=0.1)",
    "dropout": "dropout(rate=0.5)",
    "gaussian_noise": "gaussian_noise(std=0.01)",
    "laplace_noise": "laplace_noise(scale=0.01)",
    "parameter_drift": "parameter_drift(epochs=1, samples=16)",
    "pruning": "pruning(rate=0.5)",
    "quantization": "quantization(bits=4)",
    "soteria": "soteria(rate=0.5)",
    "topk": "topk(rate=0.1)",
    "torchvision": "torchvision(name='resnet18')",
}
DEFENSES = [
    *(ARGUMENTS.get(name, name) for name in sorted(entry_points("defense"))),
    "pruning(rate=0.5, by='random')",
    "clipping(max_norm=1.0, scope='layer')",
    "clipping(max_norm=1.0, scope='example')",
    "sign(scaled=True)",
    "precision(dtype='float16')",
    "dropout(rate=0.5, layers='all')",
]


def _of_images(kind: Kind) -> list[str]:
    """The components that can do images; those of text are in test_text.py."""
    names = sorted(entry_points(kind))
    if kind == "dataset":
        return [name for name in names if declared_modality(name) == "image"]
    other = "dlg" if kind == "model" else "mlp"
    given = {name: ARGUMENTS.get(name, name) for name in names}
    fits = {name: misfit("image", **{"attack": other, "model": other, kind: spec}) for name, spec in given.items()}
    return [given[name] for name in names if not fits[name]]


ATTACKS = _of_images("attack")
MODELS = _of_images("model")
DATASETS = _of_images("dataset")
METRICS = [name for name, metric in known_metrics().items() if metric.modality == "image"]


def victims(data: Data, count: int = 3, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = data.private.inputs[: count * batch].reshape(count, batch, *data.input_shape).clone()
    return inputs, data.private.labels[: count * batch].reshape(count, batch).clone()


# ------------------------------------------------------------------ defenses


@pytest.mark.parametrize("spec", DEFENSES)
def test_defense_keeps_shapes_and_its_input(spec: str, data: Data) -> None:
    defense = gitbench.load_defense(spec)
    model = defense.modify_model(gitbench.load_model("mlp", data))
    inputs, labels = defense.prepare_batch(Batch(model, *victims(data)), public=data.public, generator=make_generator(0))
    update = gradients(model, inputs, labels, per_example=defense.needs_per_example).of(Batch(model, inputs, labels))
    before = update.flatten().clone()
    sent = defense.protect(update, generator=make_generator(0))
    assert {name: tensor.shape for name, tensor in sent.tensors.items()} == {name: tensor.shape for name, tensor in update.tensors.items()}
    assert torch.isfinite(sent.flatten()).all()
    assert torch.equal(update.flatten(), before)


@pytest.mark.parametrize("spec", DEFENSES)
def test_defense_is_the_same_for_the_same_seed(spec: str, data: Data) -> None:
    defense = gitbench.load_defense(spec)
    model = defense.modify_model(gitbench.load_model("mlp", data))
    inputs, labels = victims(data)
    sent = [
        client_update(model, inputs, labels, defense=defense, generator=make_generator(seed), public=data.public).flatten()
        for seed in (0, 0)
    ]
    assert torch.equal(*sent)
    assert torch.equal(inputs, victims(data)[0])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_names_are_those_that_are_registered(kind: str) -> None:
    for name in entry_points(kind):
        assert load_part(kind, Part(name)).name == name


@pytest.mark.parametrize("spec", [*DEFENSES, "clipping(max_norm=1.0) | pruning(rate=0.5)"])
def test_defense_repr_rebuilds_it(spec: str) -> None:
    defense = gitbench.load_defense(spec)
    again = gitbench.load_defense(repr(defense))
    assert repr(again) == repr(defense) == str(parse_spec("defense", spec))


# ------------------------------------------------------------------ attacks


@pytest.mark.parametrize("spec", [*ATTACKS, "ridge+ig"])
def test_attack_repr_rebuilds_it(spec: str) -> None:
    assert repr(load_attack(repr(load_attack(spec)))) == spec


def observe(data: Data, model: torch.nn.Module, update: gitbench.Update, labels: torch.Tensor, **granted: object) -> gitbench.Observation:
    return gitbench.Observation(
        update=update, model=model, input_shape=data.input_shape, batch_size=labels.shape[1], public=data.public, **granted
    )


def gain(attack: str, data: Data, model: str, *, update: gitbench.Update | None = None, count: int = 8) -> float:
    """Mean PSNR above the blind guess, of the quick budget on undefended victims (or on a given update)."""
    network = gitbench.load_model(model, data)
    inputs, labels = victims(data, count, 1)
    update = update or client_update(network, inputs, labels)
    found = load_attack(attack, profile="quick")(observe(data, network, update, labels), generator=make_generator(0))
    return float(gitbench.score(found.inputs, inputs, blind=data.public.inputs.mean(0))["psnr_gain"].mean())


@pytest.fixture(scope="module")
def smooth() -> Data:
    return make_data(size=16, public=400, private=24)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("spec", [*ATTACKS, "ridge+ig"])
def test_attack_returns_finite_pixels_in_range_and_the_same_for_the_same_seed(spec: str, batch: int, data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = victims(data, 3, batch)
    update = client_update(model, inputs, labels)
    before = update.flatten().clone()
    attack = load_attack(spec, profile="quick")
    for part in (attack.prior, attack.refiner) if isinstance(attack, Hybrid) else (attack,):
        if hasattr(part.options, "iterations"):
            part.options = replace(part.options, iterations=5)
    found = [attack(observe(data, model, update, labels), generator=make_generator(0)).inputs for _ in range(2)]
    assert found[0].shape == inputs.shape
    assert torch.isfinite(found[0]).all()
    assert found[0].min() >= 0
    assert found[0].max() <= 1
    assert torch.equal(*found)
    assert torch.equal(update.flatten(), before)


@pytest.mark.parametrize("spec", ATTACKS)
def test_positive_control_undefended_leaks(spec: str, smooth: Data) -> None:
    assert max(gain(spec, smooth, model) for model in ("mlp", "lenet")) > 3


@pytest.mark.parametrize("spec", ATTACKS)
def test_negative_control_a_random_gradient_does_not(spec: str, smooth: Data) -> None:
    for model in ("mlp", "lenet"):
        network = gitbench.load_model(model, smooth)
        raw = client_update(network, *victims(smooth, 8, 1))
        noise = raw.map(lambda _, tensor: torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7)) * tensor.std())
        assert gain(spec, smooth, model, update=noise) < 1


@pytest.mark.parametrize("spec", ATTACKS)
def test_attack_reads_only_what_its_manifest_names(spec: str, data: Data) -> None:
    attack = load_attack(spec)
    assert "labels" not in (attack.requires if spec == "auto" else attack.requires | attack.uses)
    assert "batchnorm_statistics" not in (attack.requires if spec == "auto" else attack.requires | attack.uses)


# ------------------------------------------------------------------ models


@pytest.mark.parametrize("spec", MODELS)
def test_model_maps_images_to_logits_and_is_deterministic(spec: str, data: Data) -> None:
    found = make_data(size=32, public=8, private=4) if "torchvision" in spec else data
    first, second, other = (gitbench.load_model(spec, found, seed=seed) for seed in (0, 0, 1))
    with torch.no_grad():
        logits = [model(found.public.inputs[:2]) for model in (first, second, other)]
    assert logits[0].shape == (2, found.classes)
    assert torch.isfinite(logits[0]).all()
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0], logits[2])
    assert not first.training


@pytest.mark.parametrize("spec", MODELS)
def test_model_normalises_in_its_first_layer(spec: str, data: Data) -> None:
    found = make_data(size=32, public=8, private=4) if "torchvision" in spec else data
    model = gitbench.load_model(spec, found)
    assert type(next(iter(model.children()))).__name__ == "Normalize"


@pytest.mark.parametrize("spec", MODELS)
def test_model_gradients_can_be_taken_and_matched(spec: str, data: Data) -> None:
    found = make_data(size=32, public=8, private=4) if "torchvision" in spec else data
    model = gitbench.load_model(spec, found)
    inputs = found.private.inputs[:2][:, None].clone().requires_grad_(True)
    update = gradients(model, inputs, found.private.labels[:2][:, None])
    assert list(update.tensors) == [name for name, _ in model.named_parameters()]
    (second,) = torch.autograd.grad(update.flatten().square().sum(), inputs)
    assert torch.isfinite(second).all()
    assert second.abs().sum() > 0


# ------------------------------------------------------------------ datasets


def arguments_of(name: str, tmp_path, tiny_npz) -> str:
    if name == "npz":
        return f"npz(path={str(tiny_npz)!r})"
    if name == "folder":
        from PIL import Image

        for split in ("train", "test"):
            for label in ("a", "b"):
                folder = tmp_path / split / label
                folder.mkdir(parents=True)
                Image.effect_noise((10, 12), 50).convert("RGB").save(folder / "x.png")
        return f"folder(path={str(tmp_path)!r}, size=8)"
    return name


@pytest.mark.parametrize("name", DATASETS)
def test_dataset_loads_or_says_what_is_missing(name: str, tmp_path, tiny_npz) -> None:
    if issubclass(load_part("dataset", Part(name)), _TorchvisionSet):
        with pytest.raises(DataError, match="nowhere"):
            gitbench.load_dataset(f"{name}(root={str(tmp_path / 'nowhere')!r})")
        return
    first, second = (gitbench.load_dataset(arguments_of(name, tmp_path / str(n), tiny_npz)) for n in (1, 2))
    assert torch.equal(first.public.labels, second.public.labels)
    if name != "folder":
        assert torch.equal(first.public.inputs, second.public.inputs)
    assert first.input_shape == tuple(first.private.inputs.shape[1:])


# ------------------------------------------------------------------ metrics


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 7, 9)])
@pytest.mark.parametrize("name", METRICS)
def test_metric_is_finite_of_each_image_alone_and_leaks_most_on_a_copy(name: str, shape: tuple[int, int, int]) -> None:
    metric = known_metrics()[name]
    found, truth = pair(shape, count=5)
    found[0] = torch.rand(shape, generator=make_generator(0))
    found[1] = truth[1]
    given = {need: {"blind": truth.mean(0), "private": truth.clone()}[need] for need in metric.needs}
    before = [tensor.clone() for tensor in (found, truth, *given.values())]
    values = metric.score(found, truth, **given)
    assert values.shape == (5,)
    assert values.device == found.device
    assert not values.requires_grad
    assert torch.isfinite(values).all()
    assert torch.equal(values, metric.score(found, truth, **given))
    alone = torch.cat([metric.score(found[i : i + 1], truth[i : i + 1], **given) for i in range(5)])
    torch.testing.assert_close(values, alone, atol=1e-5, rtol=0)
    assert all(torch.equal(*tensors) for tensors in zip((found, truth, *given.values()), before, strict=True))
    copies = metric.score(truth, truth, **given)
    assert (metric.sign * (copies - values) >= 0).all()
    for some in (values, copies):
        assert metric.low is None or float(some.min()) >= metric.low
        assert metric.high is None or float(some.max()) <= metric.high
