"""What attacks learn is learned once, kept beside the results, and survives a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import gitbench
from gitbench.attacker.attack import Hybrid, load_attack
from gitbench.attacker.fit_cache import FitCache, identity
from gitbench.attacker.observation import Observation
from gitbench.clients.data import Data
from gitbench.core.random import make_generator
from gitbench.identity.case import Case
from gitbench.run.bench import Bench, case_of
from gitbench.store.folder import Store

# A small learned attack; what it does is written to a log, for it runs in other processes too.
ATTACK = """
import os, time
from pathlib import Path
import torch
from torch import nn
import gitbench
from gitbench.attacker.learning import train_network

class Tiny(gitbench.Attack):
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"defense"})

    def __init__(self, *, width: int = 1, pause: float = 0.0, epochs: int = 2):
        self.width, self.pause, self.epochs = width, pause, epochs

    def fit(self, observation, *, generator, progress, checkpoint):
        network = nn.Linear(2, self.width)
        nn.init.zeros_(network.weight), nn.init.zeros_(network.bias)
        log = Path(__file__).with_name("log")
        with log.open("a") as file:
            file.write(f"fit {os.getpid()}\\n")

        def loss(index, generator):
            return (network(torch.rand(len(index), 2, generator=generator)) - 0.5).square().mean()

        def validate():
            with log.open("a") as file:
                file.write("epoch\\n")
            time.sleep(self.pause)
            return float(network(torch.ones(1, 2)).square().mean() + 1 / (1 + network.weight.abs().sum()))

        train_network(
            network, loss=loss, rows=4, validate=validate, epochs=self.epochs, batch_size=2, lr=0.01, generator=generator,
            progress=progress, what="tiny", checkpoint=checkpoint, save_seconds=0.0,
        )
        return network.state_dict() | {"transposed": network.weight.t(), "tied": network.weight}

    def run(self, observation, state, *, generator, progress):
        assert not any(tensor.requires_grad for tensor in state.values())
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        return (torch.rand(shape, generator=generator) + 0.1 * state["weight"].abs().sum()).clamp(0, 1)

class Untrained(gitbench.Attack):
    requires = frozenset({"architecture"})

    def run(self, observation, state, *, generator, progress):
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        return torch.rand(shape, generator=generator)
"""


@pytest.fixture
def options(tmp_path: Path, tiny_npz: Path) -> dict[str, object]:
    (tmp_path / "attacks.py").write_text(ATTACK)
    return {
        "attack": f"{tmp_path / 'attacks.py'}:Tiny", "defense": "none", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})",
        "threat": "server", "profile": "quick", "victims": 2, "batch_size": 1, "seed": 0,
    }  # fmt: skip


def log(tmp_path: Path, word: str = "fit") -> int:
    path = tmp_path / "log"
    return sum(line.startswith(word) for line in path.read_text().splitlines()) if path.exists() else 0


def models(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "results" / "models").glob("*"))


def measure(tmp_path: Path, options: dict[str, object], *, fresh_since: float | None = None, **changes: object) -> gitbench.Result:
    """One case, its own stored result not taken."""
    case = case_of(**{**options, **changes})  # type: ignore[arg-type]
    store = Store(tmp_path / "results")
    store.case_path(case.case_id).unlink(missing_ok=True)
    result = Bench(store=store, device="cpu", fresh_since=fresh_since).measure(case)
    assert result.status == "done", result.error
    return result


def test_a_state_is_learned_once_and_gives_the_same_bits(tmp_path: Path, options) -> None:
    first, second = measure(tmp_path, options), measure(tmp_path, options)
    assert log(tmp_path) == 1
    assert first.metrics == second.metrics
    assert first.cost.fit_seconds == second.cost.fit_seconds > 0
    (path,) = models(tmp_path)
    assert path.suffixes == [".safetensors"]
    # Without a folder it is learned again, in the same way.
    again = gitbench.evaluate(**{**options, "device": "cpu"})
    assert again.metrics == first.metrics
    assert log(tmp_path) == 2


def test_without_a_folder_a_chain_shares_states_in_memory(tmp_path: Path, options) -> None:
    bench = Bench(device="cpu")
    for victims in (2, 3):
        assert bench.measure(case_of(**{**options, "victims": victims})).status == "done"
    assert log(tmp_path) == 1


def test_a_hybrid_shares_what_its_prior_learned(tmp_path: Path, options) -> None:
    prior = options["attack"]
    for attack in (prior, f"{prior}+ig(iterations=2)", f"{prior}+ig(iterations=3)+dlg(iterations=2)"):
        measure(tmp_path, options, attack=attack)
    assert log(tmp_path) == 1
    assert len(models(tmp_path)) == 1


def test_an_attack_that_learns_nothing_keeps_nothing(tmp_path: Path, options) -> None:
    measure(tmp_path, options, attack=f"{tmp_path / 'attacks.py'}:Untrained")
    measure(tmp_path, options, attack="ig(iterations=2)")
    assert not models(tmp_path)


def test_a_damaged_state_is_learned_again(tmp_path: Path, options) -> None:
    first = measure(tmp_path, options)
    (path,) = models(tmp_path)
    whole = path.read_bytes()
    for content in (whole[:-3], b"", whole.replace(b'"seconds":"', b'"seconds":"x')):
        path.write_bytes(content)
        with pytest.warns(UserWarning, match=rf"{path.name} is damaged.*trained again"):
            assert measure(tmp_path, options).metrics == first.metrics
    assert log(tmp_path) == 4
    assert set(load_file(path)) == set(load_file(models(tmp_path)[0]))


def test_fresh_takes_no_older_state(tmp_path: Path, options) -> None:
    measure(tmp_path, options)
    moment = time.time()
    measure(tmp_path, options, fresh_since=moment)
    measure(tmp_path, options, fresh_since=moment)
    assert log(tmp_path) == 2


def observation_of(data: Data, *, batch_size: int = 1, **granted: object) -> Observation:
    model = gitbench.load_model("mlp", data)
    inputs, labels = data.private.inputs[: 2 * batch_size], data.private.labels[: 2 * batch_size]
    update = gitbench.client_update(model, inputs.reshape(2, batch_size, *data.input_shape), labels.reshape(2, batch_size))
    return Observation(update=update, model=model, input_shape=data.input_shape, batch_size=batch_size, public=data.public, **granted)


CHANGES: dict[str, dict[str, object]] = {
    "seed": {"seed": 1},
    "defense": {"defense": "pruning(rate=0.5)"},
    "batch_size": {"batch_size": 2},
    "model": {"model": "mlp(hidden=(8,))"},
    "option": {"attack": "ridge(holdout=0.2)"},
    "profile": {"profile": "standard"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_case_is_another_state(options, data: Data, change: str) -> None:
    def key(**changes: object) -> str:
        found: dict[str, object] = {**options, "attack": "ridge", **changes}
        case = case_of(**found)  # type: ignore[arg-type]
        attack = load_attack(case.attack, profile=case.profile)
        return identity(case, attack, observation_of(data, batch_size=case.batch_size, defense=case.defense))

    assert key() == key()
    assert key(victims=5) == key()
    assert key(**CHANGES[change]) != key()


def test_the_code_and_the_knowledge_are_part_of_a_states_identity(options, data: Data, tmp_path: Path) -> None:
    case: Case = case_of(**options)
    attack = load_attack(case.attack)
    plain = identity(case, attack, observation_of(data))
    assert identity(case, attack, observation_of(data, defense="none")) != plain
    with (tmp_path / "attacks.py").open("a") as file:
        file.write("# edited\n")
    assert identity(case, attack, observation_of(data)) != plain


def test_a_fit_that_reads_no_defense_is_shared_between_defenses(options, data: Data) -> None:
    attack = load_attack("gias", profile="quick")
    observed = observation_of(data).restricted(frozenset({"public"}))
    first, second = (case_of(**{**options, "attack": "gias", "defense": defense}) for defense in ("none", "pruning(rate=0.5)"))
    assert identity(first, attack, observed) == identity(second, attack, observed)
    # What a defense makes of the model is seen all the same.
    other = gitbench.load_model("mlp", data, seed=5)
    changed = Observation(
        update=observation_of(data).update, model=other, input_shape=data.input_shape, public=data.public, parameters=False
    )
    assert identity(second, attack, changed) != identity(second, attack, observed)


def test_a_fit_that_sees_no_model_is_shared_between_models(options, data: Data) -> None:
    attack = load_attack("gias", profile="quick")
    unseen = observation_of(data).restricted(frozenset({"public"})).without_model()
    first, second = (case_of(**{**options, "attack": "gias", "model": model, "defense": "pruning(rate=0.5)"}) for model in ("mlp", "lenet"))
    assert identity(first, attack, unseen) == identity(second, attack, unseen)
    # A model may make targets of its own, and a generator with classes would learn those.
    relabelled = observation_of(replace(data, public=replace(data.public, labels=data.public.labels.flip(0))))
    assert identity(first, attack, relabelled.restricted(frozenset({"public"})).without_model()) != identity(first, attack, unseen)


@pytest.mark.parametrize(("attack", "axis", "values", "states"), [
    ("gias(epochs=1, limit=60, iterations=1, latent_iterations=1, restarts=1)", "model", ("mlp", "lenet"), 1),
    ("git(epochs=1, limit=60)", "defense", ("none", "pruning(rate=0.5)"), 3),  # its weights once
])  # fmt: skip
def test_what_others_share_is_learned_once(attack: str, axis: str, values: tuple[str, ...], states: int, options, tmp_path: Path) -> None:
    for value in values:
        measure(tmp_path, {**options, "attack": attack, axis: value})
    assert len(models(tmp_path)) == states


def test_a_hybrids_state_goes_by_the_code_of_its_prior(options, data: Data) -> None:
    alone, hybrid = (case_of(**{**options, "attack": attack}) for attack in ("ridge", "ridge+ig"))
    joined = load_attack("ridge+ig", profile="quick")
    assert isinstance(joined, Hybrid)
    found = observation_of(data)
    assert identity(hybrid, joined.prior, found) == identity(alone, load_attack("ridge", profile="quick"), found)


def test_fitting_leaves_the_generator_of_the_run_alone(options, data: Data) -> None:
    case = case_of(**{**options, "attack": "ridge+dlg(iterations=2)"})
    fits = FitCache(None).of(case)
    found = [load_attack(case.attack)(observation_of(data), generator=make_generator(5), fits=fits).inputs for _ in range(2)]
    assert torch.equal(*found)


def test_two_threads_learn_it_once(tmp_path: Path, options, data: Data) -> None:
    case = case_of(**{**options, "attack": f"{options['attack']}(pause=0.2)"})
    attack = load_attack(case.attack)
    found: list[torch.Tensor] = []
    observed = observation_of(data)  # once: models are initialised from torch's global state, which threads share

    def attack_them() -> None:
        fits = FitCache(Store(tmp_path / "results")).of(case)
        found.append(attack(observed, generator=make_generator(0), fits=fits).inputs)

    threads = [threading.Thread(target=attack_them) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert log(tmp_path) == 1
    assert len(found) == 3
    assert all(torch.equal(found[0], other) for other in found)


# Imports torch once and forks for each line; "wait" waits for all of them. Only the server reaps: a child's id stays its own.
SERVER = """
import os, sys, torch
torch.set_num_threads(1)
import gitbench, gitbench.measure.evaluator, gitbench.measure.metrics.lpips, torchvision
gitbench.measure.metrics.lpips._network(torch.device("cpu"))
dataset, results = sys.argv[1:]
children = []
for line in sys.stdin:
    if line == "wait\\n":
        print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
        children.clear()
        continue
    child = os.fork()
    if child == 0:
        status = "raised"
        try:
            options = dict(model="mlp", dataset=dataset, profile="quick", victims=2, device="cpu", results=results)
            status = gitbench.evaluate(attack=line.strip(), **options).status
        finally:
            os._exit(status != "done")
    children.append(child)
    print(child, flush=True)
"""


@pytest.fixture
def server(tmp_path: Path, options) -> Iterator[Callable[[str], list[int]]]:
    """Sends a line, returns the numbers that come back."""
    # -P: what is installed, not what lies in the working directory.
    command = [sys.executable, "-P", "-c", SERVER, str(options["dataset"]), str(tmp_path / "results")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None

    def send(line: str) -> list[int]:
        process.stdin.write(f"{line}\n")
        process.stdin.flush()
        return [int(word) for word in process.stdout.readline().split()]

    yield send
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.02)


def test_a_killed_training_goes_on_in_the_next_run_and_two_processes_share_it(tmp_path: Path, options, server) -> None:
    attack = f"{options['attack']}(pause=0.15, epochs=8)"
    (child,) = server(attack)
    wait_for(lambda: log(tmp_path, "epoch") >= 4)
    os.kill(child, signal.SIGKILL)
    assert server("wait") == [-signal.SIGKILL]
    (kept,) = (path for path in models(tmp_path) if path.suffix == ".safetensors")
    assert kept.name.endswith(".checkpoint.safetensors")
    with safe_open(kept, framework="pt") as file:
        before = float(file.metadata()["seconds"])
    ran = log(tmp_path, "epoch")
    # Two at once: the one that comes second waits for the other and takes what it learned.
    server(attack), server(f"{attack}+ig(iterations=1)")
    assert server("wait") == [0, 0]
    assert log(tmp_path) == 2
    assert log(tmp_path, "epoch") - ran <= 8 - 3  # three epochs at least were saved
    (state,) = (path for path in models(tmp_path) if path.suffix == ".safetensors")
    with safe_open(state, framework="pt") as file:
        assert float(file.metadata()["seconds"]) > before + 0.3  # of both attempts
    killed = load_file(state)
    state.unlink()
    measure(tmp_path, options, attack=attack)
    whole = load_file(state)
    assert set(killed) == set(whole)
    assert all(torch.equal(killed[name], whole[name]) for name in whole)
