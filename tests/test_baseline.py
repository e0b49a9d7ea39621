"""Baselines and comparisons: what got worse is seen, re-drawn noise is not, and nothing is passed over in silence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gitbench import cli
from gitbench.core.errors import ConfigError
from gitbench.judge.statistics import student
from gitbench.publish.baseline import Cells, Record, dump, key_of, load_baseline, record_of
from gitbench.publish.comment import markdown
from gitbench.publish.comparison import Change, compare, compare_cell
from gitbench.run.bench import case_of
from gitbench.store.folder import Store
from gitbench.store.result import Environment, Measure, Result

STORED: dict[str, np.ndarray] = {
    name: np.array(values) for name, values in json.loads((Path(__file__).parent / "reseeded.json").read_text())["cells"].items()
}
# One drifted model serves all victims of a seed: no number of victims averages that draw out, only seeds do.
SHARED_DRAW = [name for name in STORED if name.startswith("parameter_drift") and "same local model" not in name]
OWN_DRAWS = [name for name in STORED if name not in SHARED_DRAW]
VICTIMS, RUNS = 32, 1000

ENVIRONMENT = Environment(
    gitbench="0.1.0", torch="2.7", torchvision="0.22", python="3.12", platform="Linux x86_64", device="cpu", threads=1
)


def entry(values: Mapping[str, list[float | None]] | list[float | None], *, seed: int = 0, **changes: object) -> Record:
    found = {"psnr_gain": values} if isinstance(values, list) else dict(values)
    count = len(next(iter(found.values())))
    fields: dict[str, object] = {
        "dataset": "photos", "model": "lenet", "defense": "pruning(rate=0.5)", "attack": "ridge", "threat": "server", "profile": "quick",
        "batch_size": 1, "seed": seed, "victims": count, "verdict": "leaks", "reason": "because", "gate": {"psnr_gain": 3.0},
        "environment": ENVIRONMENT, "code": {"defense": "aa", "attack": "bb"}, "settings": {"limit": "2048"}, "values": found,
        "blind": [float(index % 7) + 10 for index in range(count)],
    }  # fmt: skip
    return Record.model_validate({**fields, **changes})


def cells(*entries: Record) -> Cells:
    found: dict = {}
    for one in entries:
        found.setdefault(one.key, {})[one.seed] = one
    return found


def change(before: list[Record], after: list[Record], **options: object) -> Change:
    then, now = ({one.seed: one for one in run} for run in (before, after))
    return compare_cell(before[0].key, then, now, metric="psnr_gain", **options)


# Both error rates, on stored values


def drawn(name: str, random: np.random.Generator, *, seeds: int = 1) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Two runs of the same victims, whose noise was drawn independently; every seed has victims of its own."""
    values = STORED[name]
    order = random.permutation(len(values))
    size = VICTIMS // seeds
    before, after = [], []
    for seed in range(seeds):
        victims = order[seed * size : (seed + 1) * size]
        first, second = random.choice(values.shape[1], 2, replace=False)
        before.append(values[victims, first])
        after.append(values[victims, second])
    return before, after


EFFECTS = {
    "none": lambda random, shape: 0,
    "+1 dB on every victim": lambda random, shape: 1,
    "+1 dB on average, skewed": lambda random, shape: random.exponential(1, shape),
    "+2 dB on half of the victims": lambda random, shape: 2 * (random.random(shape) < 0.5),
}


def alarms(name: str, effect: str, *, seeds: int = 1, runs: int = RUNS) -> np.ndarray:
    """In which of many runs the gate said that the cell got worse."""
    random = np.random.default_rng(0)
    local = [[1.0, 0.0], [0.0, 1.0]] if name in SHARED_DRAW else [[], []]
    found = np.zeros(runs, dtype=bool)
    for run in range(runs):
        before, after = drawn(name, random, seeds=seeds)
        after = [values + EFFECTS[effect](random, values.shape) for values in after]
        sides = [
            [entry(values.tolist(), seed=seed, local_model=model) for seed, values in enumerate(side)]
            for side, model in zip((before, after), local, strict=True)
        ]
        found[run] = change(*sides).kind == "regressed"
    return found


def test_reseeding_raises_the_alarm_in_less_than_one_run_of_twenty() -> None:
    found = np.stack([alarms(name, "none") for name in OWN_DRAWS])
    assert (found.mean(axis=1) <= 0.05).all(), dict(zip(OWN_DRAWS, found.mean(axis=1), strict=True))
    assert found.any(axis=0).mean() <= 0.05  # of a run with all these cells


def test_one_db_on_one_attack_is_caught_at_32_victims() -> None:
    power = {name: alarms(name, "+1 dB on every victim").mean() for name in OWN_DRAWS}
    assert min(power.values()) >= 0.99, power


@pytest.mark.parametrize("effect", ["+1 dB on average, skewed", "+2 dB on half of the victims"])
def test_one_db_that_victims_do_not_share_alike_is_caught(effect: str) -> None:
    power = {name: alarms(name, effect).mean() for name in OWN_DRAWS}
    assert min(power.values()) >= 0.80, power  # none/gias; all others:
    assert sorted(power.values())[1] >= 0.90, power


def test_a_draw_that_all_victims_share_is_no_regression() -> None:
    for seeds in (1, 2, 3):
        found = {name: alarms(name, "none", seeds=seeds).mean() for name in SHARED_DRAW}
        assert max(found.values()) <= 0.05, (seeds, found)


def test_another_local_model_is_judged_more_leniently_and_less_so_with_seeds() -> None:
    values = [1.0, 2.0, 3.0, 4.5]
    here, rounded, elsewhere = ([1.0, -2.0, 0.5], [1.001, -2.0, 0.5], [-1.0, 1.0, 2.0])

    def kind(shift: float, *, now: list[float], seeds: int = 1) -> Change:
        return change(
            [entry(values, seed=seed, local_model=here) for seed in range(seeds)],
            [entry([value + shift for value in values], seed=seed, local_model=now) for seed in range(seeds)],
        )

    assert kind(1.0, now=rounded).kind == "regressed"
    assert kind(1.9, now=elsewhere).kind == "unchanged"
    assert "the clients' own model was drawn anew" in kind(1.9, now=elsewhere).reason
    assert kind(2.1, now=elsewhere).kind == "regressed"
    assert "tolerance 2 dB; the clients' own model" in kind(2.1, now=elsewhere).reason.replace("(", "").replace(")", "")
    assert kind(1.4, now=elsewhere, seeds=3).kind == "regressed"  # 0.5 + 1.5 / sqrt(3)
    assert kind(1.3, now=elsewhere, seeds=3).kind == "unchanged"
    assert kind(1.0, now=[]).kind == "unchanged"


def test_many_victims_do_not_hide_how_seeds_differ() -> None:
    random = np.random.default_rng(0)
    covered = {}
    for seeds in (2, 3, 5):
        hits = []
        for _ in range(400):
            found = student([random.normal(random.normal(), 1, size=16).tolist() for _ in range(seeds)])
            hits.append(found.low <= 0 <= found.high)
        covered[seeds] = np.mean(hits)
    assert covered[2] >= 0.85
    assert covered[3] >= 0.90
    assert covered[5] >= 0.92


def test_the_trimmed_interval_is_yuens() -> None:
    from scipy.stats import mstats

    values = np.random.default_rng(0).standard_t(2, size=30).tolist()
    found = student([values], trim=0.2)
    assert [found.low, found.high] == pytest.approx(mstats.trimmed_mean_ci(values, limits=(0.2, 0.2)).tolist())


# One cell


def test_the_same_run_is_unchanged() -> None:
    found = change([entry([1.0, 5.0, 3.0])], [entry([1.0, 5.0, 3.0])])
    assert (found.kind, found.pairs, found.mean.mean) == ("unchanged", 3, 0.0)


def test_a_tolerance_is_accepted_and_can_be_set() -> None:
    before, after = [entry([1.0, 2.0, 3.0, 4.0])], [entry([1.41, 2.4, 3.4, 4.4])]
    assert change(before, after).kind == "unchanged"
    found = change(before, after, tolerance={"psnr_gain": 0.2})
    assert found.kind == "regressed"
    assert found.reason == "psnr_gain leaks 0.40 dB [0.39, 0.41] more than the baseline, on 4 pairs of one seed (tolerance 0.2 dB)"


def test_direction_follows_the_metric() -> None:
    lpips = ([0.5, 0.6, 0.7, 0.8], [0.4, 0.5, 0.61, 0.7])
    before, after = (entry({"lpips": values}, gate={"lpips": 0.3}) for values in lpips)
    assert compare_cell(before.key, {0: before}, {0: after}, metric="lpips").kind == "regressed"
    assert compare_cell(before.key, {0: after}, {0: before}, metric="lpips").kind == "improved"


def test_victims_of_a_smaller_run_are_paired_with_the_first_of_a_larger() -> None:
    long = [float(index) for index in range(16)]
    found = change([entry(long)], [entry([value + 2 for value in long[:8]])])
    assert (found.kind, found.pairs) == ("regressed", 8)
    assert found.mean.mean == pytest.approx(2)


def test_only_seeds_of_both_runs_are_paired() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    found = change([entry(values, seed=seed) for seed in (0, 1)], [entry(values, seed=seed) for seed in (1, 2)])
    assert (found.kind, found.seeds, found.pairs) == ("unchanged", (1,), 4)
    assert "no seed in common: 0 before, 2 now" in change([entry(values)], [entry(values, seed=2)]).reason


def test_other_images_are_not_paired() -> None:
    values = [1.0, 2.0, 3.0]
    found = change([entry(values)], [entry(values, blind=[10.0, 11.0, 19.0])])
    assert found.kind == "unpaired"
    assert found.reason == "victim 2 of seed 0 is another image: the data changed, write the baseline again"


def test_what_cannot_be_measured_any_more_is_a_regression() -> None:
    good, broken = entry([1.0, 2.0]), entry([1.0, None])
    assert change([good], [broken]).kind == "regressed"
    assert change([broken], [good]).kind == "unpaired"
    error = good.model_copy(update={"verdict": "error", "reason": "RuntimeError: my bad", "values": {}, "blind": ()})
    assert change([good], [error]).kind == "regressed"
    assert "error in this run: RuntimeError: my bad" in change([good], [error]).reason
    assert change([entry([1.0])], [entry([9.0])]).kind == "unpaired"


numbers = st.lists(st.floats(-50, 90), min_size=2, max_size=12)


@given(values=numbers, more=st.floats(0, 5), tolerance=st.floats(0, 2))
def test_leaking_less_is_never_a_regression(values: list[float], more: float, tolerance: float) -> None:
    found = change([entry(values)], [entry([value - more for value in values])], tolerance={"psnr_gain": tolerance})
    assert found.kind in ("unchanged", "improved")


@given(before=numbers, after=numbers)
def test_swapping_the_runs_swaps_the_verdict(before: list[float], after: list[float]) -> None:
    there, back = change([entry(before)], [entry(after)]), change([entry(after)], [entry(before)])
    if "regressed" in (there.kind, back.kind):
        typical = np.sign([there.mean.mean or 0, there.typical.mean or 0])
        assert {there.kind, back.kind} == {"regressed", "improved"} or typical.prod() <= 0


# The file


def result(
    values: list[float], *, attack: str = "ridge", defense: str = "pruning(rate=0.5)", seed: int = 0, when: str = "2026-01-01"
) -> Result:
    case = case_of(
        attack=attack, defense=defense, model="mlp", dataset="photos", threat="server", profile="quick", victims=len(values),
        batch_size=1, seed=seed,
    )  # fmt: skip
    psnr = [value + 13.5 for value in values]
    metrics = {name: Measure(mean=0.0, low=0.0, high=0.0, values=tuple(one)) for name, one in (("psnr_gain", values), ("psnr", psnr))}
    return Result(
        case=case, case_id=case.case_id, status="done", verdict="leaks", verdict_reason="because", gate={"psnr_gain": 3.0}, metrics=metrics,
        environment=ENVIRONMENT, settings={"limit": "2048"}, finished_at=f"{when}T00:00:00.000+00:00",
    )  # fmt: skip


def stored(folder: Path, *results: Result) -> Path:
    for one in results:
        Store(folder).save(one)
    return folder


VALUES = [1.23456789, 5.0, 9.25, 2.5, 3.125, 4.0]


def test_the_file_says_what_the_folder_says(tmp_path: Path) -> None:
    folder = stored(tmp_path / "runs", result(VALUES), result(VALUES, attack="ig"), result(VALUES, seed=1))
    assert cli.main(["baseline", str(folder), "--out", str(tmp_path / "base.json")]) == 0
    from_file, from_folder = load_baseline(tmp_path / "base.json"), load_baseline(folder)
    assert {key: sorted(seeds) for key, seeds in from_file.items()} == {key: sorted(seeds) for key, seeds in from_folder.items()}
    for key, seeds in from_file.items():
        for seed, one in seeds.items():
            whole = from_folder[key][seed]
            assert one == whole.model_copy(update={"values": {"psnr_gain": whole.values["psnr_gain"]}})
    assert sorted(map(str, from_file)) == [
        "photos/mlp/pruning(rate=0.5)/ig (server, quick)",
        "photos/mlp/pruning(rate=0.5)/ridge (server, quick)",
    ]
    assert from_file[key_of(result(VALUES).case)][0].values["psnr_gain"][0] == 1.23457
    assert all(found.kind == "unchanged" for found in compare(from_file, from_folder).changes)


def test_the_file_is_small_and_its_order_is_stable(tmp_path: Path) -> None:
    results = [result(VALUES), result(VALUES, attack="ig"), result(VALUES, seed=1)]
    first = dump(load_baseline(stored(tmp_path / "a", *results)))
    assert dump(load_baseline(stored(tmp_path / "b", *reversed(results)))) == first
    changed = dump(load_baseline(stored(tmp_path / "c", *results[:2], result([*VALUES[:5], 4.5], seed=1))))
    differing = [(a, b) for a, b in zip(first.splitlines(), changed.splitlines(), strict=True) if a != b]
    assert len(differing) == 1
    assert "psnr_gain" in differing[0][0]
    assert json.loads(first)["schema"] == 1
    assert max(map(len, first.splitlines())) < 400


def test_of_several_measurements_the_latest_counts(tmp_path: Path) -> None:
    old, new = result(VALUES[:4], when="2026-01-01"), result(VALUES, when="2026-01-02")
    (found,) = load_baseline(stored(tmp_path, old, new)).values()
    assert found[0].victims == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as gitbench results: Expecting value"),
        ("[]", "holds no finished result"),
        ('{"kind": "other"}', "expected a results folder, or what gitbench baseline wrote"),
        ('{"kind": "gitbench baseline", "schema": 99}', "it has schema 99, and this gitbench reads up to 1: upgrade gitbench"),
        ('{"kind": "gitbench baseline", "schema": 1}', "environments: Field required"),
        (
            '{"kind": "gitbench baseline", "schema": 1, "environments": [], "cases": [{"environment": 0}]}',
            "number of an environment, got 0",
        ),
        ('{"kind": "gitbench baseline", "schema": 1, "environments": [], "cases": []}', "holds no finished result"),
        ("[" * 100_000, "cannot be read"),
        ('{"kind": "gitbench baseline", "schema": 1, "environments": [], "cases": [NaN]}', "cannot be read"),
    ],
)
def test_a_file_that_is_no_baseline_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    path = tmp_path / "base.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r".") as found:
        load_baseline(path)
    assert message in str(found.value)
    assert cli.main(["compare", str(path), str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_values_of_the_wrong_number_are_refused(tmp_path: Path) -> None:
    good = dump(load_baseline(stored(tmp_path / "runs", result(VALUES))))
    path = tmp_path / "base.json"
    path.write_text(good.replace('"victims": 6', '"victims": 7'))
    with pytest.raises(ConfigError, match="6 values for 7 victims"):
        load_baseline(path)
    path.write_text(good.replace("9.25", "NaN"))
    with pytest.raises(ConfigError, match="finite"):
        load_baseline(path)


# The comment


def test_the_comment_of_a_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = stored(tmp_path / "a", result(VALUES), result(VALUES, attack="ig"), result(VALUES, attack="dlg"))
    after = stored(tmp_path / "b", result([value + 2 for value in VALUES]), result(VALUES, attack="ig"), result(VALUES, attack="lti"))
    assert cli.main(["compare", str(before), str(after)]) == 1
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert lines[0] == "### gitbench: ❌ **1 of 2 cells leaks more than before**; 1 missing, 1 new"
    assert "| ❌ `photos/mlp/pruning(rate=0.5)/ridge` | +2.00 [2.00, 2.00] dB | +2.00 [2.00, 2.00] dB | 6 | leaks |" in lines
    assert "- `photos/mlp/pruning(rate=0.5)/dlg (server, quick)`" in lines[lines.index("**Missing now:**") :]
    assert "- `photos/mlp/pruning(rate=0.5)/lti (server, quick)`" in lines[lines.index("**New, with nothing to compare with:**") :]
    assert lines.index("<details><summary>1 unchanged</summary>") < next(i for i, line in enumerate(lines) if "/ig`" in line)
    assert cli.main(["compare", str(before), str(after), "--tolerance", "2.5"]) == 0
    assert capsys.readouterr().out.startswith("### gitbench: ✅ **No cell leaks more than before** (2 compared)")


def test_the_comment_of_equal_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [stored(tmp_path / name, result(VALUES)) for name in ("before", "after")]
    assert cli.main(["compare", *map(str, folders)]) == 0
    assert capsys.readouterr().out.startswith("### gitbench: ✅ **No cell leaks more than before** (1 compared)\n\nChanges are paired")


def test_a_run_is_not_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = stored(tmp_path, result(VALUES))
    assert cli.main(["compare", str(folder), f"{folder}/."]) == 2
    assert "Expected two runs to compare, got" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_accepts_nothing_or_all_is_a_usage_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tolerance: str
) -> None:
    folder = stored(tmp_path, result(VALUES))
    assert cli.main(["compare", str(folder), str(folder), f"--tolerance={tolerance}"]) == 2
    assert "Expected a tolerance of zero or more dB" in capsys.readouterr().err


def test_the_comment_names_what_else_differs() -> None:
    then = entry([1.0, 2.0, 3.0], verdict="holds")
    now = entry(
        [1.0, 2.0, 3.1],
        environment=ENVIRONMENT.model_copy(update={"torch": "2.8"}),
        code={"defense": "cc", "attack": "bb"},
        settings={"limit": "64"},
    )
    text = markdown(compare(cells(then), cells(now)))
    assert "| `photos/lenet/pruning(rate=0.5)/ridge` | +0.03 [-0.17, 0.24] dB | +0.03 [-0.17, 0.24] dB | 3 | holds → **leaks** |" in text
    assert "- torch: 2.7 -> 2.8" in text.replace("\\>", ">")
    assert "code or files of the defense pruning(rate=0.5)" in text
    assert "ridge: limit: 2048 -" in text


def test_the_comment_says_that_a_control_got_weaker() -> None:
    then, now = entry([9.0, 8.0, 9.5, 8.5], defense="none"), entry([5.0, 4.0, 5.5, 4.5], defense="none")
    assert "**Undefended, these attacks reach less than before:** `lenet/ridge`" in markdown(compare(cells(then), cells(now)))


def test_nothing_in_common_is_no_pass_in_silence() -> None:
    found = compare(cells(entry([1.0, 2.0])), cells(entry([1.0, 2.0], attack="ig")))
    assert found.failed
    assert markdown(found).startswith("### gitbench: ❌ **Nothing could be compared**; 1 missing, 1 new")


def test_undefended_cells_in_common_alone_are_no_pass() -> None:
    control = entry([1.0, 2.0, 3.0], defense="none")
    found = compare(cells(control, entry([1.0, 2.0, 3.0])), cells(control))
    assert found.failed
    assert markdown(found).startswith("### gitbench: ❌ **No defended cell could be compared**; 1 missing")
    assert not compare(cells(control), cells(control)).failed  # there is none


def test_names_cannot_break_the_comment() -> None:
    name = "evil.py:X(a='|`</details>@all\\n')"
    then = entry([1.0, 2.0, 3.0], defense=name)
    text = markdown(compare(cells(then), cells(entry([9.0, 10.0, 12.0], defense=name), entry([1.0], defense=name, attack="ig"))))
    assert "``" not in text
    assert all(line.count("`") % 2 == 0 for line in text.splitlines())
    rows = [line for line in text.splitlines() if line.startswith("| ❌")]
    assert [line.replace("\\|", "").count("|") for line in rows] == [6]


def test_a_long_comment_is_cut_below_githubs_limit() -> None:
    many = [entry([1.0, 2.0, 3.0], attack=f"ig(iterations={number})") for number in range(900)]
    text = markdown(compare(cells(*many), cells(*many)))
    assert len(text) < 65_536
    assert text.endswith("(cut: the rest is what gitbench compare prints)\n")


def test_entries_round_their_values() -> None:
    found = record_of(result([1.23456789, 2.0]))
    assert found.values["psnr_gain"] == (1.23457, 2.0)
    assert found.blind == (13.5, 13.5)
