"""The report: what it says, whom it shows, and that its data follow the published schema."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import jsonschema
import pytest

from gitbench.cli import main
from gitbench.clients.data import load_dataset
from gitbench.core.errors import StoreError
from gitbench.publish.report.build import build_report, latest, report_of_results
from gitbench.publish.report.cells import NOT_MEASURED, identified
from gitbench.publish.report.data import ReportData, schema_text
from gitbench.publish.report.settings import private_images
from gitbench.publish.report.standing import next_step, row_standing
from gitbench.publish.report.words import SYMBOLS, VERDICTS
from gitbench.publish.table import tables
from gitbench.store.folder import Store
from hostile import quickly
from report_pages import HOSTILE, cell, kept, page_of, report_of, usual_results
from results import GATE, LEAKING, SAFE, result, table

SCHEMA = json.loads(resources.files("gitbench.publish.report").joinpath("schema.json").read_text(encoding="utf-8"))
NPZ = "npz(path='patients.npz')"


def told(data: ReportData) -> dict[str, str]:
    return {one.defense: one.sentence for one in data.defenses}


# ---------------------------------------------------------------- what it says


def test_the_verdict_is_one_sentence_with_the_strongest_attack(tmp_path: Path) -> None:
    data = report_of(tmp_path, usual_results()).data
    assert data.sentence == "Of 2 defenses, 1 (pruning(rate=0.5)) leaks; 1 (clipping(max_norm=1.0)) holds."
    assert data.standing == "leaks"
    assert re.match(
        r"pruning\(rate=0\.5\) leaks: \+7\.1 dB \[\S+, \S+\] against \S+ on photos/lenet(/batch-4)? \(victims 4\)\.$",
        told(data)["pruning(rate=0.5)"],
    )
    assert "holds: at most +0.5 dB" in told(data)["clipping(max_norm=1.0)"]
    leaking = data.defenses[0]
    assert leaking.identified.startswith("Up to 100 % [51, 100] of 4 victims are recognised among 512 private images, by ")
    assert leaking.sure.startswith("4 victims and 1 seed in each of 2 settings, 2 attacks that work without a defense, 95 % intervals.")
    assert leaking.costs == "Accuracy falls by 3.0 percentage points [-2.5, 8.3] in the worst of 2 settings."
    assert data.defenses[1].costs.startswith("Not tested: add --gitbench-cost yes")
    assert "--gitbench-rounds 16" in data.defenses[1].next


def test_one_defense_alone_is_the_sentence(tmp_path: Path) -> None:
    data = report_of(tmp_path, [cell(), cell(SAFE, defense="pruning(rate=0.9)")]).data
    assert data.sentence == told(data)["pruning(rate=0.9)"]
    controls = report_of(tmp_path, [cell()]).data
    assert controls.sentence == "Nothing was defended here: only undefended controls were measured."


@pytest.mark.parametrize(
    ("standings", "expected"),
    [
        (["holds", "no control"], "holds"),
        (["no control"], "no control"),
        (["holds", "undecided"], "undecided"),
        (["holds", "error", "undecided"], "error"),
        (["leaks", "error"], "leaks"),
        (["holds", "n/a", "not tested"], "holds"),
        (["n/a", "not tested"], "not tested"),
        ([], "not tested"),
    ],
)
def test_a_defense_is_as_good_as_its_worst_cell(standings: list[str], expected: str) -> None:
    assert row_standing(standings) == expected
    assert set(SYMBOLS) == set(VERDICTS)
    assert next_step(expected, []) or expected == "holds"


def test_a_mean_that_holds_does_not_hide_its_victims(tmp_path: Path) -> None:
    few = report_of(tmp_path, [cell([9.0] * 16), cell((4.0, *[-1.0] * 15), defense="mine")]).data
    assert few.sentence.startswith("mine holds: at most -0.7 dB")
    assert few.sentence.endswith("; yet 6 % of single victims are past the threshold (ig).")


def test_a_quick_matrix_takes_less_than_five_seconds(tmp_path: Path) -> None:
    names = [
        ("none" if number == 0 else f"pruning(rate={number / 10})", f"ig(iterations={attack})")
        for number in range(9)
        for attack in range(8)
    ]
    store = kept(Store(tmp_path / "results"), [cell([9.0] * 16, defense=defense, attack=attack) for defense, attack in names])
    with quickly(5):
        report = report_of_results(store.root)
        report.write(tmp_path)
    assert len(report.data.cells) == 72


def test_of_several_numbers_of_victims_the_largest_counts(tmp_path: Path) -> None:
    few, many = (5.0, 1.0, 2.0, 3.0), (0.0, 0.5, 1.0, 0.5) * 2
    results = [cell(), cell(few, defense="mine"), cell(few, defense="other"), cell(LEAKING * 2), cell(many, defense="mine")]
    found = latest(tables(results))
    assert [(one.conditions["victims"], one.defenses) for one in found] == [(4, ("none", "other")), (8, ("none", "mine"))]
    data = build_report(found, store=Store(tmp_path)).data
    assert {one.defense: one.standing for one in data.defenses} == {"mine": "holds", "other": "undecided"}
    assert [one.name for one in data.settings] == ["photos/lenet (victims 4)", "photos/lenet (victims 8)"]
    assert latest(tables(results[:2])) == tables(results[:2])


def test_a_metric_of_which_less_leaks_more(tmp_path: Path) -> None:
    results = [
        result(values, metric="mse", defense=name) for values, name in (((0.01,) * 4, "none"), ((0.02,) * 4, "a"), ((0.5,) * 4, "b"))
    ]
    found = [one.model_copy(update={"gate": {"mse": 0.1}}) for one in results]
    data = build_report(tables(found), store=Store(tmp_path)).data
    assert {one.defense: one.standing for one in data.defenses} == {"a": "leaks", "b": "holds"}
    assert data.defenses[0].sentence == "a leaks: 0.020 [0.020, 0.020] against ig on photos/lenet (victims 4)."
    assert data.settings[0].metric.higher_leaks is False


def test_what_was_not_measured_is_said_and_acquits_nobody(tmp_path: Path) -> None:
    safe = cell(SAFE, defense="pruning(rate=0.9)")
    found = table({("none", "ig"): [cell()], ("pruning(rate=0.9)", "ig"): [safe]}, errors={("pruning(rate=0.9)", "lti"): NOT_MEASURED})
    data = build_report([found], store=Store(tmp_path)).data
    by_name = {(one.defense, one.attack): one.standing for one in data.cells}
    assert by_name["pruning(rate=0.9)", "lti"] == "not tested"
    assert by_name["none", "lti"] == "not tested"
    assert "Not tested: 1 cell." in data.defenses[0].sure
    broken = build_report([table(errors={("mine", "ig"): "it raised"})], store=Store(tmp_path)).data
    assert ("mine", "error") in {(one.defense, one.standing) for one in broken.defenses}
    raised = result(error="boom", defense="mine")
    stored = build_report([table({("none", "ig"): [cell()], ("mine", "ig"): [raised]})], store=Store(tmp_path)).data
    assert [(one.standing, one.reason) for one in stored.cells if one.defense == "mine"] == [("error", "this cell ended in an error: boom")]
    alone = build_report([table({("mine", "ig"): [safe]})], store=Store(tmp_path)).data
    assert alone.standing == "no control"
    assert alone.defenses[0].sentence.startswith("mine was not shown to hold: no attack works even without it")
    with pytest.raises(StoreError, match=r"No finished result in .*cases"):
        build_report([], store=Store(tmp_path))


def test_identified_has_an_upper_bound_or_was_not_tested() -> None:
    assert identified([None, None]) is None
    assert identified([]) is None
    none = identified([0.0] * 16)
    assert none is not None
    assert (none.share, none.low) == (0.0, 0.0)
    assert none.high == pytest.approx(0.194, abs=1e-3)
    # Of batches the images of one victim hang together: rounded to the wider side.
    some = identified([0.25] * 6)
    assert some is not None
    assert some.low < identified([1.0, *[0.0] * 5]).low + 1e-9
    assert some.high == identified([1.0, 1.0, *[0.0] * 4]).high


def test_the_crowd_is_that_of_the_built_in_photos() -> None:
    assert private_images("photos(private=3, public=4)") == len(load_dataset("photos(private=3, public=4)").private.inputs) == 24
    assert private_images("photos") == 512
    assert private_images(NPZ) is None
    assert private_images("((") is None


def test_curves_join_what_differs_in_nothing_else(tmp_path: Path) -> None:
    results = [cell(attack="ridge", rounds=rounds, model=model) for rounds in (1, 16) for model in ("lenet", "lenet(trained_epochs=5)")]
    results += [cell(attack="ridge", client=f"fedavg(steps={steps})") for steps in (1, 5)]
    curves = report_of(tmp_path, results).data.curves
    found = {(one.axis, one.where): [point.at for point in one.points] for one in curves}
    assert found == {
        ("rounds", "photos, lenet"): [1, 16],
        ("rounds", "photos, lenet(trained_epochs=5)"): [1, 16],
        ("trained_epochs", "photos, lenet"): [0, 5],
        ("trained_epochs", "photos, lenet, rounds 16"): [0, 5],
        ("steps", "photos, lenet, client fedavg"): [1, 5],
    }


def test_the_command_measures_the_same_again(tmp_path: Path) -> None:
    case = {"client": "fedavg(steps=5)", "batch_size": 4, "rounds": 2, "threat": "upper-bound", "profile": "standard"}
    results = [cell(seed=seed, defense="dir/mine.py:Mine(scale=0.1)", attack="ridge", **case) for seed in (0, 1)]
    data = report_of(tmp_path, results).data
    assert data.settings[0].command == (
        "pytest --gitbench --gitbench-profile standard --gitbench-dataset photos --gitbench-model lenet --gitbench-client 'fedavg(steps=5)' "
        "--gitbench-defense 'dir/mine.py:Mine(scale=0.1)' --gitbench-attack ridge --gitbench-batch-size 4 --gitbench-rounds 2 "
        "--gitbench-threat upper-bound --gitbench-victims 4 --gitbench-seeds 2"
    )
    assert data.settings[0].name == "photos/lenet/fedavg(steps=5)/batch-4/rounds-2 (threat upper-bound, profile standard, victims 4)"


# ---------------------------------------------------------------- strangers


def test_nothing_that_strangers_wrote_is_html(tmp_path: Path) -> None:
    names = {"defense": HOSTILE, "attack": HOSTILE, "model": HOSTILE, "client": HOSTILE, "threat": HOSTILE, "profile": HOSTILE}
    found = cell(**names).model_copy(update={"verdict_reason": HOSTILE, "settings": {HOSTILE: HOSTILE}, "flags": (HOSTILE,)})
    text = page_of(
        report_of(tmp_path, [found, result(error=HOSTILE, attack="lti", **{key: names[key] for key in names if key != "attack"})])
    )
    assert "<img src" not in text
    assert "<script>window" not in text
    assert "{{ 7" in html.unescape(text)  # as it stands, and not 49
    assert "\u202e" not in text
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL)
    assert text.count("<script") == len(scripts) == text.count("</script>")
    read = json.loads(scripts[0])
    assert "<img src=x onerror" in read["cells"][0]["defense"]


def test_the_page_lets_nothing_in_and_nothing_out(tmp_path: Path) -> None:
    text = page_of(report_of(tmp_path, usual_results(), command="pytest --gitbench"))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert html.unescape(policy.group(1)).startswith("default-src 'none'; script-src 'sha256-")
    assert "'unsafe-inline'" not in html.unescape(policy.group(1)).split("style-src")[0]
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "pytest --gitbench" in text


# ---------------------------------------------------------------- data


def test_the_data_follow_the_published_schema(tmp_path: Path) -> None:
    found = report_of(tmp_path, [*usual_results(), result(error="boom", defense="mine")])
    data = json.loads(found.data.to_json())
    validator = jsonschema.Draft202012Validator(SCHEMA, format_checker=jsonschema.FormatChecker())
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator.validate(data)
    assert ReportData.model_validate(data) == found.data
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({**data, "standing": "perfect"})
    with pytest.raises(jsonschema.ValidationError):
        validator.validate({key: value for key, value in data.items() if key != "cells"})


def test_the_published_schema_is_that_of_the_code() -> None:
    assert json.loads(schema_text()) == SCHEMA, (
        "write it again: python -c 'from gitbench.publish.report.data import *; print(schema_text())'"
    )


def test_the_command_writes_the_page_or_the_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(Store(tmp_path / "results"), usual_results())
    assert main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Of 2 defenses, 1 (pruning(rate=0.5)) leaks")
    assert f"wrote {tmp_path / 'out' / 'index.html'}" in printed
    text = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    embedded = re.search(r'id="gitbench-data">(.*?)</script>', text, flags=re.DOTALL)
    assert embedded is not None
    assert main(["report", str(tmp_path / "results"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert {**json.loads(embedded.group(1)), "made_at": ""} == {**data, "made_at": ""}
    assert main(["report", str(tmp_path / "nothing")]) == 2
    assert "No finished result in" in capsys.readouterr().err


def test_the_command_says_that_pictures_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept(Store(tmp_path / "results"), [cell(dataset=NPZ)])
    assert main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "out")]) == 0
    assert "--no-redact shows them" in capsys.readouterr().out
    assert main(["report", str(tmp_path / "results"), "--out", str(tmp_path / "out"), "--no-redact"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_the_example_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[1].joinpath("docs", "report.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(example, {})
    assert capsys.readouterr().out == "gitbench report\n"


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    kept(Store(tmp_path), usual_results())
    code = (
        "import sys; from pathlib import Path; from gitbench.publish.report.build import report_of_results; "
        f"report_of_results(Path({str(tmp_path)!r})).write(Path({str(tmp_path / 'out')!r})); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert report_of_results(tmp_path).data.settings[0].gate == GATE


def test_a_run_writes_its_report(warm: None, bench: pytest.Pytester) -> None:
    run = bench.runpytest("--gitbench", "--gitbench-report=out")
    run.stdout.fnmatch_lines(["report: out/index.html"])
    text = (bench.path / "out" / "index.html").read_text(encoding="utf-8")
    assert "This report was made by:" in text
    assert "pytest --gitbench --gitbench-report=out" in text
    data = json.loads(re.search(r'id="gitbench-data">(.*?)</script>', text, flags=re.DOTALL).group(1))
    jsonschema.validate(data, SCHEMA)
    assert all(setting["redacted"] for setting in data["settings"])
    assert 'id="gitbench-pictures">{}<' in text
    bench.runpytest("--gitbench", "--gitbench-report=part", "--gitbench-results=other", "-k", "none")
    text = (bench.path / "part" / "index.html").read_text(encoding="utf-8")
    data = json.loads(re.search(r'id="gitbench-data">(.*?)</script>', text, flags=re.DOTALL).group(1))
    assert {one["standing"] for one in data["cells"] if one["defense"] != "none"} == {"not tested"}
    assert data["standing"] == "not tested"
    assert "was not tested" in data["sentence"] or "were not tested" in data["sentence"]
