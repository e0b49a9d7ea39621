"""Suites as files: those that gitbench ships, what is refused of others, and what a run makes of one with its options."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from gitbench.core.errors import ConfigError, GitbenchError
from gitbench.identity.loading import checked_spec
from gitbench.run.suite import read_suite
from gitbench.run.suite_data import public_images
from gitbench.run.suite_files import SHIPPED, find_suite
from gitbench.run.suite_plan import SuitePlan, plan_suite
from hostile import harmless
from suites import TINY, write_suite

DATA = "npz(path='tiny.npz')"
NOISE = "gaussian_noise(std=1.0)"
NAMES = sorted(path.stem for path in SHIPPED.glob("*.toml"))


# The files


def test_the_tables_of_the_paper_are_shipped() -> None:
    assert {f"git-table{number}" for number in (2, 3, 4, 5, 6, 7, 9)} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_suite_is_valid_and_names_what_there_is(name: str) -> None:
    _, suite = find_suite(name)
    for setting, line in suite.lines():
        named = {"model": setting.model, "client": setting.client, "defense": line.defense, "attack": line.attack}
        for kind, text in named.items():
            assert text is None or str(checked_spec(kind, text)) == text
    assert suite.notes
    assert suite.budgets[suite.profile].victims <= suite.full.victims


def test_what_the_tables_of_one_paper_share_is_typed_alike() -> None:
    """Undefended on the LeNet of CIFAR-10; where the paper itself differs, the suite says so."""
    found: dict[str, set[Decimal]] = {}
    for name in NAMES:
        for setting, line in find_suite(name)[1].lines():
            if setting.data == "cifar10" and setting.model == "lenet" and line.defense == "none" and line.attack:
                attack, _, limit = line.attack.partition("(")
                if limit in ("", "limit=10000)"):
                    found.setdefault(attack, set()).add(line.published["mse"])
    singles = {attack: values for attack, values in found.items() if "+" not in attack}
    assert {attack: set(map(str, values)) for attack, values in singles.items()} == {
        "dlg": {"0.073"}, "ig": {"0.082"}, "lti": {"0.015"}, "git": {"0.010"}, "gias": {"0.012", "0.027"},
    }  # fmt: skip
    assert any("0.012" in text and "0.027" in text for text in find_suite("git-table4")[1].contradictions)


def test_the_digits_that_were_published_are_kept() -> None:
    _, suite = find_suite("git-table4")
    assert str(suite.settings[0].lines[3].published["mse"]) == "0.010"


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("schema = 1", "schema = 2", "schema: Input should be 1"),
        ("schema = 1", "", "schema: Field required"),
        ('title = "noise', 'titel = "noise', "(title|titel)"),
        ("mse = 0.010", "mes = 0.010", "Did you mean 'mse'"),
        ("mse = 0.010", "mse = nan", "a figure below|finite number"),
        ("mse = 0.010", "mse = 1e999999", "a figure below"),
        ("mse = 0.010", "mse = 1.5", "expected a value from 0.0 to 1.0"),
        ("mse = 0.010", "mse = 'low'", "published.mse"),
        ("mse = 0.010, psnr = 20.50", "", "published: .*at least 1 item"),
        ('"ridge", row = "0"', '"ridge(", row = "0"', "Cannot read the attack|not name"),
        ('"ridge", row = "0"', '"evil.py:Attack", row = "0"', "code that a suite names is not run"),
        ('"mlp(hidden=(24,))"', '"os:system"', "code that a suite names is not run"),
        ('data = "tiny"', 'data = "tinny"', "Did you mean 'tiny'"),
        ('paper = "ORACLE", row', 'paper = "ORACLE\\u001b[31m", row', "expected visible characters"),
        (', unavailable = "there is no such attack"', "", "ORACLE: expected attack, or unavailable"),
        ("paper = { victims = 12", "standard = { victims = 12", "budgets has no 'paper'"),
        ("victims = 8", "victims = 0", "greater than 0"),
        ('arxiv = "2501.00001"', 'arxiv = "x"', "source.arxiv"),
        ('title = "tiny, MLP"', "title = [[[", "is no suite"),
    ],
)
def test_a_hostile_file_gives_a_clear_error(tmp_path: Path, before: str, after: str, message: str) -> None:
    assert before in TINY
    path = write_suite(tmp_path, TINY.replace(before, after, 1))
    with pytest.raises(ConfigError, match=message) as caught:
        read_suite(path)
    assert str(path) in str(caught.value)
    assert "docs/suites.md" in str(caught.value)
    assert harmless(str(caught.value))


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a = " + b"[" * 100_000, b"a = " + b"9" * 100_000, b"", b"\x00" * (2**20 + 1)])
def test_what_is_no_text_and_no_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.toml"):
        read_suite(path)


def test_a_missing_file_and_an_unknown_name_are_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found no such file"):
        find_suite(str(tmp_path / "no.toml"))
    with pytest.raises(ConfigError, match=r"Did you mean 'git-table4'.*path/to/mine\.toml"):
        find_suite("git-tabel4")
    with pytest.raises(ConfigError, match="letters, digits"):
        find_suite(str(tmp_path / "a b.toml"))


def test_the_suite_of_the_documentation_can_be_run(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / "suites.md").read_text()
    path = write_suite(tmp_path, text.partition("```toml\n")[2].partition("```")[0])
    plan = plan_suite({}, {"suite": str(path), "dataset": ["photos"]})
    assert [(cell.defense.label, cell.attack.label) for cell in plan.cells()] == [("none", "ridge"), ("pruning(rate=0.9)", "ridge")]
    assert public_images(plan.suite, plan.data)["photos"] > 0


def test_the_documentation_lists_what_is_shipped() -> None:
    text = (Path(__file__).parents[1] / "docs" / "suites.md").read_text()
    assert {line.split("`")[1] for line in text.splitlines() if line.startswith("| `git-")} == set(NAMES)


# The plan


def planned(folder: Path, **options: object) -> SuitePlan | None:
    return plan_suite({}, {"suite": str(write_suite(folder)), "dataset": [DATA], **options})


def test_the_plan_has_the_suites_cells_and_budget(tmp_path: Path) -> None:
    plan = planned(tmp_path)
    assert [(one.defense, one.attack) for one in plan.chosen] == [("none", "ridge"), (NOISE, "ridge"), ("none", "ridge(limit=97)")]
    assert (plan.config.profile, plan.config.victims, plan.config.seeds, plan.config.threat) == ("quick", 8, 1, "server")
    full = planned(tmp_path, profile="paper").config
    assert (full.victims, full.seeds) == (12, 2)
    assert planned(tmp_path, profile="standard").config.victims == 32  # the profile's own, where the suite has none
    assert planned(tmp_path, victims="3", seeds=2).config.victims == 3


def test_options_narrow_a_plan(tmp_path: Path) -> None:
    assert [one.attack for one in planned(tmp_path, attack=["ridge(limit=97)"]).chosen] == ["ridge(limit=97)"]
    assert len(planned(tmp_path, attack=["ridge"]).chosen) == 3  # by its name
    assert [one.defense for one in planned(tmp_path, defense=[NOISE]).chosen] == [NOISE]
    assert len(planned(tmp_path, defense=[NOISE]).every) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": []}, r"needs data, and none are given.*\n.*tiny: tiny images \(3x8x8, 4 classes\): --gitbench-dataset \"tiny=npz"),
        ({"dataset": ["tinny=photos"]}, "Did you mean 'tiny'"),
        ({"dataset": ["tiny=photos", "tiny=photos"]}, "given twice"),
        ({"dataset": ["photos", "photos"]}, r"needs 1 data sets \(tiny\), 2 are given"),
        ({"dataset": ["foto"]}, "Did you mean 'photos'"),
        ({"attack": ["rigde"]}, "has no attack 'rigde'.*Did you mean 'ridge'"),
        ({"model": ["lenet"]}, "has no model 'lenet'"),
        ({"attack": ["ridge(limit=97)"], "defense": [NOISE]}, "Nothing of the suite tiny is left"),
        ({"batch_size": [4]}, "has a batch-size of its own"),
        ({"threat": "eavesdropper"}, "has a threat of its own"),
        ({"victims": "auto"}, "Expected a number of victims"),
        ({"profile": "quik"}, "Did you mean 'quick'"),
    ],
)
def test_what_does_not_go_with_a_suite_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(GitbenchError, match=message):
        planned(tmp_path, **options)


def test_of_the_projects_options_only_places_count_unless_they_name_the_suite(tmp_path: Path) -> None:
    suite = str(write_suite(tmp_path))
    project = {"model": ["lenet"], "victims": 3, "batch_size": 4, "results": "kept", "dataset": "photos"}
    config = plan_suite(project, {"suite": suite, "dataset": [DATA]}).config
    assert (config.model, config.victims, str(config.results)) == (("mlp(hidden=(24,))",), 8, "kept")
    assert plan_suite({"suite": suite, "dataset": DATA, "victims": 3}, {}).config.victims == 3


def test_data_are_told_apart_by_name_or_by_order(tmp_path: Path) -> None:
    found = plan_suite({}, {"suite": "git-table2", "dataset": ["imagenet=folder(path='a')", "npz(path='b')"]})
    assert found.data == {"imagenet": "folder(path='a')", "cifar10": "npz(path='b')"}
    only = plan_suite({}, {"suite": "git-table2", "dataset": ["npz(path='b')"]})
    assert {one.dataset for one in only.chosen} == {"npz(path='b')"}
    assert len(only.chosen) == 8
