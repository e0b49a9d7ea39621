"""Models that people have, each with each attack: reconstructed, or refused with a way out. docs/model-support.md is the table."""

from __future__ import annotations

import os

import pytest

import gitbench
import zoo
from gitbench.attacker.attacks.auto import attack as auto
from gitbench.attacker.observation import Observation
from gitbench.clients.client import client_update
from gitbench.core.errors import ModelError
from gitbench.core.random import make_generator
from support import OF_LARGE, SMALL, TORCHVISION, ZOO, block, data_of, torchvision_outcome, torchvision_table, zoo_outcome, zoo_table

NAMES = ("ridge", "lti", "git", "ig", "dlg")


def check(said: str, attack: str) -> None:
    """A refusal says which part of the model is meant, and which other attack to take."""
    if said:
        assert "raised" not in said.partition("torch.fx")[0], said
        ways_out = said[max(said.rfind("Use "), said.rfind("use ")) :]
        assert any(name in ways_out for name in NAMES if not attack.startswith(name)), said


@pytest.mark.parametrize("kind", zoo.KINDS)
@pytest.mark.parametrize("attack", SMALL)
def test_an_attack_reconstructs_or_says_which_other_does(attack: str, kind: str) -> None:
    check(zoo_outcome(kind, attack), attack)


def test_the_table_of_the_documentation_is_what_runs() -> None:
    assert zoo_table() == block("zoo"), "run `python tests/support.py`"


@pytest.mark.parametrize(("kind", "classes"), [("prototypes", 4), ("multihead_attention", 4), ("one_logit", 2)])
def test_auto_runs_what_can_be_had(kind: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(auto._BUDGETS, "quick", auto.SearchBudget(posterior=1, ig=1, played=4, own=2))
    data = data_of(kind)
    model = gitbench.load_model(f"{ZOO}:{kind}", data)
    inputs, labels = data.private.inputs[:4, None], data.private.labels[:4, None]
    attack = auto.Auto(profile="quick")
    attack._priors = {name: gitbench.load_attack(SMALL[name]) for name in attack._priors}
    seen = Observation(
        update=client_update(model, inputs, labels), model=model, input_shape=data.input_shape, public=data.public, defense="none"
    )
    assert attack(seen, generator=make_generator(0)).inputs.shape == inputs.shape


def test_auto_refuses_where_nothing_can_be_matched() -> None:
    data = data_of("pixel_embedding")
    model = gitbench.load_model(f"{ZOO}:pixel_embedding", data)
    update = client_update(model, data.private.inputs[:2, None], data.private.labels[:2, None])
    seen = Observation(update=update, model=model, input_shape=data.input_shape)
    with pytest.raises(ModelError, match=r"'embedding' \(Embedding\).* use ridge, git"):
        gitbench.load_attack("auto(profile='quick')")(seen, generator=make_generator(0))


@pytest.mark.skipif("GITBENCH_SLOW" not in os.environ, reason="an hour: set GITBENCH_SLOW")
@pytest.mark.parametrize("attack", OF_LARGE)
@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name: str, attack: str) -> None:
    check(torchvision_outcome(name, attack), attack)


@pytest.mark.skipif("GITBENCH_SLOW" not in os.environ, reason="an hour: set GITBENCH_SLOW")
def test_the_table_of_torchvision_is_what_runs() -> None:
    assert torchvision_table() == block("torchvision"), "run `python tests/support.py torchvision`"
