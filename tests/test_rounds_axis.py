"""Rounds as an axis: in the case, its id, the tables, on the command line and in the fixture; and every kind of attack takes them."""

from __future__ import annotations

import pytest
from test_own_defenses import ErrorFeedback
from test_rounds import DETERMINISTIC, Shaken, Thinned

import gitbench
from gitbench import Defense
from gitbench.identity.case import Case, Setting
from gitbench.publish.baseline import Record
from gitbench.run.bench import case_of
from helpers import run_matrix, stored_cases
from records import record
from results import result as made_up


def small_case(**changes: object) -> Case:
    options = {"attack": "ridge", "defense": "none", "model": "mlp", "dataset": "photos", "threat": "server", "profile": "quick"}
    return case_of(**{**options, "victims": 2, "batch_size": 4, "seed": 0, **changes})


def test_one_round_is_what_a_case_was_before() -> None:
    case = small_case()
    stored = case.model_dump(mode="json")
    assert stored.pop("rounds") == 1
    assert Case.model_validate(stored) == case  # an old result
    assert Case.model_validate(stored).case_id == case.case_id == small_case(rounds=1).case_id
    assert small_case(rounds=2).case_id != case.case_id
    assert small_case(rounds=2).control().rounds == 2
    assert small_case(rounds=16).cell == "photos/mlp/batch-4/rounds-16/none/ridge"
    assert case.cell == "photos/mlp/batch-4/none/ridge"
    assert str(Setting("photos", "lenet", rounds=3)) == "photos/lenet/rounds-3"


def test_an_old_result_is_read() -> None:
    new = made_up()
    old = new.model_dump(mode="json")
    old["case"].pop("rounds")
    assert type(new).model_validate(old) == new
    stored = record([1.0, 2.0]).model_dump(mode="json")
    stored.pop("rounds")
    assert Record.model_validate(stored) == record([1.0, 2.0])
    keys = [record([1.0, 2.0], rounds=rounds).key for rounds in (1, 4)]
    assert [key.cell for key in keys] == [f"photos/lenet{rounds}/pruning(rate=0.5)/ridge" for rounds in ("", "/rounds-4")]


@pytest.fixture
def options(tiny_npz) -> dict:
    return {"attack": "ridge", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 4, "profile": "quick", "device": "cpu"}


@pytest.mark.parametrize("defense", DETERMINISTIC)
@pytest.mark.parametrize("attack", ["ridge+ig(iterations=3)", "lti(epochs=1, limit=60)", "ridge(adapt=False)"])
def test_deterministic_defenses_give_the_same_figures_at_any_number_of_rounds(options, defense: str, attack: str) -> None:
    one, many = (gitbench.evaluate(**{**options, "defense": defense, "attack": attack, "rounds": rounds}) for rounds in (1, 5))
    assert many.error is None
    assert many.case.rounds == 5
    assert many.metrics == one.metrics
    assert many.utility == one.utility


@pytest.mark.parametrize("defense", ["gaussian_noise(std=0.3)", Thinned(), ErrorFeedback(), Shaken()])
@pytest.mark.parametrize("attack", ["ridge", "ig(iterations=3)", "lti(epochs=1, limit=60)", "ridge(adapt=False)"])
def test_every_kind_of_attack_takes_several_rounds(options, defense: Defense | str, attack: str) -> None:
    found = gitbench.evaluate(**{**options, "defense": defense, "attack": attack, "rounds": 3})
    assert found.status == "done", found.error
    # What is left to learn from is of one round.
    one = gitbench.evaluate(**{**options, "defense": defense, "attack": attack})
    assert found.utility == one.utility


def test_several_rounds_show_more_of_a_noisy_update(options) -> None:
    few, many = (gitbench.evaluate(**{**options, "defense": "gaussian_noise(std=0.2)", "rounds": rounds}) for rounds in (1, 64))
    assert many.metrics["psnr_gain"].mean > few.metrics["psnr_gain"].mean + 1


@pytest.mark.parametrize("workers", [pytest.param((), id="alone"), pytest.param(("-n", "2"), id="xdist", marks=pytest.mark.slow)])
def test_rounds_are_an_axis(bench: pytest.Pytester, workers: tuple[str, ...], warm: None) -> None:
    result = run_matrix(
        bench, "--gitbench-rounds", "1", "--gitbench-rounds", "3", "--gitbench-batch-size", "2", "--gitbench-defense", "none",
        "--gitbench-defense", "gaussian_noise(std=0.01)", *workers,
    )  # fmt: skip
    assert "rounds-3" in result.stdout.str()
    found = stored_cases(bench.path).values()
    assert sorted((case["case"]["rounds"], case["case"]["defense"]) for case in found) == [
        (1, "gaussian_noise(std=0.01)"), (1, "none"), (3, "gaussian_noise(std=0.01)"), (3, "none"),
    ]  # fmt: skip
    boards = sorted(path.name for path in (bench.path / "leaderboards").glob("*.md"))
    assert sorted("rounds=3" in name for name in boards) == [False, True]
    assert sum("rounds" in name for name in boards) == 1
    if not workers:
        listed = run_matrix(bench, "--gitbench-rounds", "3", "--gitbench-defense", "none", "--collect-only", "-q")
        assert "/rounds-3/none/ridge" in listed.stdout.str()


@pytest.mark.parametrize("value", ["0", "many", "1.5"])
def test_a_bad_value_on_the_command_line_says_which(bench: pytest.Pytester, value: str, warm: None) -> None:
    result = run_matrix(bench, "--gitbench-rounds", value)
    assert f"The option rounds is {value!r}" in result.stdout.str() + result.stderr.str()


def test_the_fixture_takes_rounds(bench: pytest.Pytester, warm: None) -> None:
    bench.makepyfile(
        test_mine="""
        def test_rounds(gitbench_evaluate):
            report = gitbench_evaluate("none", rounds=[1, 2], victims=4)
            assert [result.case.rounds for result in report.results] == [1, 2]
            assert [cell.name.split("/")[-3] for cell in report.cells][1] == "rounds-2"
            assert [result.case.rounds for result in gitbench_evaluate("none", rounds=2, victims=4).results] == [2]
        """
    )
    bench.runpytest("-q", "test_mine.py").assert_outcomes(passed=1)
