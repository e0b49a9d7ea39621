"""Top-k with error feedback: nothing is lost, and what several rounds tell of one gradient."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from test_defense_catalogue import error, protected, some
from test_defenses import random_update

import gitbench
from gitbench.clients.client import gradients
from gitbench.clients.data import Data
from gitbench.clients.defense import load_defense
from gitbench.clients.rounds import client_rounds
from gitbench.core.random import make_generator


@given(rate=st.floats(0.01, 1), rounds=st.integers(1, 7), seed=st.integers(0, 100))
def test_what_was_sent_and_what_is_left_add_up_to_all_gradients(rate: float, rounds: int, seed: int) -> None:
    defense = load_defense(f"topk(rate={rate!r})")
    left = torch.zeros_like(random_update().flatten())
    for number in range(rounds):
        update = random_update(seed=seed + number)
        due = left + update.flatten()
        sent = defense.protect(update, generator=make_generator(0)).flatten()
        kept = max(1, round(rate * due.shape[1]))
        for row, (all_of_it, some_of_it) in enumerate(zip(due, sent, strict=True)):
            chosen = sorted(range(len(all_of_it)), key=lambda entry: -abs(float(all_of_it[entry])))[:kept]
            oracle = torch.zeros_like(all_of_it)
            oracle[chosen] = all_of_it[chosen]
            assert torch.equal(some_of_it, oracle)
            left[row] = all_of_it - oracle
        assert torch.equal(defense.residual, left)


@given(rate=st.floats(0.01, 1))
def test_without_error_feedback_it_is_pruning(rate: float) -> None:
    update = random_update()
    entries = update.flatten().shape[1]
    count = max(1, round(rate * entries))
    defense = load_defense(f"topk(rate={rate!r}, error_feedback=False)")
    for _ in range(2):
        sent = defense.protect(update, generator=make_generator(0))
        assert torch.equal(sent.flatten(), protected(f"pruning(rate={1 - count / entries!r})", update).flatten())
    assert defense.residual is None
    assert defense.age == 1
    assert torch.equal(defense.expected(update, observed=sent).flatten(), sent.flatten())


@given(rate=st.floats(0.05, 1), rounds=st.integers(1, 12), seed=st.integers(0, 100))
def test_an_entry_that_was_sent_twice_is_known(rate: float, rounds: int, seed: int) -> None:
    update, defense = random_update(seed=seed), load_defense(f"topk(rate={rate!r})")
    defense.residual = 3 * random_update(seed=seed + 1).flatten()  # of other batches
    sent = [defense.protect(update, generator=make_generator(0)) for _ in range(rounds)]
    found = defense.combined(iter(sent)).flatten()
    often = torch.stack([one.flatten() != 0 for one in sent]).sum(0)
    torch.testing.assert_close(found[often > 1], update.flatten()[often > 1], rtol=1e-4, atol=1e-5)
    mean = gitbench.Update.mean(sent).flatten()
    torch.testing.assert_close(found[often < 2], mean[often < 2])


def test_over_rounds_of_one_batch_nothing_stays_hidden(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = some(data)
    raw, defense = gradients(model, inputs, labels), load_defense("topk(rate=0.1)")
    sent = client_rounds(model, inputs, labels, rounds=60, defense=defense, generator=make_generator(0), public=data.public)
    averaged, combined = [], []
    for rounds in (1, 6, 60):
        averaged.append(error(gitbench.Update.mean(sent[:rounds]), raw))
        combined.append(error(defense.combined(sent[:rounds]), raw))
    assert averaged[0] > 1.5 * averaged[1]
    assert averaged[1] > 4 * averaged[2]
    assert combined[0] == averaged[0]
    assert combined[1] < averaged[1]
    assert combined[2] < averaged[2] / 2
    assert defense.residual is None  # clients have copies
