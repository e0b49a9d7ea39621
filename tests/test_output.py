"""What is taken from what a model returns, and what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import gitbench
from gitbench.attacker.layers.chain import read_chain
from gitbench.attacker.tools.labels import infer_labels
from gitbench.clients.data import Data
from gitbench.clients.model import classes_of, last_layer, last_linear
from gitbench.clients.output import output_of
from gitbench.core.errors import ModelError
from helpers import make_data
from support import ZOO, data_of


def load(kind: str) -> nn.Module:
    return gitbench.load_model(f"{ZOO}:{kind}", data_of(kind))


@pytest.mark.parametrize(
    ("kind", "taken"),
    [
        ("dropout", "logits"),
        ("a_tuple", "element 1 of a tuple"),
        ("a_dict", "the key 'logits'"),
        ("auxiliary", "logits"),
        ("auxiliary(mode='train')", "the attribute logits"),
        ("one_logit", "one logit z, read as (0, z)"),
        ("probabilities", "logits, which are probabilities"),
    ],
)
def test_what_is_taken_is_said_and_a_copy_takes_it_too(kind: str, taken: str) -> None:
    data = data_of(kind)
    model = load(kind)
    for one in (model, copy.deepcopy(model)):
        assert str(output_of(one)) == taken
        assert one(data.public.inputs[:3]).shape == (3, data.classes)


def test_a_factory_may_return_the_same_network_again(tmp_path) -> None:
    path = tmp_path / "same.py"
    path.write_text(
        "from torch import nn\nnet = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))\n"
        "def same(classes):\n    net[1] = nn.Linear(192, classes)\n    return net\n"
    )
    for classes in (2, 4):
        data = make_data(classes=classes)
        assert gitbench.load_model(f"{path}:same", data)(input=data.public.inputs[:3]).shape == (3, classes)


def test_parameters_keep_their_names() -> None:
    model = load("a_tuple")
    names = ["hidden.weight", "hidden.bias", "head.weight", "head.bias"]
    assert list(model.state_dict()) == [name for name, _ in model.named_parameters()] == names
    data = data_of("a_tuple")
    assert list(gitbench.client_update(model, data.public.inputs[:1, None], data.public.labels[:1, None]).tensors) == names


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("two_candidates", r"got tuple \(0: \(2, 4\), 1: \(2, 4\)\).*class Mine\(YourModel\)"),
        ("one_probability", "one probability for each image.*into the sigmoid"),
        ("positions", r"got \(2, 4, 8, 8\). Average over the positions"),
        ("nothing", "got NoneType"),
        ("too_many", r"got \(2, 5\). Let its last layer have 4 outputs"),
    ],
)
def test_what_is_not_plain_is_refused_with_a_way_out(kind: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"(?s){message}"):
        load(kind)


def test_the_way_out_of_a_fixed_size_works(data: Data, tmp_path) -> None:
    path = tmp_path / "own.py"
    path.write_text(
        "import torch\n"
        "class YourModel(torch.nn.Module):\n"
        "    def __init__(self, classes):\n"
        "        super().__init__()\n"
        "        self.head = torch.nn.Linear(3 * 64 * 64, classes)\n"
        "    def forward(self, inputs):\n"
        "        return self.head(inputs.flatten(1))\n"
        "def fixed(classes):\n"
        "    return YourModel(classes)\n"
    )
    with pytest.raises(ModelError, match=r"shape \(3, 8, 8\).* It takes 64x64 images") as error:
        gitbench.load_model(f"{path}:fixed", data)
    other = tmp_path / "enlarged.py"
    other.write_text("\n".join([path.read_text(), *str(error.value).splitlines()[1:], ""]))
    model = gitbench.load_model(f"{other}:enlarged", data)
    assert model(data.public.inputs[:2]).shape == (2, data.classes)


def test_weight_norm_of_old_cannot_be_copied_and_has_a_successor(data: Data) -> None:
    with pytest.raises(ModelError, match=r"parametrizations\.weight_norm for 1"), pytest.warns(FutureWarning):
        gitbench.load_model(f"{ZOO}:old_weight_norm", data)


def test_the_classifier_is_what_returns_the_logits_not_what_is_registered_last() -> None:
    assert [name for name, module in load("lstm").named_modules() if isinstance(module, nn.Linear)] == ["head", "before"]
    assert last_linear(load("lstm"))[0] == "head"
    assert last_linear(load("probabilities"))[0] == "head"
    assert last_linear(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 4)))[0] == "1"  # nothing was found out about it
    with pytest.raises(ModelError, match=r"come from '2' \(Conv2d\), not from a torch\.nn\.Linear.* Use lti"):
        last_linear(load("no_linear"))
    assert last_layer(load("no_linear"))[0] == "2"
    with pytest.raises(ModelError, match=r"No layer of Prototypes has an output for each class.* Use lti"):
        last_layer(load("prototypes"))
    assert classes_of(load("prototypes")) == 4


def test_a_convolution_that_tells_classes_shows_labels() -> None:
    model, data = load("no_linear"), data_of("no_linear")
    inputs, labels = data.public.inputs[:12, None], data.public.labels[:12, None]
    update = gitbench.client_update(model, inputs, labels)
    assert torch.equal(infer_labels(gitbench.Observation(update=update, model=model, input_shape=data.input_shape)), labels)


@pytest.mark.parametrize("batch", [1, 4])
def test_one_logit_is_trained_like_binary_cross_entropy_and_shows_its_labels(batch: int) -> None:
    model, data = load("one_logit"), data_of("one_logit")
    inputs, labels = data.public.inputs[:8].reshape(-1, batch, 3, 8, 8), data.public.labels[:8].reshape(-1, batch)
    update = gitbench.client_update(model, inputs, labels)
    hidden = torch.sigmoid(model.hidden(inputs[0].flatten(1)))
    loss = functional.binary_cross_entropy_with_logits(model.head(hidden)[:, 0], labels[0].float())
    for name, gradient in zip(update.tensors, torch.autograd.grad(loss, list(model.parameters())), strict=True):
        torch.testing.assert_close(update.tensors[name][0], gradient)
    seen = gitbench.Observation(update=update, model=model, input_shape=data.input_shape, batch_size=batch, public=data.public)
    assert torch.equal(infer_labels(seen), labels.sort(1).values)


def test_one_logit_is_no_chain_of_softmax() -> None:
    assert read_chain(gitbench.load_model("mlp", data_of("tied")), (3, 8, 8)) is not None
    assert read_chain(load("one_logit_chain"), (3, 8, 8)) is None


@pytest.mark.parametrize(("kind", "flagged"), [("probabilities", True), ("log_probabilities", False), ("sigmoids", True)])
def test_softmax_applied_twice_is_flagged_and_what_was_taken_is_stored(kind: str, flagged: bool, tiny_npz) -> None:
    found = gitbench.evaluate(
        attack="ridge", defense="none", model=f"{ZOO}:{kind}", dataset=f"npz(path={str(tiny_npz)!r})", victims=2, device="cpu"
    )
    assert found.status == "done", found.error
    assert ("softmax-twice" in found.flags) is flagged
    assert found.settings["model.output"] == ("logits, which are probabilities" if flagged else "logits")


def test_a_defended_model_without_a_linear_layer_is_measured_by_lti(tiny_npz) -> None:
    found = gitbench.evaluate(
        attack="lti(epochs=1, limit=40, width=8)", defense="gaussian_noise(std=0.1)", model=f"{ZOO}:no_linear",
        dataset=f"npz(path={str(tiny_npz)!r})", victims=2, device="cpu",
    )  # fmt: skip
    assert found.status == "done", found.error
