"""Generators with classes: how ours is trained with the public labels, and which class an attack asks for."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from generated import observe, run

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.attacker.attacks.gifd import GIFD
from gitbench.attacker.fit_cache import FitCache
from gitbench.attacker.learning import NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.generator import through
from gitbench.attacker.tools.label_mapping import classes_for
from gitbench.attacker.tools.labels import infer_labels
from gitbench.clients.data import Data, Split
from gitbench.clients.update import Update
from gitbench.core.progress import silent
from gitbench.core.random import make_generator
from gitbench.run.bench import case_of
from helpers import make_data, write

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "gifd.py"
FAST = {"latent_iterations": 4, "iterations": 9, "restarts": 2, "channels": 4, "latent": 16, "epochs": 1}
CONDITIONAL = """
import torch
from torch import nn


class First(nn.Module):
    def forward(self, codes, classes):
        return codes, classes @ torch.tensor([[-2.0], [0.0], [2.0]])


class Last(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, codes, brightness):
        flat = (self.weight * brightness + 0.1 * codes.mean(1, keepdim=True)).sigmoid()
        return flat[:, :, None, None].expand(-1, *self.shape)


class Own(nn.Module):
    latent, classes = 4, 3

    def __init__(self, shape):
        super().__init__()
        self.stages = nn.ModuleList([First(), Last(shape)])
"""


def test_a_class_is_read_off_the_update_where_it_is_not_the_tasks(data: Data, tmp_path: Path) -> None:
    path = write(tmp_path / "conditional.py", CONDITIONAL)
    model = gitbench.load_model("lenet(init='default')", data)
    brightness = torch.tensor([[0.1, 0.9], [0.9, 0.1], [0.1, 0.1]])
    inputs = brightness[..., None, None, None].expand(-1, -1, *data.input_shape).contiguous()
    labels = torch.tensor([[0, 1], [2, 3], [0, 3]])
    update = gitbench.client_update(model, inputs, labels)
    seen = Observation(update=update, model=model, input_shape=data.input_shape, batch_size=2, public=data.public)
    attack = GIFD(generator=f"{path}:Own")
    network = attack.decoder.network(seen, {})
    (mapped,), (numbered,) = (classes_for(seen, network, labels, mapped=mapped) for mapped in (True, False))
    assert torch.equal(mapped.argmax(-1), (brightness > 0.5).long() * 2)
    assert torch.equal(numbered.argmax(-1), labels % 3)


@pytest.mark.parametrize(
    "spec", ["gias(generator='{}:Own', latent_iterations=5, iterations=6)", "gifd(generator='{}:Own', latent_iterations=5, iterations=6)"]
)
def test_a_generator_with_classes(spec: str, data: Data, tmp_path: Path) -> None:
    path = write(tmp_path / "conditional.py", CONDITIONAL)
    assert run(load_attack(spec.format(path)), observe(data, batch=2)).shape == (3, 2, *data.input_shape)


# ------------------------------------------------------------------ classes that are trained


def lacking(data: Data, label: int) -> Data:
    """The data without one class of the public split."""
    kept = data.public.labels != label
    return replace(data, public=Split(data.public.inputs[kept], data.public.labels[kept]))


@pytest.mark.parametrize("adversarial", [0.0, 0.1])
def test_a_conditional_generator_is_trained_with_the_public_labels(adversarial: float, data: Data) -> None:
    observation = observe(lacking(data, 2))
    attack = GIFD(**{**FAST, "epochs": 2}, conditional=True, adversarial=adversarial)
    states = [
        attack.fit(observation.without_update(), generator=make_generator(0), progress=silent, checkpoint=NoCheckpoint()) for _ in range(2)
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    network = attack.decoder.network(observation, states[0])
    assert (network.classes, network.latent) == (data.classes - 1, FAST["latent"])
    codes = torch.zeros(network.classes, network.latent)
    images = through(network.stages, codes, torch.eye(network.classes))[0]
    assert images.shape == (network.classes, *data.input_shape)
    assert not torch.allclose(images[0], images[1], atol=1e-4)
    assert attack.memory(observation) > GIFD(**FAST).memory(observation)


def test_of_an_image_of_one_colour_its_class_is_learned() -> None:
    """What a class has in common is made without a look at the code."""
    data = make_data(public=200, classes=2)
    bright = data.public.labels[:, None, None, None].float().expand_as(data.public.inputs).contiguous()
    observation = observe(replace(data, public=Split(bright, data.public.labels)))
    attack = GIFD(**{**FAST, "epochs": 20}, batch_size=16, generator_lr=0.01, conditional=True, kl=0.1)
    state = attack.fit(observation.without_update(), generator=make_generator(0), progress=silent, checkpoint=NoCheckpoint())
    images = through(attack.decoder.network(observation, state).stages, torch.zeros(2, 16), torch.eye(2))[0].mean((1, 2, 3))
    assert images[0] + 0.3 < images[1]


@pytest.mark.parametrize("name", ["gias", "gifd"])
def test_attacks_search_a_conditional_generator_by_what_was_sent_alone(name: str, data: Data) -> None:
    fits = FitCache(None)
    data, found = lacking(data, 1), []
    for other in range(2):
        observation = observe(data, batch=2)
        # Beside the tensors that were sent nothing is left of the clients the second time.
        update = Update(dict(observation.update.tensors)) if other else observation.update
        seen = Observation(
            update=update, model=observation.model, input_shape=data.input_shape, batch_size=2, public=data.public, defense="none"
        )
        assert "labels" not in seen.granted
        case = case_of(
            attack=name, defense="none", model="mlp", dataset="photos", threat="server", profile="quick", victims=3, batch_size=2, seed=0
        )
        attack = load_attack(f"{name}(conditional=True, epochs=1, channels=4, latent=16, latent_iterations=4, iterations=9)")
        found.append(attack(seen, generator=make_generator(0), fits=fits.of(case)).inputs)
    assert torch.equal(*found)
    assert len(fits.memory) == 1


@pytest.mark.parametrize(("levels", "expected"), [("[-2.0], [0.0], [2.0]", [0, 2]), ("[2.0], [-2.0], [0.0]", [1, 0])])
def test_a_class_is_told_apart_where_codes_change_images_more(levels: str, expected: list[int], data: Data, tmp_path: Path) -> None:
    text = CONDITIONAL.replace("brightness + 0.1 * codes.mean(1, keepdim=True)", "0.02 * brightness + 2 * codes.mean(1, keepdim=True)")
    path = write(tmp_path / "conditional.py", text.replace("[-2.0], [0.0], [2.0]", levels))
    brightness = torch.tensor([[0.3], [0.7]])
    model = gitbench.load_model("lenet(init='default')", data)
    update = gitbench.client_update(model, brightness[..., None, None, None].expand(-1, -1, *data.input_shape), torch.tensor([[0], [3]]))
    seen = Observation(update=update, model=model, input_shape=data.input_shape, public=data.public)
    network = GIFD(generator=f"{path}:Own").decoder.network(seen, {})
    (mapped,) = classes_for(seen, network, infer_labels(seen), mapped=True)
    assert mapped.argmax(-1).flatten().tolist() == expected


# ------------------------------------------------------------------ benchmarks/gifd.py


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gifd_script", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("style", ["grey", "edges", "sketch"])
def test_a_style_is_of_private_images_alone(style: str, script: ModuleType, data: Data) -> None:
    found = script.styled(data, style)
    assert torch.equal(found.public.inputs, data.public.inputs)
    assert torch.equal(found.private.labels, data.private.labels)
    drawn = found.private.inputs
    assert drawn.shape == data.private.inputs.shape
    assert torch.equal(drawn, drawn[:, :1].expand_as(drawn))
    assert 0 <= drawn.min() < drawn.max() <= 1


def test_a_generator_of_other_data_has_their_classes(script: ModuleType, data: Data, tmp_path: Path) -> None:
    other = make_data(classes=7, seed=5)
    path = tmp_path / "generator.safetensors"
    attack = GIFD(**FAST, conditional=True)
    observation = observe(data)
    found = attack(observation, generator=make_generator(0), fits=script.OneGenerator(path, other)).inputs
    network = attack.decoder.network(observation, script.load_file(path))
    assert network.classes == 7
    assert torch.equal(found, attack(observation, generator=make_generator(0), fits=script.OneGenerator(path)).inputs)
