"""What does not train is not sent: an update has exactly the parameters that train, and every attack copes or says that it cannot."""

from __future__ import annotations

from pathlib import Path

import frozen_models
import pytest
import torch

import gitbench
from gitbench import Data, GitbenchError, Observation, client_update, load_attack, load_model, make_generator
from gitbench.clients.trained import sent_share
from gitbench.core.errors import DefenseError, ModelError, SpecError
from helpers import make_data, write_npz

KINDS = ["whole", *frozen_models.FROZEN]
ATTACKS = {
    "ridge": "ridge(limit=64)",
    "lti": "lti(epochs=1, limit=64, width=8)",
    "git": "git(limit=64, epochs=1, width=8, coarse_width=8, sketch=32, draws=1)",
    "git module": "git(variant='module', limit=64, epochs=1, coarse_width=8, sketch=32)",
    "ig": "ig(iterations=2)",
    "dlg": "dlg(iterations=2)",
    "gias": "gias(latent_iterations=1, iterations=1, restarts=1, epochs=1, limit=32, channels=2, latent=4)",
    "recursion": "recursion(limit=64, iterations=2, rehearsal=16, samples=0, prior='spectrum')",
    "ridge+ig": "ridge(limit=64)+ig(iterations=2)",
}


@pytest.fixture(scope="module")
def data() -> Data:
    return make_data(public=400, private=16)


def spec(kind: str) -> str:
    return f"{frozen_models.__file__}:{kind}"


def observed(model: torch.nn.Module, data: Data, *, victims: int = 2, batch: int = 1) -> Observation:
    inputs = data.private.inputs[: victims * batch].reshape(victims, batch, *data.input_shape)
    labels = data.private.labels[: victims * batch].reshape(victims, batch)
    update = client_update(model, inputs, labels)
    return Observation(update=update, model=model, input_shape=data.input_shape, batch_size=batch, public=data.public, defense="none")


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_has_exactly_the_parameters_that_train(kind: str, data: Data) -> None:
    model = load_model(spec(kind), data)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    seen = observed(model, data)
    assert list(seen.update.tensors) == trained == list(seen.sent)
    assert all(parameter.requires_grad is (name in trained) for name, parameter in seen.architecture.named_parameters())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_every_attack_copes_or_says_what_to_take(kind: str, batch: int, data: Data) -> None:
    seen = observed(load_model(spec(kind), data), data, batch=batch)
    ran = []
    for name, attack in ATTACKS.items():
        try:
            found = load_attack(attack)(seen, generator=make_generator(0)).inputs
        except GitbenchError as error:
            assert "raised" not in str(error), (name, error)
            assert "se " in str(error), (name, error)  # "Use ig or dlg", "use lti"
            continue
        assert found.shape == (2, batch, *data.input_shape)
        assert torch.isfinite(found).all()
        ran.append(name)
    assert {"lti", "dlg"} <= set(ran), ran
    if kind == "whole":
        assert len(ran) == len(ATTACKS)


def error(found: torch.Tensor, data: Data) -> float:
    return float((found[:, 0] - data.private.inputs[: len(found)]).square().mean())


@pytest.mark.parametrize(
    ("kind", "attack"), [("probe", "ridge"), ("backbone", "ridge"), ("backbone", "git(variant='module')"), ("probe", "auto")]
)
def test_what_is_sent_of_a_part_gives_the_images_away_all_the_same(kind: str, attack: str, data: Data) -> None:
    seen = observed(load_model(spec(kind), data), data, victims=8)
    found = load_attack(attack, profile="quick")(seen, generator=make_generator(0)).inputs
    blind = float((data.public.inputs.mean(0) - data.private.inputs[:8]).square().mean())
    assert error(found, data) < blind / 2


def test_a_frozen_model_has_figures_of_its_own(data: Data, tmp_path: Path) -> None:
    """They equalled the unfrozen model's digit for digit."""
    (tmp_path / "mine.py").write_text(Path(frozen_models.__file__).read_text())
    options = {
        "attack": "ig(iterations=3)",
        "dataset": f"npz(path={str(write_npz(tmp_path / 'tiny.npz', data))!r})",
        "victims": 8,
        "device": "cpu",
    }
    whole, probe = (gitbench.evaluate(model=f"{tmp_path / 'mine.py'}:{kind}", defense="none", **options) for kind in ("whole", "probe"))
    assert whole.metrics["psnr"].values != probe.metrics["psnr"].values
    assert "model.sent" not in whole.settings
    assert probe.settings["model.sent"] == f"{sent_share(frozen_models.probe()):.2%}"


def test_an_option_freezes_parts_of_any_model(data: Data) -> None:
    model = load_model("mlp(hidden=(8,), frozen=('*.bias',))", data)
    assert all(parameter.requires_grad is not name.endswith("bias") for name, parameter in model.named_parameters())
    with pytest.raises(SpecError, match="has no module or parameter 'convv' to freeze"):
        load_model("lenet(frozen='convv')", data)
    with pytest.raises(SpecError, match="Expected frozen of"):
        load_model("mlp(frozen=3)", data)
    with pytest.raises(ModelError, match="a client would send nothing"):
        load_model("mlp(frozen='*')", data)
    with pytest.raises(ModelError, match="a client would send nothing"):
        load_model(spec("everything"), data)


def test_training_beforehand_leaves_what_is_frozen(data: Data) -> None:
    before, after = (load_model(f"mlp(hidden=(8,), frozen='*.bias', trained_epochs={epochs})", data) for epochs in (0, 1))
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new) is name.endswith("bias"), name


def test_a_client_trains_what_the_server_thinks_it_trains(data: Data) -> None:
    class Secret(gitbench.Defense):
        def local_model(self, model, *, public, generator):
            import copy

            own = copy.deepcopy(model)
            next(own.parameters()).requires_grad_(False)
            return own

    model = load_model("mlp(hidden=(8,))", data)
    with pytest.raises(DefenseError, match="trains other parameters than the shared model"):
        client_update(model, data.private.inputs[:1][None], data.private.labels[:1][None], defense=Secret())
