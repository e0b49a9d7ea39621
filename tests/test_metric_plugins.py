"""Metrics that others add: registered, measured, judged, printed; and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gitbench.attacker.attack import load_attack
from gitbench.attacker.fit_cache import identity
from gitbench.attacker.observation import Observation
from gitbench.clients.data import Data
from gitbench.clients.update import Update
from gitbench.core.errors import ConfigError, MetricError, SpecError
from gitbench.core.figures import figure, limit, plus
from gitbench.identity.known_metrics import _digest, digest_of_metrics, known_metrics
from gitbench.identity.names import register
from gitbench.measure.scoring import score
from gitbench.publish import leaderboard
from gitbench.publish.baseline import cells_of
from gitbench.publish.comment import markdown
from gitbench.publish.comparison import compare
from gitbench.publish.table import tables
from gitbench.run.bench import case_of
from gitbench.run.config import parse_thresholds
from gitbench.store.result import Result
from helpers import pair, run_project, write_project
from results import CASE, SAFE, measure, result, table

PAGE = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text().partition("## A metric")[2].partition("## Hooks")[0]
CLOSE, HOOK = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)  # the documentation's own example: close.py and conftest.py


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Registers the metric ``close`` from a file with the given source, until the test is over."""
    monkeypatch.chdir(tmp_path)
    forget = []

    def written(source: str) -> None:
        (tmp_path / "close.py").write_text(source)
        forget.append(register({"metric": {"close": "close.py:Close"}}))

    yield written
    for one in forget:
        one()


@pytest.fixture
def close(write) -> None:
    write(CLOSE)


def test_names_units_and_directions_are_read_without_torch() -> None:
    code = "from gitbench.identity.known_metrics import known_metrics as known\nassert [(one.unit, one.sign, one.needs) for one in known().values()]"
    subprocess.run([sys.executable, "-c", f"{code}\nimport sys\nassert not {{'torch', 'pandas', 'scipy'}} & set(sys.modules)"], check=True)


def test_a_metric_is_known_after_the_built_in_ones_as_long_as_it_is_registered(close: None) -> None:
    assert [name for name, metric in known_metrics().items() if metric.modality == "image"] == [
        "mse",
        "psnr",
        "ssim",
        "lpips",
        "psnr_gain",
        "identification",
        "close",
    ]
    assert parse_thresholds("close=30") == {"close": 30.0}
    found, truth = pair((3, 8, 8), count=6)
    scores = score(found[:, None], truth[:, None])
    assert list(scores) == ["mse", "psnr", "ssim", "lpips", "close"]
    torch.testing.assert_close(scores["close"][:, 0], 100 * ((found - truth).abs() < 0.1).double().flatten(1).mean(1))


def test_a_metric_that_is_not_registered_is_an_unknown_one() -> None:
    with pytest.raises(ConfigError, match=r"Unknown metric 'psnr_gian' in a threshold\. Did you mean 'psnr_gain'\?"):
        parse_thresholds("psnr_gian=3")
    assert "close" not in known_metrics()


def test_two_packages_cannot_register_one_name() -> None:
    with pytest.raises(
        SpecError, match=r"Cannot register the metric 'ssim' as mine:Ssim: it is gitbench\.measure\.metrics\.ssim:Ssim already"
    ):
        register({"metric": {"ssim": "mine:Ssim"}})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "close"', 'name = "near"', "expected a class whose name is the identifier that it is registered by, got 'near'"),
        ("higher_leaks = True", "", "its class does not define higher_leaks"),
        ("def score", "def skore", "its class does not define score"),
        ("found, truth)", "found, truth, *, blnd)", r"its score asks for 'blnd', which there is not\. Did you mean 'blind'"),
        ("found, truth)", "found, truth, blind)", "expected score.self, found, truth., and what it needs besides as keywords"),
        ("gitbench.Metric", "gitbench.Defense", "Expected 'close' to be a subclass of gitbench.Metric"),
        ("import gitbench", "import gitbenhc", "Importing close.py for the metric 'close' failed"),
    ],
)
def test_a_malformed_metric_is_refused_by_its_name(write, old: str, new: str, message: str) -> None:
    write(CLOSE.replace(old, new))
    with pytest.raises(SpecError, match=message):
        known_metrics()


def test_a_metric_gets_what_it_names_and_is_left_out_without_it(write) -> None:
    write(CLOSE.replace("found, truth)", "found, truth, *, private, blind)").replace("found - truth", "found - blind + 0 * private.sum()"))
    assert known_metrics()["close"].needs == ("private", "blind")
    found, truth = pair((1, 8, 8), count=2)
    options = {"blind": truth.mean(0), "private": truth}
    for name, value in options.items():
        assert "close" not in score(found[:, None], truth[:, None], **{name: value})
    near = ((found - truth.mean(0)).abs() < 0.1).double().flatten(1).mean(1)
    torch.testing.assert_close(score(found[:, None], truth[:, None], **options)["close"][:, 0], 100 * near)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("1 / 0", "The metric 'close' failed: ZeroDivisionError: division by zero"),
        ("found.mean()", r"Expected the metric 'close' to return one value for each of 2 images, got a tensor \(\)"),
        ("0.5", "one value for each of 2 images, got 0.5"),
    ],
)
def test_a_metric_that_fails_is_named(write, body: str, message: str) -> None:
    write(f"{CLOSE.rpartition('return')[0]}return {body}\n")
    found, truth = pair((1, 8, 8), count=2)
    with pytest.raises(MetricError, match=message):
        score(found[:, None], truth[:, None])


def new_case() -> dict[str, str]:
    return case_of(
        attack="ig", defense="none", model="lenet", dataset="photos", threat="server", profile="quick", victims=4, batch_size=1, seed=0
    ).code


def test_a_metric_that_is_added_or_edited_measures_again(write) -> None:
    before = digest_of_metrics()
    assert new_case() == CASE.code
    write(CLOSE)
    added = new_case()
    assert added["metrics"] != before
    assert {name: digest for name, digest in added.items() if name != "metrics"} == {
        name: digest for name, digest in CASE.code.items() if name != "metrics"
    }
    write(CLOSE.replace("0.1)", "0.2)"))
    _digest.cache_clear()  # as in the next process
    edited = digest_of_metrics()
    assert edited not in (before, added["metrics"])


def test_what_an_attack_learned_does_not_depend_on_metrics(data: Data) -> None:
    observation = Observation(
        update=Update({}), model=torch.nn.Linear(1, 1), input_shape=data.input_shape, batch_size=1, public=data.public
    ).without_update()
    other = CASE.model_copy(update={"code": {**CASE.code, "metrics": "another"}})
    assert identity(CASE, load_attack("lti"), observation) == identity(other, load_attack("lti"), observation)


def test_a_result_keeps_a_metric_that_is_not_installed_here(tmp_path: Path) -> None:
    found = result(SAFE)
    kept = found.model_copy(update={"metrics": {**found.metrics, "close": measure((1.0, 2.0, 3.0, 4.0))}})
    again = Result.model_validate_json(kept.to_json())
    assert again == kept
    assert "close" not in leaderboard.render(table({("none", "ig"): [again]}))
    (record,) = next(iter(cells_of([again]).values())).values()
    assert set(record.values) == {"psnr_gain"}
    with pytest.raises(ValueError, match=r"the gate names the unknown metric 'sim'\. Did you mean 'ssim'"):
        Result.model_validate({**kept.model_dump(by_alias=True), "gate": {"sim": 3.0}})


@pytest.mark.parametrize(
    ("name", "value", "table_text", "brief"),
    [
        ("psnr_gain", 12.345, "+12.35 dB [11.00, 13.00]", "+12.3 dB [11.0, 13.0]"),
        ("psnr", 12.345, "12.35 dB [11.00, 13.00]", "12.3 dB [11.0, 13.0]"),
        ("ssim", 0.12345, "+0.1235 [11.0000, 13.0000]", "+0.123 [11.000, 13.000]"),
        ("mse", 0.12345, "0.1235 [11.0000, 13.0000]", "0.123 [11.000, 13.000]"),
        ("close", 99.0, "99.00 % [11.00, 13.00]", "99.0 % [11.0, 13.0]"),
    ],
)
def test_figures_are_written_from_the_unit_and_the_bounds(close: None, name: str, value: float, table_text: str, brief: str) -> None:
    metric = known_metrics()[name]
    assert figure(metric, value, 11, 13, sign=plus(metric)) == table_text
    assert figure(metric, value, 11, 13, sign=plus(metric), brief=True) == brief
    assert limit(metric, 3.0) == f"3 {metric.unit}".strip()


def test_a_comparison_and_a_leaderboard_write_its_unit(close: None) -> None:
    gate = {"close": 50.0}
    before = result((10.0, 11.0, 12.0, 11.0), metric="close", defense="pruning(rate=0.9)").model_copy(update={"gate": gate})
    after = result((40.0, 41.0, 42.5, 41.0), metric="close", defense="pruning(rate=0.9)").model_copy(update={"gate": gate})
    found = compare(cells_of([before]), cells_of([after]))
    (change,) = found.changes
    assert change.kind == "regressed"
    assert change.reason.startswith("close leaks 30.12 % [29.")
    assert change.reason.endswith("(tolerance 2 %)")
    assert "pruning(rate=0.9)/ig` close | +30.12 [29." in markdown(found)
    text = leaderboard.render(tables([before.model_copy(update={"case": CASE, "case_id": CASE.case_id})])[0])
    assert "- A cell leaks past close ↑ 50 %" in text
    assert "gap, %" in text
    assert "| close ↑" in text


def test_a_run_is_judged_and_printed_by_a_registered_metric(pytester: pytest.Pytester, tiny_npz: Path, warm: None) -> None:
    write_project(pytester, tiny_npz, defense=["none", "gaussian_noise(std=1.0)"], threshold=["close=50"])
    pytester.makepyfile(close=CLOSE, test_it="def test_it(gitbench_evaluate):\n    print(gitbench_evaluate('gaussian_noise(std=1.0)'))")
    pytester.makeconftest(HOOK)
    found = run_project(pytester, "--gitbench")
    found.assert_outcomes(passed=2)
    found.stdout.fnmatch_lines(
        [
            "none * ok leaks 100.0 % [[]100.0, 100.0]",
            "gaussian_noise(std=1.0) * ok holds * % [[]*, *]",
            "close: share of the pixels within 0.1 of the truth, mean [[]95 % interval]",
        ]
    )
    told = run_project(pytester, "-s")
    told.assert_outcomes(passed=1)
    told.stdout.fnmatch_lines(
        ["*gaussian_noise(std=1.0) *ok holds * % [[]*", "  close * % [[]*] of 12 victims", "  margin: * %, the whole *of 50 %"]
    )
