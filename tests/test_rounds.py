"""Several rounds of the same victims: what is drawn afresh averages out, what is not changes nothing."""

from __future__ import annotations

import pytest
import torch
from test_own_defenses import Counter, ErrorFeedback

from gitbench import Data, Defense, Observation, Update, client_update, load_model, make_generator
from gitbench.attacker.tools.public_pairs import PublicPairs
from gitbench.clients.defense import load_defense
from gitbench.clients.rounds import client_rounds
from gitbench.core.errors import AttackError, ConfigError, DefenseError
from gitbench.core.progress import silent

DETERMINISTIC = ["none", "pruning(rate=0.5)", "clipping(max_norm=0.1) | pruning(rate=0.5)"]


class Thinned(Defense):
    """A mask that is drawn afresh, and is told apart from what is sent."""

    def protect(self, update, *, generator):
        return update.map(lambda _, tensor: tensor * (torch.rand(tensor.shape, generator=generator) < 0.2))

    def expected(self, update, *, observed):
        return update.map(lambda name, tensor: tensor * (observed.tensors[name] != 0))

    def combined(self, updates):
        return Update.mean(updates, skip_zeros=True)


class Shaken(Defense):
    """Draws before the gradient is taken: the batch that is differentiated is another one in each round."""

    def prepare(self, inputs, labels, *, generator):
        return (inputs + 0.2 * torch.randn(inputs.shape, generator=generator)).clamp(0, 1), labels


def victims_of(data: Data, count: int = 3) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    return load_model("mlp", data), data.private.inputs[:count][:, None], data.private.labels[:count][:, None]


def seen(data: Data, defense: Defense | str, rounds: int, *, client: str | None = None, known: bool = True) -> Observation:
    model, inputs, labels = victims_of(data)
    update = client_rounds(
        model, inputs, labels, rounds=rounds, defense=defense, client=client, generator=make_generator(1), public=data.public
    )
    return Observation(
        update=update, model=model, input_shape=data.input_shape, public=data.public, client=client, defense=defense if known else None
    )


# ------------------------------------------------------------------ what is sent, and what it comes to


@pytest.mark.parametrize(
    "defense",
    [*DETERMINISTIC, "gaussian_noise(std=0.1)", "dp_sgd(noise_multiplier=1.0)", "parameter_drift(epochs=1, samples=32)", Shaken()],
)
@pytest.mark.parametrize("client", [None, "fedavg(steps=2, lr=0.1)"])
def test_the_first_round_is_what_one_round_sends(defense: Defense | str, client: str | None, data: Data) -> None:
    if client and str(defense).startswith("dp_sgd"):
        return
    model, inputs, labels = victims_of(data)
    one = client_update(model, inputs, labels, defense=defense, client=client, generator=make_generator(3), public=data.public)
    for rounds in (1, 3):
        found = client_rounds(
            model, inputs, labels, rounds=rounds, defense=defense, client=client, generator=make_generator(3), public=data.public
        )
        assert len(found) == rounds
        assert torch.equal(found[0].flatten(), one.flatten())


@pytest.mark.parametrize("rounds", [4, 64])
@pytest.mark.parametrize("defense", ["gaussian_noise(std=0.5)", "clipping(max_norm=1.0) | gaussian_noise(std=0.5)"])
def test_noise_averages_out(defense: str, rounds: int, data: Data) -> None:
    model, inputs, labels = victims_of(data)
    clean = client_update(model, inputs, labels, defense=defense.replace("gaussian_noise(std=0.5)", "gaussian_noise(std=0.0)"))
    left = seen(data, defense, rounds).update.flatten() - clean.flatten()
    assert float(left.var()) == pytest.approx(0.25 / rounds, rel=0.1)
    # The attacker's own plays are as noisy, and not less.
    observation = seen(data, defense, rounds)
    indices = torch.arange(4)[:, None]
    raw = observation.public_gradients(indices, generator=make_generator(0))
    expected = observation.expectation(raw, observed=raw).flatten()
    for played in (
        observation.public_updates(indices, generator=make_generator(2)),
        observation.protected(raw, generator=make_generator(2)),
    ):
        assert float((played.flatten() - expected).var()) == pytest.approx(0.25 / rounds, rel=0.1)


def test_masks_add_up(data: Data) -> None:
    model, inputs, labels = victims_of(data)
    raw = client_update(model, inputs, labels).flatten()
    observation = seen(data, Thinned(), 8)
    single = torch.stack([update.flatten() for update in observation.rounds])
    union = (single != 0).any(0)
    assert float(union.float().mean()) == pytest.approx(float(((raw != 0).float().mean()) * (1 - 0.8**8)), abs=0.02)
    assert torch.allclose(observation.update.flatten(), torch.where(union, raw, 0.0), rtol=1e-5)
    # Who does not know the defense takes the mean.
    assert torch.allclose(observation.undefended().update.flatten(), single.mean(0), atol=1e-6)
    assert torch.allclose(observation.oblivious().update.flatten(), single.mean(0), atol=1e-6)
    assert torch.equal(observation.undefended().update.flatten(), seen(data, Thinned(), 8, known=False).update.flatten())
    # A composition takes the way of the last part that knows one.
    for composed in (Thinned() | load_defense("clipping(max_norm=1e9)"), load_defense("clipping(max_norm=1e9)") | Thinned()):
        assert torch.allclose(seen(data, composed, 8).update.flatten(), torch.where(union, raw, 0.0), rtol=1e-5)


def test_the_mean_by_hand() -> None:
    first, second = Update({"a": torch.tensor([[1.0, 0.0, 0.0]])}), Update({"a": torch.tensor([[3.0, 4.0, 0.0]])})
    assert Update.mean([first]) is first
    assert Update.mean([first] * 3) is first
    assert Update.mean(iter([first, second])).tensors["a"].tolist() == [[2.0, 2.0, 0.0]]
    assert Update.mean([first, first, second]).tensors["a"].tolist() == [pytest.approx([5 / 3, 4 / 3, 0.0])]
    assert Update.mean([first, first, second], skip_zeros=True).tensors["a"].tolist() == [pytest.approx([5 / 3, 4.0, 0.0])]
    assert first.tensors["a"].tolist() == [[1.0, 0.0, 0.0]]


class Counted(Defense):
    """Tells how often it was asked."""

    asked: list[int] = []

    def protect(self, update, *, generator):
        self.asked.append(len(update))
        return update.map(lambda _, tensor: tensor / 2)


def test_a_deterministic_defense_costs_two_rounds_at_most(data: Data) -> None:
    Counted.asked.clear()
    observation = seen(data, Counted(), 50)
    assert len(Counted.asked) == 2
    assert len(observation.rounds) == 50
    assert all(update is observation.update for update in observation.rounds)
    assert observation.repeats == 1
    assert observation.of_victims(torch.tensor([1]), labels=torch.zeros(1, 1)).rounds[7].victims == 1


@pytest.mark.parametrize("defense", [Shaken(), "parameter_drift(epochs=1, samples=32, lr=0.1)"])
def test_what_is_drawn_before_the_gradient_is_drawn_in_each_round(defense: Defense | str, data: Data) -> None:
    observation = seen(data, defense, 4)
    flat = torch.stack([update.flatten() for update in observation.rounds])
    assert all(not torch.equal(flat[0], other) for other in flat[1:])
    assert torch.allclose(observation.update.flatten(), flat.mean(0), atol=1e-6)
    # Public pairs rehearse that: four draws are nearer to the mean of many than one is.
    order = torch.arange(8)[:, None]
    found = {}
    for rounds in (1, 4, 64):
        pairs = PublicPairs(seen(data, defense, rounds), order, generator=make_generator(0), progress=silent, what="test")
        found[rounds] = pairs.updates(torch.arange(8), generator=make_generator(0)).flatten()
        assert torch.equal(pairs.updates(torch.tensor([5, 2]), generator=make_generator(9)).flatten(), found[rounds][[5, 2]])
        assert pairs.changing is (rounds > 1)
        without = PublicPairs(seen(data, defense, rounds), order, generator=make_generator(0), progress=silent, what="test", budget=0)
        assert torch.equal(without.updates(torch.arange(8), generator=make_generator(0)).flatten(), found[rounds])
    assert (found[4] - found[64]).norm() < 0.8 * (found[1] - found[64]).norm()


def test_a_client_that_draws_its_order_draws_it_in_each_round(data: Data) -> None:
    model, inputs, labels = (
        load_model("mlp", data),
        data.private.inputs[:6].unflatten(0, (2, 3)),
        data.private.labels[:6].unflatten(0, (2, 3)),
    )
    client = "fedavg(steps=2, lr=1.0, batch_size=1)"
    sent = client_rounds(model, inputs, labels, rounds=3, client=client, generator=make_generator(0))
    assert not torch.allclose(sent[0].flatten(), sent[1].flatten(), rtol=1e-3)
    observation = Observation(update=sent, model=model, input_shape=data.input_shape, batch_size=3, client=client, public=data.public)
    in_gradients = torch.stack([update.flatten() for update in sent]).mean(0) / observation.client.unit
    assert torch.allclose(observation.update.flatten(), in_gradients, atol=1e-6)
    indices = torch.arange(3)[None]
    one, again = (observation.public_gradients(indices, generator=make_generator(seed)).flatten() for seed in (4, 5))
    assert not torch.equal(one, again)
    assert observation.players.changing(data.public.inputs[:3][None], data.public.labels[:3][None])


def test_secure_aggregation_is_combined_after_the_sum(data: Data) -> None:
    model, inputs, labels = (
        load_model("mlp", data),
        data.private.inputs[:8].unflatten(0, (2, 4)),
        data.private.labels[:8].unflatten(0, (2, 4)),
    )
    client, defense = "secure_aggregation(clients=2)", "gaussian_noise(std=0.5)"
    sent = client_rounds(model, inputs, labels, rounds=32, client=client, defense=defense, generator=make_generator(0))
    raw = client_update(model, inputs, labels, client=client)
    observation = Observation(update=sent, model=model, input_shape=data.input_shape, batch_size=4, client=client, defense=defense)
    # Two clients, so half the variance of one in the mean over them; then the rounds.
    left = observation.update.flatten() - observation.client.in_gradients(raw).flatten()
    assert float(left.var()) == pytest.approx(0.25 / 2 / 32, rel=0.1)


# ------------------------------------------------------------------ what a defense keeps


def test_one_that_keeps_something_lives_on_through_the_rounds_that_are_seen(data: Data) -> None:
    model, inputs, labels = victims_of(data)
    sent = client_rounds(model, inputs, labels, rounds=3, defense=ErrorFeedback(), generator=make_generator(5), public=data.public)
    one = client_update(model, inputs, labels, defense=ErrorFeedback(), generator=make_generator(5), public=data.public)
    assert torch.equal(sent[0].flatten(), one.flatten())
    # What was not sent comes later: by then it adds up to more than one round, and the union of what is sent grows.
    shown = [sum(update.flatten() for update in sent[:count]) != 0 for count in (1, 2, 3)]
    assert [int(mask.sum()) for mask in shown] == sorted({int(mask.sum()) for mask in shown})
    observation = seen(data, ErrorFeedback(), 3)
    assert observation.repeats == 3
    raw = observation.public_gradients(torch.arange(2)[:, None], generator=make_generator(0))
    found = [observation.protected(raw, generator=make_generator(1)).flatten() for _ in range(2)]
    assert torch.equal(*found)
    assert observation.defense.residual is None


def test_one_that_does_not_say_that_it_keeps_something_keeps_it_all_the_same(data: Data) -> None:
    model, inputs, labels = victims_of(data)
    raw = client_update(model, inputs, labels).flatten()
    observation = seen(data, Counter(), 4)
    assert [round(float(update.flatten().norm() / raw.norm())) for update in observation.rounds] == [1, 2, 3, 4]
    own = observation.public_gradients(torch.arange(2)[:, None], generator=make_generator(0))
    for _ in range(2):
        played = observation.protected(own, generator=make_generator(0)).flatten()
        assert torch.allclose(played, 2.5 * own.flatten(), rtol=1e-5)
    assert observation.defense.calls == 0


def test_the_name_of_0_1_for_a_defenses_age_still_counts() -> None:
    named = type("Named", (Defense,), {"rounds": 3})
    assert (named().age, (named() | Thinned()).age, Thinned().age) == (3, 3, 1)


@pytest.mark.parametrize("base", [Defense, type("Named", (Defense,), {"rounds": 2})])
def test_the_old_name_still_counts_where_an_instance_sets_it(base: type[Defense]) -> None:
    class Set(base):
        def __init__(self) -> None:
            self.rounds = 3

    assert (Set().age, Set().rounds) == (3, 3)


# ------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize("rounds", [0, -1, 1.5, "2", None])
def test_bad_numbers_of_rounds_are_refused(rounds: object, data: Data) -> None:
    model, inputs, labels = victims_of(data)
    with pytest.raises(ConfigError, match=r"Expected rounds >= 1, got"):
        client_rounds(model, inputs, labels, rounds=rounds)


def test_updates_that_do_not_belong_together_are_refused(data: Data) -> None:
    model, inputs, labels = victims_of(data)
    update = client_update(model, inputs, labels)
    with pytest.raises(AttackError, match="at least one round, got none"):
        Observation(update=[], model=model, input_shape=data.input_shape)
    with pytest.raises(AttackError, match="updates of the same 3 victims, got one of 1"):
        Observation(update=[update, update[:1]], model=model, input_shape=data.input_shape)


def test_a_malformed_combination_names_the_defense(data: Data) -> None:
    class Wrong(Thinned):
        def combined(self, updates):
            return list(updates)

    class Raising(Thinned):
        def combined(self, updates):
            raise RuntimeError("no")

    with pytest.raises(DefenseError, match=r"Wrong returned list, expected a gitbench\.Update"):
        seen(data, Wrong(), 2)
    with pytest.raises(DefenseError, match="Raising raised RuntimeError: no"):
        seen(data, Raising(), 2)
