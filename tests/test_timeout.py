"""A case that runs out of time: stopped, inconclusive, never green, and measured again when it has more."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_verdict import result as made_up

import gitbench
from gitbench.attacker.learning import train_network
from gitbench.cli import main
from gitbench.core.deadline import Deadline
from gitbench.core.errors import ConfigError
from gitbench.core.progress import TimeUp
from gitbench.core.random import make_generator
from gitbench.identity.case import Case
from gitbench.judge.verdict import judge_results
from gitbench.measure import evaluator as evaluation
from gitbench.run.bench import Bench, case_of
from gitbench.run.config import make_config
from gitbench.store.folder import Store
from gitbench.store.result import TIMED_OUT, Result
from helpers import ALONE, alarm, at_most

GATE = {"psnr_gain": 3.0}


@pytest.fixture
def case(tiny_npz: Path) -> Callable[..., Case]:
    def make(**changes: object) -> Case:
        options = {"attack": "ridge", "defense": "none", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 8}
        return case_of(**{**options, **changes}, threat="server", profile="quick", batch_size=1, seed=0)

    return make


class Sleeping(gitbench.Defense):
    """Tells nobody that it hangs."""

    def protect(self, update, *, generator):
        time.sleep(60)
        return update


class Stubborn(gitbench.Defense):
    """Swallows every ordinary error."""

    def protect(self, update, *, generator):
        while True:
            try:
                time.sleep(60)
            except Exception:  # noqa: BLE001
                continue


# The budget


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5"])
def test_a_budget_that_is_none_is_refused(seconds: object, case: Callable[..., Case]) -> None:
    with pytest.raises(ConfigError, match=r"Expected the timeout to be a number of seconds > 0, or none for no limit, got "):
        Bench(timeout=seconds)


def test_the_option_is_checked() -> None:
    assert make_config({}, {}).timeout == 900
    assert make_config({"profile": "standard"}, {}).timeout is None
    assert make_config({"timeout": 5}, {}).timeout == 5
    assert make_config({"timeout": 5}, {"timeout": "none"}).timeout is None
    assert make_config({}, {"timeout": "2.5"}).timeout == 2.5
    for wrong in (0, -3, "soon", float("nan")):
        with pytest.raises(ConfigError, match=r"The option timeout is "):
            make_config({"timeout": wrong}, {})


# A case


@alarm
@pytest.mark.parametrize("defense", [Sleeping(), Stubborn()], ids=repr)
def test_a_defense_that_hangs_is_inconclusive(case: Callable[..., Case], defense: gitbench.Defense) -> None:
    bench = Bench(device="cpu", timeout=0.3)
    bench.measure(case())
    with at_most(50):
        found = gitbench.evaluate(
            attack="ridge", defense=defense, model="mlp", dataset=case().dataset, victims=8, device="cpu", timeout=1.0
        )
    assert (found.status, found.verdict) == ("done", "inconclusive")
    assert TIMED_OUT in found.flags
    assert found.timeout == 1.0
    assert found.verdict_reason == "this cell timed out after 1 s: raise --gitbench-timeout (it had nothing yet)"
    assert Result.model_validate_json(found.to_json()) == found


@pytest.fixture
def time_is_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Time is up, for the clock too, when some work has been done so often: no test depends on how busy the machine is."""

    def when(work: str, often: int) -> None:
        class Soon(Deadline):
            late = False

            @property
            def over(self) -> bool:
                return self.late

            def __call__(self, what: str, done: int, total: int) -> None:
                self.late |= what.startswith(work) and done >= often
                super().__call__(what, done, total)

        monkeypatch.setattr(evaluation, "Deadline", Soon)

    return when


@pytest.mark.parametrize(
    ("attack", "work"),
    [
        ("ig(iterations=1000000)", "ig"),
        ("ig(iterations=30, restarts=1000)", "ig"),
        ("dlg(iterations=1000000, patience=1000000, lr=0.001)", "dlg"),
        ("ridge+ig(iterations=1000000)", "ig"),
        ("gias(latent_iterations=1000000, epochs=1)", "gias: codes"),
        ("gias(iterations=1000000, epochs=1)", "gias: parameters"),
        ("gifd(latent_iterations=1000000, epochs=1)", "gifd: codes"),
        ("gifd(iterations=1000000, epochs=1)", "gifd: stage 1"),
    ],
)
def test_iterative_attacks_give_their_best_so_far(
    case: Callable[..., Case], time_is_up: Callable[[str, int], None], attack: str, work: str
) -> None:
    time_is_up(work, 40)
    found = Bench(device="cpu", timeout=900.0).measure(case(attack=attack))
    assert (found.status, found.verdict, TIMED_OUT in found.flags) == ("done", "inconclusive", True), found.verdict_reason
    assert len(found.metrics["psnr_gain"].values) == 8
    assert found.timeout == 900.0
    assert found.verdict_reason.startswith("this cell timed out after 900 s: raise --gitbench-timeout (it had psnr_gain ")


def test_what_is_given_is_the_best_so_far(case: Callable[..., Case], time_is_up: Callable[[str, int], None]) -> None:
    early, later = [], []
    for often, found in ((2, early), (300, later)):
        time_is_up("ig", often)
        found.append(Bench(device="cpu", timeout=900.0).measure(case(attack="ig(iterations=2000)")).metrics["psnr_gain"].mean)
    assert later[0] > early[0] + 3


def test_what_learns_has_nothing_yet_and_goes_on_later(
    case: Callable[..., Case], time_is_up: Callable[[str, int], None], tmp_path: Path
) -> None:
    time_is_up("lti: epoch 3", 1)
    store, slow = Store(tmp_path), case(attack="lti(epochs=100000)")
    found = Bench(store=store, device="cpu", timeout=900.0).measure(slow)
    assert (found.status, found.verdict, found.metrics) == ("done", "inconclusive", {})
    assert found.verdict_reason.endswith("(it had nothing yet)")
    assert store.load(slow.case_id) == found
    assert list(store.models.glob("*.checkpoint.safetensors"))  # the next run goes on from here


def test_a_training_keeps_its_last_epoch_when_time_is_up() -> None:
    saved = []

    class Kept:
        def load(self):
            return saved[-1] if saved else None

        def save(self, tensors):
            saved.append(dict(tensors))

    def until(what: str, done: int, total: int) -> None:
        if done == 5:
            raise TimeUp

    network = torch.nn.Linear(2, 1)
    options = {
        "loss": lambda rows, generator: network(torch.ones(len(rows), 2)).square().mean(), "rows": 4, "validate": lambda: 1.0, "epochs": 9,
        "batch_size": 2, "lr": 0.1, "generator": make_generator(0), "what": "x", "checkpoint": Kept(),
    }  # fmt: skip
    with pytest.raises(TimeUp):
        train_network(network, progress=until, **options)
    (kept,) = saved
    assert kept["x/counts"].tolist()[0] == 2


# Stored results


def test_a_stored_timeout_is_measured_again_with_more_time(case: Callable[..., Case], tmp_path: Path) -> None:
    store, slow = Store(tmp_path), case(attack="ig(iterations=400)")
    late = Bench(store=store, device="cpu", timeout=0.05).measure(slow)
    assert TIMED_OUT in late.flags
    # The same time, or less, would end the same way.
    for seconds in (0.05, 0.01):
        assert Bench(store=store, device="cpu", timeout=seconds).stored(slow) == late
        assert Bench(store=store, device="cpu", timeout=seconds).measure(slow) == late
    for seconds in (0.06, None):
        assert Bench(store=store, device="cpu", timeout=seconds).stored(slow) is None
    done = Bench(store=store, device="cpu", timeout=None).measure(slow)
    assert TIMED_OUT not in done.flags
    assert done.timeout is None
    # What was finished stays finished, however little time there is now.
    assert Bench(store=store, device="cpu", timeout=0.01).measure(slow) == done


def test_a_case_in_time_is_the_same_case_with_a_budget_and_without(case: Callable[..., Case]) -> None:
    first, second = (Bench(device="cpu", timeout=seconds).measure(case()) for seconds in (None, 600.0))
    assert first.metrics == second.metrics
    assert (second.timeout, second.flags) == (None, first.flags)


# Verdicts: every reading of a timeout is red


def late(values: tuple[float, ...] | None, **options: object) -> Result:
    found = made_up(values or (0.0, 0.0), **options).model_copy(update={"flags": (TIMED_OUT,), "timeout": 5.0})
    return found if values else found.model_copy(update={"metrics": {}})


@pytest.mark.parametrize("values", [None, (9.0, 9.1), (0.0, 0.1), (2.0, 4.0)])
def test_a_timeout_is_never_judged(values: tuple[float, ...] | None) -> None:
    control = [made_up((9.0, 9.5), defense="none")]
    for results in ([late(values)], [made_up((0.0, 0.1)), late(values, seed=1)]):
        judgement = judge_results(results, control, gate=GATE)
        assert (judgement.verdict, judgement.control_failed) == ("inconclusive", False)
        assert judgement.reason.startswith("this cell timed out after 5 s: raise --gitbench-timeout")
    as_control = judge_results([made_up((0.0, 0.1))], [late(values, defense="none")], gate=GATE)
    assert (as_control.verdict, as_control.control_failed) == ("inconclusive", False)
    assert as_control.reason.startswith("the control timed out after 5 s")
    assert judge_results([late(values, defense="none")], None, gate=GATE).verdict == "inconclusive"


@pytest.mark.parametrize("values", [None, (0.0, 0.1)])
def test_a_cell_that_timed_out_is_no_pass_in_a_comparison(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], values: tuple[float, ...] | None
) -> None:
    # What it had by then leaks less than before: that must not read as an improvement.
    Store(tmp_path / "before").save(made_up((9.0, 9.5)))
    after = late(values).model_copy(update={"verdict_reason": "this cell timed out after 5 s"})
    Store(tmp_path / "after").save(after)
    assert main(["compare", str(tmp_path / "before"), str(tmp_path / "after")]) == 1
    assert "this cell timed out after 5 s" in capsys.readouterr().out
    assert main(["compare", str(tmp_path / "after"), str(tmp_path / "before")]) == 1  # nor does it serve as a baseline
    assert "cannot be compared" in capsys.readouterr().out


# The plugin


@pytest.fixture
def bench(warm: None, pytester: pytest.Pytester, tiny_npz: Path) -> pytest.Pytester:
    pytester.makepyprojecttoml(
        f"""
        [tool.gitbench]
        dataset = "npz(path={str(tiny_npz)!r})"
        model = "mlp"
        attack = "ridge"
        defense = ["none", "clipping(max_norm=100.0)", "slow.py:Sleeping", "gaussian_noise(std=1.0)"]
        known_leaks = ["*/clipping(max_norm=100.0)/*", "*/slow.py:Sleeping/*"]
        victims = 8
        timeout = 10
        """
    )
    pytester.makepyfile(
        slow="""
        import time
        import gitbench

        class Sleeping(gitbench.Defense):
            def protect(self, update, *, generator):
                time.sleep(60)
                return update
        """
    )
    return pytester


@pytest.mark.slow
@alarm
@pytest.mark.parametrize("extra", [("-p", "no:xdist"), ("-n", "2")], ids=["plain", "n2"])
def test_the_run_goes_on_and_the_cell_is_red_even_where_a_leak_is_declared(bench: pytest.Pytester, extra: tuple[str, ...]) -> None:
    run = bench.runpytest_subprocess(*ALONE, "--gitbench", *extra, timeout=600)
    run.assert_outcomes(passed=2, xfailed=1, failed=1)
    run.stdout.fnmatch_lines(["*this cell timed out after 10 s: raise --gitbench-timeout*", "*slow.py:Sleeping *F timed out*"])
    cases = [json.loads(path.read_text()) for path in (bench.path / ".gitbench" / "cases").iterdir()]
    (hung,) = [found for found in cases if "slow.py" in found["case"]["defense"]]
    assert (hung["status"], hung["verdict"], hung["timeout"]) == ("done", "inconclusive", 10.0)
    assert hung["flags"] == [TIMED_OUT]
    (board,) = (bench.path / "leaderboards").glob("*.md")
    assert "timed out" in board.read_text()


def test_a_control_that_timed_out_is_red_too(bench: pytest.Pytester, time_is_up: Callable[[str, int], None]) -> None:
    time_is_up("ig", 20)
    options = (
        "--gitbench-attack",
        "ridge",
        "--gitbench-attack",
        "ig(iterations=1000000)",
        "--gitbench-defense",
        "gaussian_noise(std=1.0)",
        "--gitbench-timeout",
        "1",
    )
    run = bench.runpytest_inprocess("--gitbench", *options)
    # ridge holds; ig never finished: that is no reason to skip it.
    run.assert_outcomes(passed=1, failed=1)
    run.stdout.fnmatch_lines(["*timed out*"])


def test_the_fixture_takes_the_budget(bench: pytest.Pytester) -> None:
    bench.makepyfile(
        test_mine="""
        import pytest

        @pytest.mark.gitbench(attacks=["ig(iterations=1000000)", "ridge"], timeout=0.5)
        def test_it(gitbench_evaluate):
            report = gitbench_evaluate("gaussian_noise(std=1.0)")
            assert report.verdict == "inconclusive"
        """
    )
    bench.runpytest_inprocess("test_mine.py").assert_outcomes(passed=1)
