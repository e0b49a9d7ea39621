"""Defenses of a user's own: every hook, every way to name them, and what they keep from round to round."""

from __future__ import annotations

import re
import sys
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

import gitbench
from gitbench.clients.client import client_update, gradients
from gitbench.clients.data import Data
from gitbench.core.errors import DefenseError
from gitbench.core.random import make_generator
from gitbench.run.bench import Bench, case_of


class OnUpdate(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor + gitbench.randn_like(tensor, generator))


class OnBatch(gitbench.Defense):
    def prepare(self, inputs, labels, *, generator):
        return torch.full_like(inputs, 0.5), labels


class OnModel(gitbench.Defense):
    def modify_model(self, model):
        return nn.Sequential(model[0], nn.AvgPool2d(8), nn.Flatten(), nn.Linear(3, 4))


class OnExamples(gitbench.Defense):
    needs_per_example = True

    def protect(self, update, *, generator):
        return gitbench.Update({name: (each + gitbench.randn_like(each, generator)).mean(1) for name, each in update.per_example.items()})


class Halved(gitbench.Defense):
    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor / 2)


@pytest.fixture
def options(tiny_npz: Path) -> dict[str, object]:
    return {"attack": "ridge", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 8, "batch_size": 2, "device": "cpu"}


# ------------------------------------------------------------------ hooks and names


def test_the_values_of_a_new_layer_follow_from_the_seed(options) -> None:
    found = []
    for state in (1, 2):
        torch.manual_seed(state)
        found.append(gitbench.evaluate(defense=OnModel(), **options).metrics["psnr"].values)
    assert found[0] == found[1]


@pytest.mark.parametrize("defense", [OnUpdate(), OnBatch(), OnModel(), OnExamples(), OnExamples() | Halved()])
def test_a_defense_acts_on_update_batch_model_or_examples(options, defense: gitbench.Defense) -> None:
    result = gitbench.evaluate(defense=defense, **{**options, "victims": 12})
    assert result.error is None
    assert result.verdict == "holds", result.verdict_reason
    assert result.case.defense == repr(defense)


def test_objects_compose_like_specs(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:4].unflatten(0, (2, 2)), data.private.labels[:4].unflatten(0, (2, 2))
    composed = gitbench.load_defense("clipping(max_norm=1.0)") | gitbench.load_defense("pruning(rate=0.5)") | Halved()
    assert repr(composed) == "clipping(max_norm=1.0) | pruning(rate=0.5) | Halved"
    found = client_update(model, inputs, labels, defense=composed).flatten()
    assert torch.equal(found, client_update(model, inputs, labels, defense="clipping(max_norm=1.0) | pruning(rate=0.5)").flatten() / 2)
    with pytest.raises(TypeError, match="unsupported operand"):
        Halved() | "pruning(rate=0.5)"


def test_the_source_of_every_part_of_a_composition_is_part_of_the_case(options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def case_id(body: str) -> str:
        (tmp_path / "parts_of_mine.py").write_text(f"import gitbench\nclass Part(gitbench.Defense):\n    {body}\n")
        monkeypatch.syspath_prepend(tmp_path)
        sys.modules.pop("parts_of_mine", None)
        import parts_of_mine

        settings = {**options, "threat": "server", "profile": "quick", "seed": 0}
        del settings["device"]
        return case_of(defense=Halved() | parts_of_mine.Part(), **settings).case_id

    assert case_id("x = 1") != case_id("x = 20")


@pytest.mark.parametrize("how", ["entry point", "module:Name", "file.py:Name"])
def test_a_defense_is_found_by_entry_point_module_or_file(options, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_somewhere.py").write_text(
        "import gitbench\n"
        "class Mine(gitbench.Defense):\n"
        "    def __init__(self, *, scale: float = 1.0):\n        self.scale = scale\n"
        "    def protect(self, update, *, generator):\n        return update.map(lambda name, tensor: tensor * self.scale)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    spec = {"entry point": "pruning(rate=1.0)", "module:Name": "mine_somewhere:Mine(scale=0.0)"}.get(
        how, f"{tmp_path}/mine_somewhere.py:Mine(scale=0.0)"
    )
    result = gitbench.evaluate(defense=spec, **{**options, "attack": "ridge(adapt=False)"})
    assert result.error is None
    assert result.case.defense == spec
    assert "vanishing-update" in result.flags


# ------------------------------------------------------------------ what a defense keeps


class ErrorFeedback(gitbench.Defense):
    """Sends the largest entries, and keeps the others for the next round."""

    age = 3

    def __init__(self, *, rate: float = 0.9):
        self.rate = rate
        self.residual: torch.Tensor | None = None

    def protect(self, update, *, generator):
        flat = update.flatten() + (0 if self.residual is None else self.residual)
        kept = round(flat.shape[1] * (1 - self.rate))
        mask = torch.zeros_like(flat).scatter_(1, flat.abs().topk(kept, dim=1).indices, 1.0)
        self.residual = flat * (1 - mask)
        return update.like(flat * mask)


class Counter(gitbench.Defense):
    """Keeps something, but does not say so by ``age``."""

    def __init__(self):
        self.calls = 0

    def protect(self, update, *, generator):
        self.calls += 1
        return update.map(lambda name, tensor: tensor * self.calls)


def test_the_last_round_leaks_what_earlier_ones_left_behind(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:6].unflatten(0, (3, 2)), data.private.labels[:6].unflatten(0, (3, 2))
    sent = client_update(model, inputs, labels, defense=ErrorFeedback(), generator=make_generator(5), public=data.public)
    # By hand: two rounds on public images, then the victims.
    generator, client = make_generator(5), ErrorFeedback()
    for _ in range(2):
        chosen = torch.randint(len(data.public), (3, 2), generator=generator)
        client.protect(gradients(model, data.public.inputs[chosen], data.public.labels[chosen]), generator=generator)
    by_hand = client.protect(gradients(model, inputs, labels), generator=generator)
    assert torch.equal(sent.flatten(), by_hand.flatten())
    first_round = ErrorFeedback().protect(gradients(model, inputs, labels), generator=generator)
    assert not torch.allclose(sent.flatten(), first_round.flatten())


@pytest.mark.parametrize("defense", [ErrorFeedback(), ErrorFeedback() | Halved(), Counter()])
def test_every_measurement_starts_from_the_defense_as_it_was_given(options, defense: gitbench.Defense) -> None:
    before = {key: str(value) for key, value in vars(defense).items()}
    first, second = (gitbench.evaluate(defense=defense, **{**options, "attack": "ridge+ig(iterations=3)"}) for _ in range(2))
    assert first.error is None
    assert first.metrics == second.metrics
    assert {key: str(value) for key, value in vars(defense).items()} == before


def test_what_a_client_keeps_never_reaches_the_attacker(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:3][:, None], data.private.labels[:3][:, None]
    defense = ErrorFeedback()
    update = client_update(model, inputs, labels, defense=defense, public=data.public)
    observation = gitbench.Observation(update=update, model=model, input_shape=data.input_shape, public=data.public, defense=defense)
    assert observation.defense is not defense
    # Rehearsals of any number of clients, each as if it were the first.
    for count in (2, 5, 2):
        raw = observation.public_gradients(torch.arange(count)[:, None], generator=make_generator(0))
        found = [observation.protected(raw, generator=make_generator(1)).flatten() for _ in range(2)]
        assert torch.equal(*found)
    assert torch.equal(*(observation.defense.expected(update, observed=update).flatten() for _ in range(2)))
    assert observation.defense.residual is None


class InPlace(gitbench.Defense):
    """Changes the model it is given, and remembers having done so."""

    def __init__(self):
        self.models = 0

    def modify_model(self, model):
        self.models += 1
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(0.5 * self.models)
        return model


def test_a_model_changed_in_place_is_nobody_elses(options) -> None:
    settings = {**options, "threat": "server", "profile": "quick", "seed": 0}
    device = settings.pop("device")
    defense = InPlace()

    def measured(bench: Bench, one: gitbench.Defense | str) -> dict:
        found = bench.measure(case_of(defense=one, **settings), defense=None if isinstance(one, str) else one)
        return found.metrics

    shared = Bench(device=device)
    first = measured(shared, defense)
    assert measured(shared, "pruning(rate=0.5)") == measured(Bench(device=device), "pruning(rate=0.5)")
    assert measured(Bench(device=device), defense) == first
    assert defense.models == 0


def test_the_example_of_the_documentation_keeps_its_residual(options, data: Data) -> None:
    page = (Path(__file__).parents[1] / "docs" / "defenses.md").read_text()
    (example,) = (code for code in re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL) if "age = 3" in code)
    names: dict[str, object] = {"gitbench": gitbench}
    exec(example, names)
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:6].unflatten(0, (3, 2)), data.private.labels[:6].unflatten(0, (3, 2))
    theirs, ours = (
        client_update(model, inputs, labels, defense=defense, public=data.public).flatten()
        for defense in (names["ErrorFeedback"](), ErrorFeedback())
    )
    assert ((theirs != 0) == (ours != 0)).float().mean() > 0.999  # one entry more or less
    torch.testing.assert_close(theirs[(theirs != 0) & (ours != 0)], ours[(theirs != 0) & (ours != 0)], atol=1e-4, rtol=1e-3)


def test_rounds_without_public_images_are_an_error_that_says_so(data: Data) -> None:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[:2][:, None], data.private.labels[:2][:, None]
    with pytest.raises(DefenseError, match=r"ErrorFeedback lives through 3 rounds and needs public images.*Pass public="):
        client_update(model, inputs, labels, defense=ErrorFeedback())


@pytest.mark.parametrize("age", [0, -1, "3", None])
def test_an_impossible_age_is_refused(options, age: object) -> None:
    class Wrong(Halved):
        pass

    Wrong.age = age
    result = gitbench.evaluate(defense=Wrong(), **options)
    assert result.status == "error"
    assert f"age >= 1, got {age!r}" in result.error


class Uncopyable(gitbench.Defense):
    def __init__(self):
        self.lock = threading.Lock()


def test_a_defense_that_cannot_be_copied_is_an_error_that_says_why(options) -> None:
    with pytest.warns(UserWarning, match="What Uncopyable holds cannot be told from another's: it is measured anew each time"):
        result = gitbench.evaluate(defense=Uncopyable(), **options)
    assert result.status == "error"
    assert "The defense Uncopyable cannot be copied (TypeError: " in result.error
    assert "not in __init__" in result.error
