"""Models of one's own: what is filled in is one rule for the check and the loader, and what cannot be used is said with a way out."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from torch import nn

import gitbench
from gitbench.clients.data import Data, Dataset
from gitbench.core.errors import DataError, ModelError, SpecError
from gitbench.core.spec import parse_spec
from gitbench.identity.loading import check_spec
from helpers import make_data, write

OWN = """
import math
import gitbench
from torch import nn

class Net(nn.Module):
    def __init__(self, input_shape, classes, width=4):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, inputs):
        return self.body(inputs)

class Child(Net):
    def __init__(self, *, classes, input_shape, width):
        super().__init__(input_shape, classes, width)

def build(input_shape, classes, width=4):
    return Net(input_shape, classes, width)

class Factory(gitbench.ModelFactory):
    def __init__(self, *, input_shape, width=4):
        self.input_shape, self.width = input_shape, width

    def build(self, data):
        return Net(self.input_shape, data.classes, self.width)

class Short(gitbench.ModelFactory):
    def build(self):
        return None

class Failing(gitbench.ModelFactory):
    def build(self, data):
        return data.nothing

class Empty(gitbench.ModelFactory):
    def build(self, data):
        return None

class Undone(gitbench.ModelFactory): ...

def needs(missing, /):
    return None

def colour(classes, channels=3):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Flatten(), nn.Linear(4 * 6 * 6, classes))

def lazy(classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(classes))

def flat(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, classes))
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    return str(write(tmp_path / "own.py", OWN))


@pytest.mark.parametrize("call", ["Net(width=7)", "Child(width=7)", "build(width=7)", "Factory(width=7)", "Net(width=7, classes=4)"])
def test_what_is_filled_in_is_asked_of_nobody(own: str, call: str, data: Data) -> None:
    check_spec(parse_spec("model", f"{own}:{call}"))
    model = gitbench.load_model(f"{own}:{call}", data)
    assert model.body[1].out_features == 7
    assert model.body[-1].out_features == data.classes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("Child", r"'own.py:Child' needs width: write .*own.py:Child\(width=\.\.\.\)"),
        ("Net(widht=7)", r"takes no option 'widht'\. Did you mean 'width'"),
        ("Factory(widht=7)", r"takes no option 'widht'\. Did you mean 'width'"),
        ("needs", r"'own.py:needs' needs missing"),
    ],
)
def test_what_is_not_filled_in_is_refused_by_the_check(own: str, call: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        check_spec(parse_spec("model", f"{own}:{call}"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Short", r"build\(\) of the model 'own.py:Short' raised TypeError: .*positional argument.*Expected build\(self, data\) -> torch.nn.Module\."),
        ("Failing", r"build\(\) of the model 'own.py:Failing' raised AttributeError: 'Data' object has no attribute 'nothing'"),
        ("Empty", r"Expected build\(\) of the model 'own.py:Empty' to return a torch.nn.Module, got NoneType"),
        ("lazy", r"those of 1 have no shape yet\. Call the network once on zeros"),
        ("Undone", r"must define build\(self, data\) -> torch.nn.Module"),
        ("needs(missing=1)", r"the model factory .* raised TypeError: .*Expected a function or class that takes the options"),
    ],
)  # fmt: skip
def test_a_factory_that_fails_is_named_with_what_was_expected(own: str, name: str, message: str, data: Data) -> None:
    with pytest.raises(ModelError, match=message):
        gitbench.load_model(f"{own}:{name}", data)


def test_images_of_one_channel_for_a_model_of_colour(own: str, tmp_path: Path) -> None:
    grey = make_data(channels=1)
    for call in ("colour", "flat"):
        with pytest.raises(
            ModelError, match=r"takes 3 channels and the images have 1: build it for 1 .*repeat the channel: channels=3"
        ) as told:
            gitbench.load_model(f"{own}:{call}", grey)
        assert "cannot take images of shape (1, 8, 8)" in str(told.value)
    with pytest.raises(ModelError, match=r"takes 1 channels and the images have 3: build it for 3") as told:
        gitbench.load_model(f"{own}:colour(channels=1)", make_data())
    assert "repeat" not in str(told.value)
    # What the message says to do.
    assert isinstance(gitbench.load_model(f"{own}:colour(channels=1)", grey), nn.Module)


def test_a_dataset_of_one_class_has_no_gradient_to_speak_of(data: Data) -> None:
    class One(Dataset):
        def load(self) -> Data:
            split = dataclasses.replace(data.public, labels=data.public.labels * 0)
            return Data(split, split, classes=1, name="one")

    with pytest.raises(
        DataError, match=r"Expected at least two classes in One, got 1: .*gradient are zero whatever the image\. Add images"
    ):
        gitbench.load_dataset(One())
