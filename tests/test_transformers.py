"""Models as the library transformers builds them, and its own where it is installed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("tokenizers")
pytest.importorskip("rouge_score")

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.clients.client import client_update
from gitbench.clients.data import Data
from gitbench.clients.task import data_for
from gitbench.core.random import make_generator


@pytest.fixture(scope="module")
def text() -> Data:
    return gitbench.load_dataset("text(length=8, vocabulary=400)")


class StandIn(torch.nn.Module):
    """As the library transformers builds its models."""

    def __init__(self, vocabulary: int, classes: int = 0):
        super().__init__()
        self.tokens, self.generates = torch.nn.Embedding(vocabulary, 16), not classes
        self.q_proj, self.out = torch.nn.Linear(16, 16), torch.nn.Linear(16, classes or vocabulary)

    def can_generate(self) -> bool:
        return self.generates

    def forward(self, input_ids=None, attention_mask=None, inputs_embeds=None, use_cache=True):
        assert (input_ids is None) != (inputs_embeds is None)
        assert use_cache is False
        states = self.out(self.q_proj(self.tokens(input_ids) if inputs_embeds is None else inputs_embeds).tanh())
        return SimpleNamespace(logits=states if self.generates else states.mean(1))


def stand_in(modality, classes):
    return StandIn(modality.vocabulary, classes)


def stand_in_generator(modality):
    return StandIn(modality.vocabulary)


@pytest.mark.parametrize("factory", ["stand_in", "stand_in_generator"])
def test_models_that_take_vectors_by_name_need_no_wrapper(factory: str, text: Data) -> None:
    network = gitbench.load_model(f"{__file__}:{factory}", text)
    tokens, generates = text.private.inputs[:2], "generator" in factory
    torch.testing.assert_close(network(text.modality.enter(network, tokens)), network(tokens))
    data = data_for(network, text)
    assert data.private.labels.shape == ((len(text.private), 8) if generates else (len(text.private),))
    assert not generates or torch.equal(data.private.labels[:, :-1], text.private.inputs[:, 1:])
    inputs, labels = gitbench.draw_victims(data.private, victims=2, batch_size=1, seed=0)
    granted = {"input_shape": (8,), "batch_size": 1, "public": data.public, "modality": data.modality}
    observation = gitbench.Observation(update=client_update(network, inputs, labels), model=network, **granted)
    for attack in ("embeddings", "dager", "dlg(iterations=3)", "tag(iterations=3)", "lamp(iterations=3)"):
        assert load_attack(attack, profile="quick")(observation, generator=make_generator(0)).inputs.shape == inputs.shape


def bert(modality, classes):
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 16}
    return BertForSequenceClassification(BertConfig(vocab_size=modality.vocabulary, num_labels=classes, **sizes))


def llama(modality):
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=modality.vocabulary, **sizes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("factory", "batch"), [("bert", 1), ("llama", 2)])
def test_dager_reads_models_of_transformers_exactly(factory: str, batch: int, text: Data) -> None:
    pytest.importorskip("transformers")
    network = gitbench.load_model(f"{__file__}:{factory}", text)
    data = data_for(network, text)
    inputs, labels = gitbench.draw_victims(data.private, victims=2, batch_size=batch, seed=0)
    granted = {"input_shape": (8,), "batch_size": batch, "public": data.public, "modality": data.modality}
    observation = gitbench.Observation(update=client_update(network, inputs, labels), model=network, **granted)
    found = load_attack("dager")(observation, generator=make_generator(0)).inputs
    assert [set(map(tuple, one.tolist())) for one in found] == [set(map(tuple, one.tolist())) for one in inputs]
