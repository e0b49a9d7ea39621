"""Defenses that send another direction, or noise where it counts: CENSOR and OUTPOST against slow definitions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import gitbench
import zoo
from gitbench.clients.client import gradients
from gitbench.clients.update import Batch, Update
from gitbench.core.errors import DefenseError, SpecError
from gitbench.core.random import make_generator
from gitbench_defenses.censor import orthogonal
from gitbench_defenses.outpost import risk
from helpers import make_data

DATA = make_data()


def victims(count: int = 3, size: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, labels = DATA.private.inputs[: count * size], DATA.private.labels[: count * size]
    return inputs.unflatten(0, (count, size)), labels.unflatten(0, (count, size))


def raw_update(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> Update:
    return gradients(model, inputs, labels).of(Batch(model, inputs, labels))


# ------------------------------------------------------------------ CENSOR


@given(shape=st.lists(st.integers(1, 5), min_size=0, max_size=3), seed=st.integers(0, 999), exponent=st.integers(-6, 6))
def test_what_censor_sends_is_orthogonal_and_as_long(shape: list[int], seed: int, exponent: int) -> None:
    generator = make_generator(seed)
    tensor = torch.randn(4, *shape, generator=generator) * 10.0**exponent
    tensor[0] = 0
    before = tensor.clone()
    found = orthogonal(tensor, generator)
    assert torch.equal(tensor, before)
    assert found.shape == tensor.shape
    own, sent = tensor.reshape(4, -1).double(), found.reshape(4, -1).double()
    lengths = own.norm(dim=1)
    if own.shape[1] == 1:
        assert not sent.any()  # nothing is at right angles to it
        return
    torch.testing.assert_close(sent.norm(dim=1), lengths, rtol=1e-4, atol=0.0)
    assert ((own * sent).sum(1).abs() <= 2e-3 * lengths**2).all()
    assert not (own == sent).all(1)[1:].any()


def slow_loss(model: nn.Module, update: Update, row: int, inputs: torch.Tensor, labels: torch.Tensor, lr: float) -> float:
    moved = copy.deepcopy(model).eval()
    with torch.no_grad():
        for name, parameter in moved.named_parameters():
            parameter.sub_(lr * update.tensors[name][row])
        return float(functional.cross_entropy(moved(inputs[row]), labels[row]))


@pytest.mark.parametrize("model", ["mlp", "lenet", f"{zoo.__file__}:batch_norm(mode='train')"])
def test_censor_sends_the_candidate_with_the_lowest_loss(model: str) -> None:
    network = gitbench.load_model(model, DATA)
    training, (inputs, labels) = network.training, victims()
    update = raw_update(network, inputs, labels)
    sent = gitbench.load_defense("censor(trials=5, lr=0.5)").protect(update, generator=make_generator(3))
    assert network.training is training
    generator = make_generator(3)
    tried = [update.map(lambda _name, tensor: orthogonal(tensor, generator)) for _ in range(5)]
    for row in range(3):
        losses = [slow_loss(network, one, row, inputs, labels, 0.5) for one in tried]
        best = tried[int(np.argmin(losses))]
        for name, tensor in sent.tensors.items():
            assert torch.equal(tensor[row], best.tensors[name][row])


def test_censor_in_chunks_and_without_a_finite_loss_never_sends_the_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    import gitbench_defenses.censor as module

    network = gitbench.load_model("mlp", DATA)
    update = raw_update(network, *victims())
    monkeypatch.setattr(module, "_ENTRIES", 1)
    monkeypatch.setattr(module, "stacked_losses", lambda _model, _weights, inputs, _labels: torch.full((len(inputs),), math.nan))
    sent = gitbench.load_defense("censor").protect(update, generator=make_generator(0))
    assert {name: tensor.shape for name, tensor in sent.tensors.items()} == {name: tensor.shape for name, tensor in update.tensors.items()}
    for name, tensor in sent.tensors.items():
        mine, theirs = update.tensors[name].flatten(1), tensor.flatten(1)
        assert (torch.cosine_similarity(mine, theirs).abs() < 1e-3).all()
        torch.testing.assert_close(mine.norm(dim=1), theirs.norm(dim=1))


def test_an_attacker_knows_the_lengths_and_the_right_angle() -> None:
    network = gitbench.load_model("mlp", DATA)
    update = raw_update(network, *victims())
    defense = gitbench.load_defense("censor(trials=2)")
    sent = defense.protect(update, generator=make_generator(0))
    for name, tensor in defense.expected(update, observed=sent).tensors.items():
        torch.testing.assert_close(tensor, sent.tensors[name], atol=1e-3 * float(sent.tensors[name].abs().max()), rtol=0.0)
    wrong = raw_update(network, *(tensor.flip(0) for tensor in victims()))
    for name, tensor in defense.expected(wrong, observed=sent).tensors.items():
        own, seen = wrong.tensors[name].flatten(1), sent.tensors[name].flatten(1)
        dots = (own * seen).sum(1) / seen.norm(dim=1)
        errors = (own.norm(dim=1) - seen.norm(dim=1)).square() + dots.square()
        torch.testing.assert_close((tensor.flatten(1) - seen).square().sum(1), errors, rtol=1e-3, atol=1e-8)


# ------------------------------------------------------------------ OUTPOST


@settings(max_examples=10)
@given(prune=st.floats(0, 1), perturbed=st.floats(0, 1), seed=st.integers(0, 99))
def test_outpost_prunes_and_perturbs_where_the_authors_do(prune: float, perturbed: float, seed: int) -> None:
    network = gitbench.load_model("mlp", DATA)
    update = raw_update(network, *victims())
    spec = f"outpost(prune={prune!r}, perturbed={perturbed!r}, noise=1000.0, decay=0.0)"
    sent = gitbench.load_defense(spec).protect(update, generator=make_generator(seed))
    weights = dict(network.named_parameters())
    total = sum(tensor[0, 0].numel() for tensor in update.tensors.values())
    for row in range(3):
        fisher = {name: tensor[row].numpy() ** 2 for name, tensor in update.tensors.items()}
        fisher = {name: square.mean(0) for name, square in fisher.items()}
        threshold = np.sort(np.concatenate([part.flatten() for part in fisher.values()]))[::-1]
        noisy = round(perturbed * total)
        for name, tensor in update.tensors.items():
            before, after = tensor[row].numpy(), sent.tensors[name][row].numpy()
            places = np.broadcast_to(fisher[name] >= threshold[noisy - 1] if noisy else np.zeros_like(fisher[name], bool), before.shape)
            kept = round((1 - prune) * before.size)
            smallest = np.sort(np.abs(before).flatten())[::-1][kept - 1] if kept else np.inf
            pruned = np.where(np.abs(before) >= smallest, before, 0)
            assert np.array_equal(after[~places], pruned[~places])
            if places.sum() > 30:
                spread = (after - pruned)[places].std() / (1000 * min(1, weights[name].detach().numpy().var(ddof=1)))
                assert spread == pytest.approx(1, abs=5 / math.sqrt(2 * places.sum()))


def test_outpost_leaves_a_share_of_the_updates_raw_which_several_rounds_show() -> None:
    network = gitbench.load_model("mlp", DATA)
    inputs, labels = (tensor[:1].expand(200, *tensor.shape[1:]) for tensor in victims(size=1))
    defense = gitbench.load_defense("outpost(decay=0.5, iteration=2)")
    update = raw_update(network, inputs, labels)
    sent = [defense.protect(update, generator=make_generator(seed)) for seed in range(3)]
    raw = torch.stack([torch.isclose(one.flatten(), update.flatten(), rtol=0, atol=0).all(1) for one in sent])
    assert float(raw.float().mean()) == pytest.approx(0.5, abs=0.1)
    seen = defense.combined(sent).flatten()
    ever = raw.any(0)
    torch.testing.assert_close(seen[ever], update.flatten()[ever])
    mean = torch.stack([one.flatten() for one in sent]).mean(0)
    torch.testing.assert_close(seen[~ever], mean[~ever])
    assert defense.combined(sent[:1]) is sent[0]


def test_the_risk_of_a_parameter_is_its_variance_up_to_one() -> None:
    assert risk(torch.ones(1)) == 0
    assert risk(torch.tensor([0.0, 100.0])) == 1
    assert risk(torch.tensor([0.0, 1.0])) == pytest.approx(0.5)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "spec",
    [
        *("censor(trials=0)", "censor(trials=2.0)", "censor(lr=0)", "outpost(prune=2)", "outpost(perturbed=-1)", "outpost(noise=-1)"),
        *("outpost(decay=-1)", "outpost(iteration=-1)"),
    ],
)
def test_impossible_options_are_refused(spec: str) -> None:
    with pytest.raises(SpecError, match="refuses its options: expected"):
        gitbench.load_defense(spec)


@pytest.mark.parametrize("spec", ["censor", "outpost", "soteria(rate=0.5)"])
def test_an_update_without_its_batch_is_an_error(spec: str) -> None:
    update = gradients(gitbench.load_model("mlp", DATA), *victims())
    with pytest.raises(DefenseError, match="got an update without its batch"):
        gitbench.load_defense(spec).protect(update, generator=make_generator(0))
