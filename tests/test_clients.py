"""Clients: local steps against a plain loop, sums, and the axis on the command line."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import gitbench
from gitbench.attacker.attack import load_attack
from gitbench.clients.client import gradients, own_update
from gitbench.clients.update import Batch
from gitbench.core.errors import DefenseError, ModelError, SpecError
from gitbench.core.random import make_generator
from gitbench.identity.names import entry_points
from helpers import run_matrix, stored_cases

CLIENTS = [
    *sorted(entry_points("client")),
    "fedavg(steps=3, lr=0.1, batch_size=2)",
    "secure_aggregation(clients=2, client='fedavg(steps=2, lr=0.1)')",
]


def batches(data: gitbench.Data, victims: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    count = victims * images
    return data.private.inputs[:count].unflatten(0, (victims, images)), data.private.labels[:count].unflatten(0, (victims, images))


def trained(model: torch.nn.Module, steps: list[tuple[torch.Tensor, torch.Tensor]], lr: float) -> dict[str, torch.Tensor]:
    """The oracle: one client, torch's own SGD. Weights before minus after."""
    own = copy.deepcopy(model)
    optimizer = torch.optim.SGD(own.parameters(), lr=lr)
    for inputs, labels in steps:
        optimizer.zero_grad()
        functional.cross_entropy(own(inputs), labels).backward()
        optimizer.step()
    after = dict(own.named_parameters())
    return {name: (before - after[name]).detach() for name, before in model.named_parameters()}


@pytest.mark.parametrize("spec", ["mlp", "lenet", "resnet(width=4)", "resnet(width=4, mode='train')"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_fedavg_equals_a_plain_loop(spec: str, batch_size: int | None, data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model(spec, data).double(), batches(data, 3, 4)
    inputs = inputs.double()
    client = gitbench.load_client(f"fedavg(steps=5, lr=0.1, batch_size={batch_size})")
    sent = gitbench.client_update(model, inputs, labels, client=client, generator=make_generator(7))
    generator = make_generator(7)
    passes = [torch.rand((3, 4), generator=generator).argsort(1) for _ in range(5 if batch_size is None else 3)]
    rows = [piece for order in passes for piece in order.split(batch_size or 4, dim=1)][:5]
    for victim in range(3):
        steps = [(inputs[victim, chosen[victim]], labels[victim, chosen[victim]]) for chosen in rows]
        for name, expected in trained(model, steps, 0.1).items():
            torch.testing.assert_close(sent.tensors[name][victim], expected)


def test_one_short_step_is_the_gradient(data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 3)
    client = gitbench.load_client("fedavg(steps=1, lr=0.1)")
    found = own_update(model, inputs, labels, client=client)
    torch.testing.assert_close(found.flatten(), gradients(model, inputs, labels).flatten(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("stacked", [True, False])
def test_local_steps_are_differentiable(stacked: bool, data: gitbench.Data) -> None:
    """Also where victims are differentiated one after the other."""
    model, (inputs, labels) = gitbench.load_model("mlp", data).double(), batches(data, 2, 2)
    if not stacked:
        model = Branching(model)
    client = gitbench.load_client("fedavg(steps=3, lr=0.5, batch_size=1)")
    aim = torch.randn(own_update(model, inputs.double(), labels, client=client).flatten().shape, generator=make_generator(0)).double()

    def value(images: torch.Tensor) -> torch.Tensor:
        return (own_update(model, images, labels, client=client).flatten() * aim).sum()

    images = inputs.double().requires_grad_()
    (slope,) = torch.autograd.grad(value(images), images)
    direction = torch.randn(images.shape, generator=make_generator(1)).double()
    measured = (value(inputs.double() + 1e-5 * direction) - value(inputs.double() - 1e-5 * direction)) / 2e-5
    assert float((slope * direction).sum()) == pytest.approx(float(measured), rel=1e-5)


class Branching(torch.nn.Module):
    """Branches on values, so that victims cannot be stacked."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs if float(inputs.detach().sum()) > -1e9 else -inputs)


def test_the_sum_of_clients(data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 6)
    sent = gitbench.client_update(model, inputs, labels, client="secure_aggregation(clients=3)")
    single = [gradients(model, inputs[:, start : start + 2], labels[:, start : start + 2]).flatten() for start in (0, 2, 4)]
    torch.testing.assert_close(sent.flatten(), torch.stack(single).sum(0))


@pytest.mark.parametrize("defense", ["clipping(max_norm=0.01)", "dp_sgd(noise_multiplier=0.0, max_grad_norm=0.01)"])
def test_each_client_protects_its_own(defense: str, data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 6)
    sent = gitbench.client_update(model, inputs, labels, client="secure_aggregation(clients=3)", defense=defense)
    single = [
        gitbench.client_update(model, inputs[:, start : start + 2], labels[:, start : start + 2], defense=defense).flatten()
        for start in (0, 2, 4)
    ]
    torch.testing.assert_close(sent.flatten(), torch.stack(single).sum(0), rtol=1e-4, atol=1e-7)


def test_a_difference_of_weights_is_protected_as_it_is_sent(data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 2)
    sent = gitbench.client_update(model, inputs, labels, client="fedavg(steps=2, lr=0.01)", defense="clipping(max_norm=0.001)")
    torch.testing.assert_close(sent.flatten().norm(dim=1), torch.full((2,), 0.001))


@pytest.mark.parametrize("spec", CLIENTS)
@given(batch=st.integers(1, 3), victims=st.integers(1, 3))
def test_what_every_client_promises(spec: str, batch: int, victims: int, data: gitbench.Data) -> None:
    client = gitbench.load_client(spec)
    assert repr(gitbench.load_client(repr(client))) == repr(client)
    model = gitbench.load_model("mlp(hidden=(6,))", data)
    inputs, labels = batches(data, victims, 1)
    inputs, labels = (tensor.expand(-1, client.images(batch), *tensor.shape[2:]) for tensor in (inputs, labels))
    before = [parameter.clone() for parameter in model.parameters()]
    update = own_update(model, inputs, labels, client=client)
    assert {name: tensor.shape for name, tensor in update.tensors.items()} == {
        name: (victims, *parameter.shape) for name, parameter in model.named_parameters()
    }
    assert all(torch.equal(*both) for both in zip(before, model.parameters(), strict=True))
    torch.testing.assert_close(client.in_gradients(client.sent(update)).flatten(), update.flatten())
    torch.testing.assert_close(client.together(client.each(update)).flatten(), update.flatten(), rtol=1e-4, atol=1e-6)
    sent = [gitbench.client_update(model, inputs, labels, client=client, generator=make_generator(3)).flatten() for _ in range(2)]
    assert torch.equal(*sent)


def test_an_observation_is_in_gradients(data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 4)
    client = "secure_aggregation(clients=2, client='fedavg(steps=2, lr=0.05)')"
    sent = gitbench.client_update(model, inputs, labels, client=client)
    seen = gitbench.Observation(
        update=sent, model=model, input_shape=data.input_shape, batch_size=4, public=data.public, client=client, defense="none"
    )
    torch.testing.assert_close(seen.update.flatten() * 0.2, sent.flatten())  # two clients, two steps of 0.05
    assert repr(seen.client) == client
    pairs = seen.public_updates(torch.arange(8).reshape(2, 4), generator=make_generator(0))
    raw = gradients(model, data.public.inputs[:8].unflatten(0, (2, 4)), data.public.labels[:8].unflatten(0, (2, 4)))
    assert float(functional.cosine_similarity(pairs.flatten(), raw.flatten()).min()) > 0.95
    assert 0.8 < float(pairs.flatten().norm() / raw.flatten().norm()) < 1.2
    assert seen.oblivious().client.plain
    assert seen.oblivious().batch_size == 4


def test_an_attack_that_simulates_local_steps_fits_better(data: gitbench.Data) -> None:
    """The truth has a lower loss under the true client than under the gradient that the oblivious attacker takes it for."""
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 4, 1)
    client = "fedavg(steps=20, lr=0.5)"
    sent = gitbench.client_update(model, inputs, labels, client=client)
    gains = []
    for adapt in (True, False):
        attack = load_attack(f"ridge+ig(iterations=60, adapt={adapt})", profile="quick")
        observation = gitbench.Observation(
            update=sent, model=model, input_shape=data.input_shape, batch_size=1, public=data.public, client=client
        )
        found = attack(observation, generator=make_generator(0))
        gains.append(float(gitbench.score(found.inputs, inputs)["psnr"].mean()))
    assert gains[0] > gains[1]


WRONG: list[tuple[str, type[Exception], str]] = [
    ("fedavg(steps=0)", SpecError, "steps >= 1"),
    ("fedavg(lr=0.0)", SpecError, "lr > 0"),
    ("fedavg(batch_size=0)", SpecError, "batch_size >= 1"),
    ("fedavg(step=1)", SpecError, "steps"),
    ("fedprox", SpecError, "Unknown client 'fedprox'"),
    ("secure_aggregation(clients=0)", SpecError, "clients >= 1"),
    ("secure_aggregation(client='secure_aggregation')", SpecError, "is a sum already"),
]


@pytest.mark.parametrize(("spec", "kind", "said"), WRONG, ids=[spec for spec, _, _ in WRONG])
def test_wrong_clients_are_named(spec: str, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind, match=said):
        gitbench.load_client(spec)


def test_what_cannot_go_together_is_named(data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 3)
    with pytest.raises(DefenseError, match="asks for each example's gradient"):
        gitbench.client_update(model, inputs, labels, client="fedavg", defense="dp_sgd(noise_multiplier=1.0)")
    with pytest.raises(ModelError, match="each of 2 clients alike, got 3"):
        gitbench.client_update(model, inputs, labels, client="secure_aggregation(clients=2)")
    with pytest.raises(TypeError, match="must define local_update"):
        gitbench.client_update(model, inputs, labels, client=gitbench.Client())


@pytest.fixture
def axes(bench: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    options = ("--gitbench-client", "fedsgd", "--gitbench-client", "fedavg(steps=2, lr=0.1)")
    sizes = ("--gitbench-batch-size", "1", "--gitbench-batch-size", "2")
    return lambda *extra: run_matrix(bench, *options, *sizes, "--gitbench-victims", "8", "--gitbench-defense", "none", *extra)


@pytest.mark.usefixtures("warm")
def test_client_and_batch_size_are_axes(bench: pytest.Pytester, axes: Callable[..., pytest.RunResult]) -> None:
    result = axes()
    found = stored_cases(bench.path).values()
    assert {(case["case"]["client"], case["case"]["batch_size"]) for case in found} == {
        (client, size) for client in ("fedsgd", "fedavg(steps=2, lr=0.1)") for size in (1, 2)
    }
    result.stdout.fnmatch_lines(["*8 victims of 1, 2,*"])
    listed = axes("--collect-only", "-q")
    ids = [line.partition("mlp(hidden=(24,))")[2] for line in listed.stdout.lines if line.startswith("gitbench::")]
    long = "/fedavg(steps=2, lr=0.1)"
    assert ids == ["/none/ridge", "/batch-2/none/ridge", f"{long}/none/ridge", f"{long}/batch-2/none/ridge"]
    boards = sorted(path.name.rpartition("hidden_24")[2] for path in (bench.path / "leaderboards").glob("*.md"))
    assert len(boards) == 4
    assert sum("client=fedavg_steps=2_lr=0.1" in name for name in boards) == 2
    assert sum("batch_size=2" in name for name in boards) == 2


@pytest.mark.usefixtures("warm")
def test_the_fixture_takes_both(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        test_mine="""
        def test_it(gitbench_evaluate):
            report = gitbench_evaluate("none", clients=["fedsgd", "secure_aggregation(clients=2)"], batch_sizes=[1, 2], victims=4)
            cases = [result.case for result in report.results]
            assert [(case.client, case.batch_size) for case in cases] == [
                (client, size) for client in ("fedsgd", "secure_aggregation(clients=2)") for size in (1, 2)
            ]
        """
    )
    bench.runpytest_inprocess("test_mine.py").assert_outcomes(passed=1)


# ------------------------------------------------------------------ what a defense may see


class Seeing(gitbench.Defense):
    """Sends only what the brightest image of each batch adds: nothing that the gradients alone tell."""

    needs_batch = True
    needs_per_example = True

    def protect(self, update: gitbench.Update, *, generator: torch.Generator) -> gitbench.Update:
        assert update.batch is not None
        assert update.per_example is not None
        brightest = update.batch.inputs.flatten(2).mean(2).argmax(1)
        rows = torch.arange(len(update))
        again = gradients(update.batch.model, update.batch.inputs[rows, brightest][:, None], update.batch.labels[rows, brightest][:, None])
        found = gitbench.Update({name: each[rows, brightest] for name, each in update.per_example.items()})
        torch.testing.assert_close(again.flatten(), found.flatten(), rtol=1e-4, atol=1e-6)
        return found


class Twice(gitbench.Defense):
    def protect(self, update: gitbench.Update, *, generator: torch.Generator) -> gitbench.Update:
        return update.map(lambda _name, tensor: 2 * tensor)


@pytest.mark.parametrize("client", ["fedsgd", "secure_aggregation(clients=2)"])
def test_a_defense_sees_model_and_batch(client: str, data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 3, 4)
    defense = Seeing() | Twice() | Twice()
    sent = gitbench.client_update(model, inputs, labels, defense=defense, client=client)
    of_each = inputs.unflatten(1, (-1, 4 if client == "fedsgd" else 2))
    brightest = of_each.flatten(3).mean(3).argmax(2)
    expected = 0
    for group in range(of_each.shape[1]):
        own = labels.unflatten(1, of_each.shape[1:3])[torch.arange(3), group, brightest[:, group]]
        expected = expected + 4 * gradients(model, of_each[torch.arange(3), group, brightest[:, group]][:, None], own[:, None]).flatten()
    torch.testing.assert_close(sent.flatten(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attack", ["ridge", "git", "lti", "ig(iterations=5)", "recursion", "auto"])
def test_every_attack_meets_such_a_defense(attack: str, data: gitbench.Data) -> None:
    """An attacker's own candidates are the batch that its rehearsal shows to the defense."""
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 2, 2)
    sent = gitbench.client_update(model, inputs, labels, defense=Seeing())
    observation = gitbench.Observation(
        update=sent, model=model, input_shape=data.input_shape, batch_size=2, public=data.public, defense=Seeing()
    )
    found = load_attack(attack, profile="quick")(observation, generator=make_generator(0))
    assert found.inputs.shape == inputs.shape


def test_the_batch_goes_with_the_rows(data: gitbench.Data) -> None:
    model, (inputs, labels) = gitbench.load_model("mlp", data), batches(data, 4, 2)
    update = gradients(model, inputs, labels).of(Batch(model, inputs, labels))
    halves = [update[:1], update[1:].detach()]
    assert halves[1].batch is not None
    assert torch.equal(halves[1].batch.inputs, inputs[1:])
    again = gitbench.Update.cat(halves)
    assert again.batch is not None
    assert torch.equal(again.batch.labels, labels)
    assert gitbench.Update.cat([update[:1], gradients(model, inputs, labels)]).batch is None
    assert update.map(lambda _name, tensor: tensor).batch is None
