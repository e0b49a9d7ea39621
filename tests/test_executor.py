"""Cases that are measured by workers, without Ray: tasks are done in this process, one after the other, and in any order."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gitbench.core.errors import ClusterError, ConfigError
from gitbench.identity.case import Case
from gitbench.judge.sequential import decide_cell
from gitbench.measure import remote
from gitbench.measure.task import Task
from gitbench.run.bench import Bench, case_of
from gitbench.run.executor import ClusterExecutor
from gitbench.store.folder import Store
from gitbench.store.result import NOT_JUDGED, TIMED_OUT, Result
from helpers import write
from workers import ATTACKS, Here

GATE = {"psnr_gain": 3.0}


@pytest.fixture
def attacks(tmp_path: Path) -> Path:
    return write(tmp_path / "attacks.py", ATTACKS)


@pytest.fixture
def case(tiny_npz: Path, attacks: Path) -> Callable[..., Case]:
    def make(
        attack: str, defense: str = "none", *, model: str = "mlp(hidden=(16,))", victims: int = 4, seed: int = 0, rounds: int = 1
    ) -> Case:
        return case_of(
            attack=attack.replace("HERE", str(attacks)), defense=defense.replace("HERE", str(attacks)), model=model,
            dataset=f"npz(path={str(tiny_npz)!r})", threat="server", profile="quick", victims=victims, batch_size=1, seed=seed, rounds=rounds,
        )  # fmt: skip

    return make


def on_cluster(cluster: Here, store: Store, cases: Sequence[Case], *, cost: bool = False) -> list[Result]:
    """Cases, each a cell of its own, measured as a run does."""
    executor = ClusterExecutor(lambda: cluster, store, cost=cost)
    bench = Bench(store=store, gate=GATE, executor=executor, timeout=cluster.conditions.timeout, cost=cost)
    try:
        executor.ask([[case] for case in cases], known=bench.stored, planned=(4,), gate=GATE)
        return [bench.measure(case) for case in cases]
    finally:
        executor.close()


def in_this_process(store: Store, cases: Sequence[Case], *, cost: bool = False) -> list[Result]:
    bench = Bench(store=store, device="cpu", gate=GATE, threads=1, cost=cost)
    return [bench.measure(case) for case in cases]


def told(result: Result) -> dict[str, object]:
    """What of a result is neither measured by a clock nor names the machine."""
    found = json.loads(result.to_json())
    for name in ("cost", "finished_at", "environment"):
        del found[name]
    if found["training"]:
        del found["training"]["seconds"]
    return found


def learned(attacks: Path) -> list[str]:
    log = attacks.with_name("learned.log")
    return log.read_text().splitlines() if log.exists() else []


def files(folder: Path, *, content: bool) -> dict[str, bytes | None]:
    return {path.name: path.read_bytes() if content else None for path in folder.iterdir()}


# Equal to a local run


def test_a_cluster_measures_what_one_process_does(case, attacks: Path, tmp_path: Path) -> None:
    trained = "mlp(hidden=(8,), trained_epochs=1)"
    cases = [
        *(case(attack, defense) for attack in ("HERE:Learned", "HERE:Learned+HERE:Guess") for defense in ("none", "pruning(rate=0.5)")),
        case("HERE:Learned", "HERE:Broken"),
        # Several rounds are one, and share what was learned of one, where nothing is drawn.
        *(case("HERE:Learned", defense, rounds=2) for defense in ("none", "pruning(rate=0.5)", "gaussian_noise(std=0.1)")),
        *(case("ridge", defense, model=trained) for defense in ("gaussian_noise(std=0.1)", "parameter_drift(epochs=1, samples=16)")),
        # Whether the attacker gains by knowing the defense is told where the other one has been judged before.
        *(case(f"ridge(adapt={adapt})", "dropout(rate=0.5)") for adapt in (True, False)),
    ]
    local, remote = Store(tmp_path / "local"), Store(tmp_path / "remote")
    expected = in_this_process(local, cases)
    assert learned(attacks) == ["0 from 0"] * 2
    cluster = Here(ends=random.Random(0).choice)
    found = on_cluster(cluster, remote, cases)
    assert [told(result) for result in found] == [told(result) for result in expected]
    assert [told(result) for result in remote.results()] == [told(result) for result in local.results()]
    assert files(remote.root / "pictures", content=True) == files(local.root / "pictures", content=True)
    assert files(remote.models, content=False) == files(local.models, content=False)
    assert learned(attacks) == ["0 from 0"] * 4  # one state for all cells that see one round, here as there
    assert len({task.case for task in cluster.tasks}) == len({one.case_id for one in (*cases, *(case.control() for case in cases))})
    assert cluster.closed


def test_what_a_defense_costs_is_measured_there_too(case, tmp_path: Path) -> None:
    cases = [case("ridge", defense) for defense in ("none", "gaussian_noise(std=0.1)")]
    local, remote = Store(tmp_path / "local"), Store(tmp_path / "remote")
    expected = in_this_process(local, cases, cost=True)
    found = on_cluster(Here(), remote, cases, cost=True)
    assert all(result.training is not None for result in found)
    assert [told(result) for result in found] == [told(result) for result in expected]


def test_what_was_learned_when_the_run_ends_is_kept(case, tmp_path: Path) -> None:
    opened = []

    def cluster() -> Here:
        opened.append(Here())
        return opened[-1]

    store = Store(tmp_path / "results")
    executor = ClusterExecutor(cluster, store)
    executor.ask([[case("HERE:Learned")]], known=lambda one: None, planned=(4,), gate=GATE)
    executor._step()  # it lacks a state
    executor._fill()  # which is being learned
    executor.close()
    executor.close()
    assert len(list(store.models.glob("*.safetensors"))) == 1
    assert [one.closed for one in opened] == [True]


def test_where_the_verdict_decides_on_victims_the_next_look_is_asked_for_before_its_turn(case, tmp_path: Path) -> None:
    """Two cells are undecided at four victims. The looks of both at eight are under way when the first is waited for."""
    cases, planned = [case("HERE:Guess", seed=seed) for seed in range(6)], (4, 8)
    # What is guessed depends on where the test's folder lies. The gate is put between the two cells that are nearest to each other.
    means = [result.metrics["psnr_gain"].mean for result in in_this_process(Store(tmp_path / "first"), cases)]
    order = sorted(range(len(cases)), key=lambda index: means[index])
    one, other = min(itertools.pairwise(order), key=lambda pair: means[pair[1]] - means[pair[0]])
    cells, gate = [cases[one], cases[other]], {"psnr_gain": (means[one] + means[other]) / 2}
    local = Bench(device="cpu", gate=gate, threads=1)
    expected = [decide_cell(local.measure, [one], planned=planned, gate=gate) for one in cells]
    assert [decision.results[0].case.victims for decision in expected] == [8, 8]
    cluster, store = Here(), Store(tmp_path / "results")
    executor = ClusterExecutor(lambda: cluster, store)
    bench = Bench(store=store, gate=gate, executor=executor)
    executor.ask([[one] for one in cells], known=bench.stored, planned=planned, gate=gate)
    found = [decide_cell(bench.measure, [cells[0]], planned=planned, gate=gate)]
    assert len(cluster.tasks) == 4
    found.append(decide_cell(bench.measure, [cells[1]], planned=planned, gate=gate))
    assert len(cluster.tasks) == 4
    assert [told(decision.results[0]) for decision in found] == [told(decision.results[0]) for decision in expected]


# What was done is not done again


def test_the_next_run_asks_for_what_is_missing_only(case, attacks: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    on_cluster(Here(), store, [case("HERE:Learned")])
    more = Here()
    on_cluster(more, store, [case("HERE:Learned"), case("HERE:Learned", "pruning(rate=0.5)")])
    assert {json.loads(task.case)["defense"] for task in more.tasks} == {"pruning(rate=0.5)"}
    assert learned(attacks) == ["0 from 0"]
    never = Here()
    on_cluster(never, store, [case("HERE:Learned")])
    assert not never.tasks
    assert not never.closed  # it was not even opened


def test_what_came_back_before_the_run_was_interrupted_is_kept(case, tmp_path: Path) -> None:
    store, cases = Store(tmp_path / "results"), [case("HERE:Guess", seed=seed) for seed in range(3)]

    def interrupted(task: Task) -> bool:
        if Case.model_validate_json(task.case).seed == 0:
            raise KeyboardInterrupt
        return False

    cluster = Here(dies=interrupted, ends=lambda tasks: tasks[-1])
    with pytest.raises(KeyboardInterrupt):
        on_cluster(cluster, store, cases)
    assert cluster.closed
    assert {(result.case.seed, result.verdict_reason) for result in store.results()} == {(1, NOT_JUDGED), (2, NOT_JUDGED)}
    again = Here()
    found = on_cluster(again, store, cases)
    assert [Case.model_validate_json(task.case).seed for task in again.tasks] == [0]
    assert all(result.verdict_reason != NOT_JUDGED for result in (*found, *store.results()))


# What goes wrong


def test_a_fit_that_fails_is_told_by_every_cell_as_in_one_process(case, attacks: Path, tmp_path: Path) -> None:
    cases = [case("HERE:Learned(fails=True)", defense) for defense in ("none", "pruning(rate=0.5)")]
    found = on_cluster(Here(), Store(tmp_path / "remote"), cases)
    expected = in_this_process(Store(tmp_path / "local"), cases)
    assert [result.error for result in found] == [result.error for result in expected]
    assert "raised ValueError: nothing to be learned" in str(found[0].error)


def test_a_cell_whose_workers_die_is_given_up_and_the_others_are_not(case, tmp_path: Path) -> None:
    good, bad = case("HERE:Guess"), case("HERE:Learned")
    cluster = Here(dies=lambda task: "Learned" in json.loads(task.case)["attack"])
    executor = ClusterExecutor(lambda: cluster, Store(tmp_path / "results"))
    bench = Bench(store=Store(tmp_path / "results"), gate=GATE, executor=executor)
    executor.ask([[bad], [good]], known=bench.stored, planned=(4,), gate=GATE)
    for _ in range(2):  # asked again, it does not die again
        with pytest.raises(ClusterError, match=r"Learned: the worker died"):
            bench.measure(bad)
    assert bench.measure(good).status == "done"
    assert len(cluster.tasks) == 2


def test_all_that_need_a_state_are_given_up_with_it(case, tmp_path: Path) -> None:
    cases = [case("HERE:Learned", defense) for defense in ("none", "pruning(rate=0.5)", "pruning(rate=0.6)")]
    cluster = Here(dies=lambda task: task.learns is not None)
    executor = ClusterExecutor(lambda: cluster, Store(tmp_path / "results"))
    bench = Bench(store=Store(tmp_path / "results"), gate=GATE, executor=executor)
    executor.ask([[one] for one in cases], known=bench.stored, planned=(4,), gate=GATE)
    for one in cases:
        with pytest.raises(ClusterError, match="the worker died"):
            bench.measure(one)
    assert sum(task.learns is not None for task in cluster.tasks) == 1


def test_a_fit_that_takes_too_long_goes_on_in_the_next_cell(case, attacks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Soon(remote.Deadline):
        late = False
        over = property(lambda self: self.late)

        def __call__(self, what: str, done: int, total: int) -> None:
            self.late |= (what, done) == ("learning", 5)
            super().__call__(what, done, total)

    monkeypatch.setattr(remote, "Deadline", Soon)
    first, second = on_cluster(
        Here(timeout=600.0), Store(tmp_path / "results"), [case("HERE:Learned"), case("HERE:Learned", "pruning(rate=0.5)")]
    )
    assert (first.flags, first.timeout) == ((TIMED_OUT,), 600.0)
    assert TIMED_OUT not in second.flags
    assert learned(attacks) == ["0 from 0", "0 from 6"]


def test_code_that_is_another_one_on_a_worker_measures_nothing(case, tmp_path: Path) -> None:
    one = case("HERE:Guess")
    other = one.model_copy(update={"code": {**one.code, "attack": "0" * 16}})
    with pytest.raises(ClusterError, match=r"A worker cannot measure .*the attack .*Guess is of another version there.*docs/cluster.md"):
        on_cluster(Here(), Store(tmp_path / "results"), [other])


def test_a_damaged_state_is_learned_again(case, attacks: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "results")
    on_cluster(Here(), store, [case("HERE:Learned")])
    (state,) = store.models.glob("*.safetensors")
    state.write_bytes(state.read_bytes()[:50])
    with pytest.warns(UserWarning, match="is damaged"):
        on_cluster(Here(), store, [case("HERE:Learned", "pruning(rate=0.5)")])
    assert learned(attacks) == ["0 from 0"] * 2


def test_an_object_of_this_process_is_refused(case, tmp_path: Path) -> None:
    import gitbench

    class Mine(gitbench.Defense):
        pass

    with pytest.raises(ConfigError, match="which no worker can reach"):
        ClusterExecutor(Here, Store(tmp_path / "results")).run(case("HERE:Guess"), Mine())
