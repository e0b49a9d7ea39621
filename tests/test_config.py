"""Threat models and options of a run: every wrong option is answered."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Mapping
from pathlib import Path

import pytest

from gitbench.core.errors import ConfigError, SpecError
from gitbench.identity.case import Setting
from gitbench.identity.threat import KNOWLEDGE, THREATS, knowledge_of
from gitbench.judge.verdict import DEFAULT_GATE
from gitbench.run.config import Config, make_config, parse_thresholds
from gitbench.run.matrix import make_cells
from gitbench.run.profiles import PROFILES

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
    assert PROFILES["quick"].threshold == DEFAULT_GATE == {"psnr_gain": 3.0}


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
    assert cells[0].setting == Setting("photos", "lenet")
    assert cells[1].cases[0].control() == cells[0].cases[0]
    assert config.conditions(cells[0].setting) == {
        "threat": "server", "profile": "quick", "client": "fedsgd", "victims": 2, "batch_size": 1, "seeds": 2,
    }  # fmt: skip


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


def test_the_default_matrix_has_batches_and_a_chosen_one_has_single_images() -> None:
    cells = make_cells(make_config({}, {}))
    assert {(cell.setting.batch_size, cell.attack.label) for cell in cells if cell.setting.batch_size > 1} == {
        (4, "recursion"),
        (4, "ridge"),
    }
    for chosen in ({"attack": ["ridge"]}, {"model": ["mlp"]}, {"dataset": ["photos"]}, {"client": ["fedavg"]}):
        assert {cell.setting.batch_size for cell in make_cells(make_config({}, chosen))} == {1}
    assert {cell.setting.batch_size for cell in make_cells(make_config({}, {"defense": ["none"]}))} == {1, 4}
    assert len(make_cells(make_config({}, {"defense": ["none"], "batch_size": ["4"]}))) == 14  # all attacks, where it is asked for
