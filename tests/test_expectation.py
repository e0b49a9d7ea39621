"""What an attacker expects of a defense: found out once, beside the defense and not in it; and an attacker who does not adapt knows nothing."""

from __future__ import annotations

import pytest
import torch

import gitbench
from gitbench import Attack, Data, Defense, Observation, Update, client_update, load_attack, load_model, make_generator
from gitbench.clients.defense import Expectation, is_random
from gitbench.core.errors import AttackError
from gitbench.identity.objects import digest_of_object


class Halved(Defense):
    def protect(self, update, *, generator):
        return update.map(lambda _, tensor: tensor / 2)


class RareDropout(Defense):
    """Two draws of it agree on a tiny update, more often than not."""

    def protect(self, update, *, generator):
        return update.map(lambda _, tensor: tensor * (torch.rand(tensor.shape, generator=generator) > 0.05))


class Coin(Defense):
    """One coin for each victim."""

    def protect(self, update, *, generator):
        keep = (torch.rand(len(update), generator=generator) < 0.5).float()
        return update.map(lambda _, tensor: tensor * keep.reshape(-1, *(1,) * (tensor.ndim - 1)))


class Idle(Defense):
    """Draws, and uses nothing of it: it must not pass for random."""

    def protect(self, update, *, generator):
        torch.randn(3, generator=generator)
        return update.map(lambda _, tensor: tensor / 2)


def tiny(victims: int = 1) -> Update:
    return Update({"weight": torch.arange(1.0, 4.0).repeat(victims, 1)})


@pytest.mark.parametrize(("defense", "random"), [(Halved(), False), (RareDropout(), True), (Coin(), True), (Idle(), False)])
def test_randomness_is_asked_of_a_large_draw(defense: Defense, random: bool) -> None:
    assert is_random(defense, tiny()) is random
    expected = tiny() if random else Halved().protect(tiny(), generator=make_generator(0))
    for found in (defense.expected(tiny(), observed=tiny()), Expectation(defense)(tiny(), observed=tiny())):
        assert torch.equal(found.flatten(), expected.flatten())


@pytest.mark.parametrize("spec", ["gaussian_noise(std=0.1)", "pruning(rate=0.5)", "clipping(max_norm=1.0) | gaussian_noise(std=0.1)"])
def test_asking_what_is_expected_leaves_a_defense_as_it_is(spec: str) -> None:
    defense = gitbench.load_defense(spec)
    before = vars(defense).copy(), digest_of_object(defense)
    defense.expected(tiny(), observed=tiny())
    Expectation(defense)(tiny(), observed=tiny())
    assert (vars(defense), digest_of_object(defense)) == before


def test_randomness_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Defense] = []
    monkeypatch.setattr("gitbench.clients.defense.is_random", lambda defense, _update: asked.append(defense) or True)
    expectation = Expectation(gitbench.load_defense("gaussian_noise(std=0.1)"))
    for _ in range(3):
        expectation(tiny(), observed=tiny())
    assert len(asked) == 1


class Peeping(Attack):
    """Says whether it sees the defense, wherever it is asked to work."""

    uses = frozenset({"defense", "public", "parameters"})

    def __init__(self, *, adapt: bool = True) -> None:
        self.adapt = adapt
        self.seen: list[bool] = []

    def fit(self, observation, *, generator, progress, checkpoint):
        self.seen.append("defense" in observation.granted)
        return {}

    def run(self, observation, state, *, generator, progress):
        self.seen.append("defense" in observation.granted)
        return torch.zeros(observation.victims, observation.batch_size, *observation.input_shape)


def observed(data: Data, defense: str, *, batch: int = 1, model: str = "mlp") -> Observation:
    network = load_model(model, data)
    inputs = data.private.inputs[: 2 * batch].reshape(2, batch, *data.input_shape)
    labels = data.private.labels[: 2 * batch].reshape(2, batch)
    update = client_update(network, inputs, labels, defense=defense, public=data.public)
    return Observation(update=update, model=network, input_shape=data.input_shape, batch_size=batch, public=data.public, defense=defense)


@pytest.mark.parametrize("adapt", [True, False])
def test_an_attacker_who_does_not_adapt_sees_no_defense(data: Data, adapt: bool) -> None:
    attack = Peeping(adapt=adapt)
    attack(observed(data, "pruning(rate=0.5)"), generator=make_generator(0))
    assert attack.seen == [adapt, adapt]


OBLIVIOUS = [
    "ridge(adapt=False)",
    "recursion(adapt=False, iterations=2, limit=64)",
    "ig(adapt=False, iterations=2)",
    "dlg(adapt=False, iterations=2, labels='idlg')",
    "lti(adapt=False, epochs=1, limit=60)",
    "git(adapt=False, epochs=1, limit=60)",
]


@pytest.mark.parametrize("attack", OBLIVIOUS)
def test_every_oblivious_attack_does_what_it_does_without_the_definition(attack: str, data: Data) -> None:
    """`recursion` inferred the labels of batches through the defense all the same."""
    seen = observed(data, "clipping(max_norm=0.1)", batch=2)
    found, unknown = (load_attack(attack)(one, generator=make_generator(0)).inputs for one in (seen, seen.undefended()))
    assert torch.equal(found, unknown)


@pytest.mark.parametrize("field", ["requires", "uses", "fit_uses"])
def test_misspelt_knowledge_is_refused_where_it_is_written(field: str) -> None:
    with pytest.raises(AttackError, match=r"names 'parameter', which is no knowledge\. Did you mean 'parameters'"):
        type("Misspelt", (Attack,), {field: frozenset({"parameter"})})
    attack = Peeping()
    with pytest.raises(AttackError, match=r"names 'label', which is no knowledge\. Did you mean 'labels'"):
        setattr(attack, field, {"label"})
    with pytest.raises(AttackError, match=f"Expected {field} of the attack Peeping to be a set"):
        setattr(attack, field, "labels")
    setattr(attack, field, {"labels"})


def test_several_rounds_end_with_the_update(data: Data) -> None:
    one = observed(data, "none")
    many = Observation(update=one.update, earlier=[one.update, one.update], model=one.model, input_shape=data.input_shape)
    assert [len(update) for update in many.rounds] == [2, 2, 2]
    assert many.rounds[-1] is many.update
    assert [len(update) for update in many.of_victims(torch.tensor([1]), labels=torch.zeros(1, 1)).rounds] == [1, 1, 1]
    assert one.rounds == (one.update,)
    with pytest.raises(AttackError, match="updates of the same 2 victims, got one of 1"):
        Observation(update=one.update, earlier=[one.update[:1]], model=one.model, input_shape=data.input_shape)
