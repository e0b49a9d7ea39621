"""Intervals, verdicts and options: the gate fails closed, and every wrong option is answered."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench.core import figures
from gitbench.core.errors import ConfigError, SpecError
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.threat import KNOWLEDGE, THREATS, knowledge_of
from gitbench.judge.statistics import FEW, Interval, interval, student
from gitbench.judge.verdict import DEFAULT_GATE, Judgement, judge, judge_results, pooled, side
from gitbench.run.bench import case_of
from gitbench.run.config import PROFILES, Config, make_cells, make_config, parse_thresholds
from gitbench.store.result import Environment, Measure, Result

GATE = {"psnr_gain": 3.0}
LEAKS, HOLDS, STRADDLES = Interval(9.0, 8.0, 10.0), Interval(0.5, 0.0, 1.0), Interval(3.0, 2.0, 4.0)
UNKNOWN = Interval(None, None, None)
finite = st.floats(-100, 100)

# Intervals


@pytest.mark.parametrize("kind", ["normal", "exponential"])
def test_the_interval_covers_the_mean_at_sixteen_victims(kind: str) -> None:
    random = np.random.default_rng(0)
    draw = random.normal if kind == "normal" else random.exponential
    mean = 0.0 if kind == "normal" else 1.0
    found = [interval([draw(size=16).tolist()]) for _ in range(400)]
    covered = sum(one.low <= mean <= one.high for one in found) / len(found)
    assert 0.90 <= covered <= 0.99


def test_the_interval_covers_the_mean_over_several_seeds() -> None:
    random = np.random.default_rng(1)
    found = [interval(random.normal(size=(3, 8)).tolist()) for _ in range(200)]
    assert sum(one.low <= 0 <= one.high for one in found) / len(found) >= 0.90


def test_the_same_values_give_the_same_interval() -> None:
    values = [1.0, 2.0, 4.0, 8.0, 16.0]
    np.random.seed(1)  # noqa: NPY002 - whatever others do to the global state
    first = interval([values])
    np.random.seed(2)  # noqa: NPY002
    assert interval([values]) == first
    assert first.mean == pytest.approx(6.2)
    assert interval([values, values]) == interval([values, values])


@pytest.mark.parametrize(
    "groups",
    [
        [],
        [[]],
        [[1.0], []],
        [[None]],
        [[1.0, None, 2.0]],
        [[1.0, 2.0], [3.0, None]],
        [[1.0, math.nan]],
        [[math.inf, 1.0]],
        [[-math.inf, 1.0]],
    ],
)
def test_a_missing_value_leaves_no_number(groups: list[list[float | None]]) -> None:
    assert interval(groups) == UNKNOWN


def test_one_value_has_a_mean_but_no_interval() -> None:
    assert interval([[2.5]]) == Interval(2.5, None, None)
    assert interval([[2.5], [3.5]]).low is not None


def test_equal_values_have_an_interval_without_width() -> None:
    assert interval([[2.5] * 4]) == Interval(2.5, 2.5, 2.5)
    assert interval([[2.5] * 4, [2.5] * 2]) == Interval(2.5, 2.5, 2.5)


def test_more_victims_narrow_the_interval_and_differing_seeds_widen_it() -> None:
    random = np.random.default_rng(0)
    few, many = (interval([random.normal(size=size).tolist()]) for size in (8, 200))
    assert many.high - many.low < (few.high - few.low) / 2
    values = random.normal(size=(3, 30)) * 0.1
    alike, apart = interval(values.tolist()), interval((values + np.array([[-5.0], [0.0], [5.0]])).tolist())
    assert apart.high - apart.low > 10 * (alike.high - alike.low)


def test_seeds_with_unlike_numbers_of_victims_weigh_by_victim() -> None:
    found = interval([[0.0] * 9, [1.0]])
    assert found.mean == pytest.approx(0.1)
    assert found.low <= 0.1 <= found.high


@given(groups=st.lists(st.lists(finite, min_size=1, max_size=12), min_size=1, max_size=3))
def test_the_interval_encloses_the_mean_and_that_of_one_seed_lies_within_the_values(groups: list[list[float]]) -> None:
    found, values = interval(groups), [value for group in groups for value in group]
    assert found.mean == pytest.approx(float(np.mean(values)), abs=1e-9)
    if len(values) > 1:
        assert found.low <= found.mean <= found.high
    if len(values) >= FEW and len(groups) == 1:  # seeds that differ say more of other seeds than their values do
        assert min(values) - 1e-9 <= found.low <= found.high <= max(values) + 1e-9


@given(values=st.lists(finite, min_size=2, max_size=FEW - 1))
def test_a_few_victims_have_at_least_students_interval(values: list[float]) -> None:
    found, exact = interval([values]), student([values])
    assert found.low <= exact.low + 1e-9 * max(map(abs, values))
    assert found.high >= exact.high - 1e-9 * max(map(abs, values))


# Verdicts


def one(found: Interval, control: Interval | None, *, metric: str = "psnr_gain", threshold: float = 3.0, victims: int = 16) -> Judgement:
    return judge({metric: found}, gate={metric: threshold}, control=None if control is None else {metric: control}, victims=victims)


@pytest.mark.parametrize(
    ("found", "control", "verdict", "control_failed", "reason"),
    [
        (LEAKS, LEAKS, "leaks", False, r"psnr_gain 9\.00 \[8\.00, 10\.00\] is past the threshold of 3 dB"),
        (HOLDS, LEAKS, "holds", False, r"psnr_gain 0\.50 \[0\.00, 1\.00\] stays under 3 dB"),
        (STRADDLES, LEAKS, "inconclusive", False, r"undecided at 16 victims: raise --gitbench-victims .*straddles 3 dB"),
        # An attack that fails its control acquits nobody, but what leaks, leaks.
        (
            HOLDS,
            HOLDS,
            "inconclusive",
            True,
            r"the control does not leak \(psnr_gain 0\.50 undefended, 3 dB needed\): this attack proves nothing",
        ),
        (HOLDS, STRADDLES, "inconclusive", True, r"the control does not leak"),
        (STRADDLES, HOLDS, "inconclusive", True, r"the control does not leak"),
        (LEAKS, HOLDS, "leaks", False, r"past the threshold"),
        (HOLDS, UNKNOWN, "inconclusive", True, r"the control does not leak \(psnr_gain unknown undefended"),
        (HOLDS, Interval(9.0, None, None), "inconclusive", True, r"the control does not leak \(psnr_gain 9\.00 undefended"),
        # The control itself.
        (LEAKS, None, "leaks", False, r"past the threshold"),
        (HOLDS, None, "holds", True, r"undefended, yet psnr_gain 0\.50 .* stays under 3 dB: no control here"),
        (STRADDLES, None, "inconclusive", True, r"undecided at 16 victims: raise --gitbench-victims"),
        # What could not be measured.
        (UNKNOWN, LEAKS, "inconclusive", False, r"psnr_gain could not be measured"),
        (UNKNOWN, None, "inconclusive", False, r"psnr_gain could not be measured"),
        (Interval(0.5, None, None), LEAKS, "inconclusive", False, r"raise --gitbench-victims .*psnr_gain 0\.50 \[unknown\]"),
        (Interval(99.0, None, None), LEAKS, "inconclusive", False, r"raise --gitbench-victims"),
        (Interval(math.nan, math.nan, math.nan), LEAKS, "inconclusive", False, ""),
        # The threshold itself leaks.
        (Interval(3.0, 3.0, 3.0), LEAKS, "leaks", False, ""),
        (Interval(3.5, 3.0, 4.0), LEAKS, "leaks", False, ""),
        (Interval(2.5, 2.0, 3.0), LEAKS, "inconclusive", False, ""),
        (Interval(2.5, 2.0, 2.999), LEAKS, "holds", False, ""),
    ],
)
def test_the_verdict_table(found: Interval, control: Interval | None, verdict: str, control_failed: bool, reason: str) -> None:
    judgement = one(found, control)
    assert (judgement.verdict, judgement.control_failed) == (verdict, control_failed)
    assert re.search(reason, judgement.reason), judgement.reason


@pytest.mark.parametrize("metric", [name for name, info in known_metrics().items() if not info.higher_leaks])
def test_small_distances_leak(metric: str) -> None:
    near, far = Interval(0.05, 0.01, 0.09), Interval(0.5, 0.4, 0.6)
    assert side(metric, near, 0.1) == "leaks"
    assert side(metric, far, 0.1) == "holds"
    assert side(metric, Interval(0.1, 0.05, 0.15), 0.1) == "inconclusive"
    assert side(metric, Interval(0.1, 0.1, 0.1), 0.1) == "leaks"
    assert one(far, near, metric=metric, threshold=0.1).verdict == "holds"
    assert one(near, near, metric=metric, threshold=0.1).verdict == "leaks"
    assert one(far, far, metric=metric, threshold=0.1).control_failed


@pytest.mark.parametrize("metric", [name for name, info in known_metrics().items() if info.higher_leaks])
def test_large_similarities_leak(metric: str) -> None:
    assert side(metric, Interval(0.9, 0.8, 0.95), 0.5) == "leaks"
    assert side(metric, Interval(0.1, 0.0, 0.2), 0.5) == "holds"


def test_mse_and_lpips_are_distances() -> None:
    assert {name for name, info in known_metrics().items() if not info.higher_leaks} == {"mse", "lpips"}
    assert [figures.arrow(known_metrics()[name]) for name in ("psnr", "mse")] == ["↑", "↓"]
    assert DEFAULT_GATE == GATE


@pytest.mark.parametrize(
    ("psnr", "lpips", "verdict"),
    [
        ("holds", "holds", "holds"),
        ("holds", "leaks", "leaks"),
        ("leaks", "holds", "leaks"),
        ("straddles", "leaks", "leaks"),
        ("holds", "straddles", "inconclusive"),
        ("straddles", "holds", "inconclusive"),
        ("missing", "holds", "inconclusive"),
        ("holds", "missing", "inconclusive"),
        ("missing", "leaks", "leaks"),
    ],
)
def test_several_gates_leak_when_one_does_and_hold_when_all_do(psnr: str, lpips: str, verdict: str) -> None:
    far = {"holds": Interval(0.5, 0.4, 0.6), "leaks": Interval(0.05, 0.01, 0.09), "straddles": Interval(0.1, 0.05, 0.2)}
    intervals: dict[str, Interval] = {}
    if psnr != "missing":
        intervals["psnr_gain"] = {"holds": HOLDS, "leaks": LEAKS, "straddles": STRADDLES}[psnr]
    if lpips != "missing":
        intervals["lpips"] = far[lpips]
    judgement = judge(intervals, gate={"psnr_gain": 3.0, "lpips": 0.1}, control={"psnr_gain": LEAKS, "lpips": far["leaks"]}, victims=16)
    assert judgement.verdict == verdict
    if verdict == "holds":
        assert "psnr_gain" in judgement.reason
        assert "lpips" in judgement.reason


def test_every_gate_needs_a_control_that_leaks() -> None:
    holds = {"psnr_gain": HOLDS, "ssim": Interval(0.1, 0.0, 0.2)}
    judgement = judge(holds, gate={"psnr_gain": 3.0, "ssim": 0.5}, control={"psnr_gain": LEAKS}, victims=16)
    assert (judgement.verdict, judgement.control_failed) == ("inconclusive", True)


def test_without_a_gate_nothing_is_judged() -> None:
    assert judge({"psnr_gain": HOLDS}, gate={}, control={"psnr_gain": LEAKS}, victims=16).verdict == "inconclusive"


possible = st.one_of(finite, st.none(), st.sampled_from([math.nan, math.inf, -math.inf]))


@given(
    groups=st.lists(st.lists(possible, max_size=5), max_size=3),
    spoil=st.sampled_from([None, math.nan, math.inf, -math.inf]),
    metric=st.sampled_from(sorted(known_metrics())),
    threshold=finite,
    control=st.sampled_from([LEAKS, HOLDS, UNKNOWN, Interval(-1e9, -1e9, -1e9), Interval(1e9, 1e9, 1e9)]) | st.none(),
)
def test_a_missing_value_never_holds(
    groups: list[list[float | None]], spoil: float | None, metric: str, threshold: float, control: Interval | None
) -> None:
    assert one(interval([*groups, [spoil, 1.0]]), control, metric=metric, threshold=threshold).verdict == "inconclusive"
    if any(value is None or not math.isfinite(value) for group in groups for value in group) or not all(groups) or not groups:
        assert one(interval(groups), control, metric=metric, threshold=threshold).verdict == "inconclusive"


@given(low=finite, width=st.floats(0, 50), threshold=finite, metric=st.sampled_from(sorted(known_metrics())))
def test_holds_is_said_only_of_whole_intervals_beside_a_leaking_control(low: float, width: float, threshold: float, metric: str) -> None:
    found = Interval(low + width / 2, low, low + width)
    for control in (LEAKS, HOLDS, UNKNOWN):
        if one(found, control, metric=metric, threshold=threshold).verdict == "holds":
            safe = found.high < threshold if known_metrics()[metric].higher_leaks else found.low > threshold
            assert safe
            assert side(metric, control, threshold) == "leaks"


# Verdicts of results


def result(values: tuple[float | None, ...], *, defense: str = "pruning(rate=0.9)", seed: int = 0, error: str | None = None) -> Result:
    case = case_of(
        attack="ig",
        defense=defense,
        model="lenet",
        dataset="photos",
        threat="server",
        profile="quick",
        victims=len(values),
        batch_size=1,
        seed=seed,
    )
    bounds = interval([values])
    return Result(
        case=case,
        case_id=case.case_id,
        status="error" if error else "done",
        error=error,
        verdict=None,
        verdict_reason="",
        metrics={} if error else {"psnr_gain": Measure(mean=bounds.mean, low=bounds.low, high=bounds.high, values=values)},
        environment=Environment(gitbench="0", torch="2", torchvision="0", python="3", platform="Linux", device="cpu", threads=2),
        finished_at="2025-01-01T00:00:00+00:00",
    )


def test_seeds_are_judged_together() -> None:
    weak, strong = (0.0, 0.5, 1.0, 0.5), (9.0, 8.0, 9.5, 8.5)
    control = [result(strong, defense="none", seed=seed) for seed in range(2)]
    assert judge_results([result(weak), result(weak, seed=1)], control, gate=GATE).verdict == "holds"
    judgement = judge_results([result(weak), result(strong, seed=1)], control, gate=GATE)
    assert judgement.verdict == "inconclusive"
    assert "at 8 victims" in judgement.reason
    assert pooled([result(weak), result(weak, seed=1)], GATE)["psnr_gain"].mean == pytest.approx(0.5)
    assert judge_results([result(strong)], control[:1], gate=GATE).verdict == "leaks"
    assert judge_results([result(weak)], [], gate=GATE).control_failed  # a control that was never run
    assert judge_results(control, None, gate=GATE).verdict == "leaks"


def test_errors_and_missing_values_never_hold() -> None:
    control, weak = [result((9.0, 8.0), defense="none")], (0.0, 0.1)
    for found, controls, reason in (
        ([result(weak), result(weak, seed=1, error="boom")], control, "this cell ended in an error: boom"),
        ([result(weak)], [result(weak, defense="none", error="boom")], "the control ended in an error: boom"),
        ([result((0.0, None))], control, "could not be measured"),
        ([result(weak), result((None, None), seed=1)], control, "could not be measured"),
        ([], control, "could not be measured"),
        ([result(weak)], [result((9.0, None), defense="none")], "the control does not leak"),
    ):
        judgement = judge_results(found, controls, gate=GATE)
        assert judgement.verdict == "inconclusive"
        assert reason in judgement.reason
    assert judge_results([result(weak)], control, gate={"ssim": 0.5}).verdict == "inconclusive"  # a metric that nobody measured


# Threat models


def test_threat_models_grant_what_they_say() -> None:
    assert knowledge_of("server") == {"architecture", "parameters", "public", "defense"}
    assert knowledge_of("eavesdropper") == {"architecture", "public", "defense"}
    assert knowledge_of("upper-bound") == KNOWLEDGE == {"architecture", "parameters", "labels", "public", "batchnorm_statistics", "defense"}
    assert set(THREATS) == {"server", "eavesdropper", "upper-bound"}
    with pytest.raises(
        ConfigError, match=r"Unknown threat model 'sever'\. Did you mean 'server'\? Valid: eavesdropper, server, upper-bound"
    ):
        knowledge_of("sever")


# Options


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"victms": 3}, r"\[tool.gitbench\] has no option 'victms'\. Did you mean 'victims'\? Valid: attack, baseline"),
        ({"batch-size": 3}, r"has no option 'batch-size'\. Did you mean 'batch_size'"),
        ({"profile": "quik"}, r"Unknown profile 'quik'\. Did you mean 'quick'\? Valid: paper, quick, standard"),
        ({"profile": 3}, r"Unknown profile 3"),
        ({"threat": "upper_bound"}, r"Unknown threat model 'upper_bound'\. Did you mean 'upper-bound'"),
        ({"threshold": ["psrn=3"]}, r"Unknown metric 'psrn' in a threshold\. Did you mean 'psnr'"),
        ({"threshold": {"psnr": "high"}}, r"Expected a number as the threshold of psnr, got 'high'"),
        ({"threshold": ["psnr"]}, r"Expected a threshold METRIC=VALUE, got 'psnr', for example psnr_gain=3"),
        ({"threshold": "psnr="}, r"Expected a number as the threshold of psnr, got ''"),
        ({"threshold": {"psnr": math.nan}}, r"Expected a finite number as the threshold of psnr, got 'nan'"),
        ({"threshold": "psnr=1e999"}, r"Expected a finite number as the threshold of psnr, got '1e999'"),
        ({"threshold": {"psnr": True}}, r"Expected a number as the threshold of psnr, got 'True'"),
        ({"threshold": []}, r"Expected at least one threshold METRIC=VALUE, got none: nothing would be judged"),
        ({"threshold": {}}, r"Expected at least one threshold"),
        ({"threshold": 3}, r"Expected thresholds METRIC=VALUE, got 3"),
        ({"victims": 0}, r"The option victims is 0: .*greater than 0"),
        ({"victims": "many"}, r"The option victims is 'many': .*valid integer"),
        ({"victims": 1.5}, r"The option victims is 1\.5"),
        ({"batch_size": -1}, r"The option batch-size is -1"),
        ({"seeds": None}, r"The option seeds is None"),
        ({"device": "tpu"}, r"The option device is 'tpu': .*'auto', 'cpu' or 'cuda'"),
        ({"tolerance": math.nan}, r"The option tolerance is nan: .*finite"),
        ({"attack": []}, r"The option attack is \[\]: .*at least 1 item"),
        ({"attack": 5}, r"The option attack is 5"),
        ({"defense": ["none", 5]}, r"The option defense\.1 is 5: .*valid string"),
        ({"known_leaks": "*"}, r"The option known-leaks is '\*'"),
        ({"fresh": "maybe"}, r"The option fresh is 'maybe'"),
        ({"results": 3}, r"The option results is 3"),
        ({"threads": 0}, r"The option threads is 0"),
    ],
)
def test_bad_options_are_named(settings: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config(settings, {})


@pytest.mark.parametrize("settings", [{"profile": ["quick"]}, {"threat": ["server"]}, {"threat": {}}, {5: 3}])
def test_options_of_the_wrong_kind_are_named(settings: Mapping[str, object]) -> None:
    with pytest.raises(ConfigError):
        make_config(settings, {})


def test_the_command_line_wins_over_the_file_and_the_file_over_the_profile() -> None:
    config = make_config({"victims": 5, "seeds": 2, "profile": "standard"}, {"victims": 7, "seeds": None, "attack": None})
    assert (config.victims, config.seeds, config.profile) == (7, 2, "standard")
    assert config.attack == PROFILES["standard"].attack
    assert make_config({"profile": "standard"}, {"profile": "paper"}).victims == 100
    assert make_config({}, {}).profile == "quick"
    assert make_config({}, {"fresh": False, "victims": "3"}).victims == 3
    assert make_config({"fresh": True}, {"fresh": None}).fresh
    assert make_config({"attack": "ig"}, {}).attack == ("ig",)
    assert make_config({"attack": ["ig"]}, {"attack": ["ridge", "dlg"]}).attack == ("ridge", "dlg")


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_is_valid(profile: str) -> None:
    config = make_config({"profile": profile}, {})
    for field in ("dataset", "model", "defense", "attack", "known_leaks", "victims", "batch_size", "seeds", "threshold"):
        assert getattr(config, field) == getattr(PROFILES[profile], field)
    assert config.threshold == {"psnr_gain": 3.0}
    assert config.results == Path(".gitbench")
    assert config.leaderboard == Path("leaderboards")
    assert config.tolerance == 0.5
    # Every pattern of the profile meets a cell: one that is misspelt would excuse nothing.
    cells = make_cells(make_config({"profile": profile}, {"model": ["lenet"], "attack": ["ig"], "seeds": 1}))
    assert [cell.name.split("/")[2] for cell in cells] == list(config.defense)
    for pattern in config.known_leaks:
        assert any(fnmatch.fnmatchcase(cell.name, pattern) for cell in cells if cell.known_leak), pattern


def test_profiles_do_not_share_their_thresholds() -> None:
    assert len({id(profile.threshold) for profile in PROFILES.values()}) == len(PROFILES)
    make_config({}, {"threshold": ["ssim=0.5"]})
    assert PROFILES["quick"].threshold == DEFAULT_GATE == GATE


def test_thresholds_replace_the_gate() -> None:
    assert make_config({"threshold": {"ssim": 0.5}}, {}).threshold == {"ssim": 0.5}
    assert make_config({"threshold": {"ssim": 0.5}}, {"threshold": ["psnr=20", " mse = 1e-2 "]}).threshold == {"psnr": 20.0, "mse": 0.01}
    assert parse_thresholds("psnr_gain=-1") == {"psnr_gain": -1.0}
    assert parse_thresholds(("psnr=1", "psnr=2")) == {"psnr": 2.0}


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_leaderboard_none_writes_nothing(word: str) -> None:
    assert make_config({"leaderboard": word}, {}).leaderboard is None
    assert make_config({"leaderboard": word}, {"leaderboard": "boards"}).leaderboard == Path("boards")


@pytest.mark.parametrize("where", ["settings", "options"])
def test_a_users_defenses_are_not_known_to_leak(where: str) -> None:
    # Or a user's own pruning(rate=0.5) would leak in green.
    axis = {"defense": ["pruning(rate=0.5)"]}
    config = make_config(axis, {}) if where == "settings" else make_config({}, axis)
    assert config.known_leaks == ()
    assert not any(cell.known_leak for cell in make_cells(config))
    assert make_config({}, {"attack": ["ig"]}).known_leaks == PROFILES["quick"].known_leaks
    own = make_config({**axis, "known_leaks": ["*/pruning*/*"]}, {})
    assert all(cell.known_leak for cell in make_cells(own))


def test_cells_come_controls_first_and_by_name() -> None:
    config = make_config({}, {"defense": ["pruning(rate=0.5)", "none"], "attack": ["ig"], "model": ["lenet"], "victims": 2, "seeds": 2})
    cells = make_cells(config)
    assert [cell.name for cell in cells] == ["photos/lenet/none/ig", "photos/lenet/pruning(rate=0.5)/ig"]
    assert [cell.is_control for cell in cells] == [True, False]
    assert [case.seed for case in cells[0].cases] == [0, 1]
    assert cells[0].group == ("photos", "lenet")
    assert cells[1].cases[0].control() == cells[0].cases[0]
    assert config.setting == {"threat": "server", "profile": "quick", "victims": 2, "batch_size": 1, "seeds": 2}


def test_a_control_is_never_known_to_leak() -> None:
    cells = make_cells(make_config({"known_leaks": ["*"]}, {"attack": ["ig"], "model": ["lenet"]}))
    assert [cell.known_leak for cell in cells] == [not cell.is_control for cell in cells]


def test_entries_given_twice_are_one_cell_and_unlike_ones_need_unlike_names(tmp_path: Path) -> None:
    base: dict[str, object] = {"attack": ["ig"], "model": ["lenet"]}
    assert len(make_cells(make_config({}, {**base, "defense": ["none", "pruning(rate=0.5)", "pruning( rate = .5 )"]}))) == 2
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.py").write_text("from gitbench import Defense\nclass Mine(Defense): ...\n")
    with pytest.raises(ConfigError, match=r"Two entries of the defense axis have one name: .*mine.py:Mine.*Rename"):
        make_cells(make_config({}, {**base, "defense": [f"{tmp_path / folder / 'mine.py'}:Mine" for folder in ("a", "b")]}))


def test_cells_name_a_spec_that_is_wrong() -> None:
    with pytest.raises(SpecError, match=r"Unknown attack 'igg'\. Did you mean 'ig'"):
        make_cells(make_config({}, {"attack": ["igg"]}))


def test_config_is_frozen_and_knows_its_fields() -> None:
    with pytest.raises(ConfigError, match=r"The option nope is 1: Extra inputs are not permitted"):
        make_config({}, {"nope": 1})
    assert isinstance(make_config({}, {}), Config)


def test_an_undecided_metric_is_not_hidden_by_another_whose_control_failed() -> None:
    intervals = {"ssim": Interval(0.5, 0.4, 0.6), "psnr_gain": Interval(3.0, 1.0, 5.0)}
    control = {"ssim": Interval(0.6, 0.5, 0.7), "psnr_gain": Interval(20.0, 19.0, 21.0)}
    for gate in ({"ssim": 0.9, "psnr_gain": 3.0}, {"psnr_gain": 3.0, "ssim": 0.9}):
        found = judge(intervals, gate=gate, control=control, victims=16)
        assert (found.word, found.control_failed) == ("undecided", False)
