"""The kind of data is an axis: images, and a third modality that is registered here and touches nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gitbench
from gitbench.core.errors import ConfigError, DataError
from gitbench.identity.known_metrics import known_metrics
from gitbench.identity.known_modalities import default_gate, gain_of, known_modalities, misfit, modality_of
from gitbench.identity.names import register
from gitbench.run.config import make_config
from gitbench.run.profiles import PROFILES, profile_for
from helpers import run_project, stored_cases

HERE = Path(__file__).parent / "signals.py"


@pytest.fixture(autouse=True)
def _signals():
    names = {
        "modality": {"signal": "SignalData"},
        "metric": {"signal_gain": "SignalGain"},
        "dataset": {"tests_waves": "Waves"},
        "model": {"tests_wave_model": "WaveModel"},
    }
    forget = register({kind: {name: f"{HERE}:{found}" for name, found in those.items()} for kind, those in names.items()})
    yield
    forget()


def test_images_come_first_and_are_judged_as_ever() -> None:
    assert next(iter(known_modalities())) == "image"
    assert default_gate("photos") == {"psnr_gain": 3.0}
    assert gain_of(["psnr", "psnr_gain"]) == "psnr_gain"
    assert gain_of([]) == "psnr_gain"
    assert all(vars(profile_for(name, known_modalities()["image"])) == vars(PROFILES[name]) for name in PROFILES)


def test_the_dataset_chooses_matrix_and_gate() -> None:
    config = make_config({}, {"dataset": "tests_waves"})
    assert config.model == ("tests_wave_model",)
    assert config.threshold == {"signal_gain": 3.0}
    assert config.victims == 8
    assert make_config({}, {"dataset": "tests_waves", "model": "mlp", "threshold": "signal_gain=1"}).threshold == {"signal_gain": 1.0}
    assert make_config({}, {}).threshold == {"psnr_gain": 3.0}


def test_one_run_has_one_kind_of_data() -> None:
    with pytest.raises(ConfigError, match=r"one kind of data, got photos \(image\), tests_waves \(signal\)"):
        modality_of(["photos", "tests_waves"])


def test_what_does_not_fit_is_told_without_an_import() -> None:
    waves = {"attack": "dlg", "model": "tests_wave_model"}
    assert misfit("signal", **waves) == ""
    assert (
        misfit("signal", **{**waves, "attack": "ridge+ig"})
        == "the attack ridge is one on image data, and the dataset is one of signal data"
    )
    assert misfit("signal", **{**waves, "model": "lenet"}) == "the model lenet takes image data, and the dataset is one of signal data"
    assert misfit("signal", **waves, defense="sign | mixup").startswith("the defense mixup is one on image data")
    assert misfit("image", attack=f"{HERE}:Mean", model="lenet").startswith("the attack signals.py:Mean is one on signal data")


def test_a_signal_leaks_and_noise_hides_it() -> None:
    found = [
        gitbench.evaluate(
            attack="dlg(iterations=60, init='normal')", defense=defense, model="tests_wave_model", dataset="tests_waves", victims=8
        )
        for defense in ("none", "gaussian_noise(std=1.0)")
    ]
    assert [one.verdict for one in found] == ["leaks", "holds"], [one.verdict_reason for one in found]
    assert set(found[0].metrics) == {"signal_gain"} == {name for name, one in known_metrics().items() if one.modality == "signal"}
    assert found[0].certified is not None
    assert found[0].gate == {"signal_gain": 3.0}


def test_an_attack_on_other_data_is_an_error_that_names_it() -> None:
    found = gitbench.evaluate(attack="ridge", model="tests_wave_model", dataset="tests_waves", victims=2)
    assert found.error == "The attack ridge is one on image data, and this is signal data."
    found = gitbench.evaluate(attack="dlg", model="lenet", dataset="tests_waves", victims=2)
    assert found.error == "The model 'lenet' takes image data, and the dataset is one of signal data."


def test_a_defense_of_other_data_is_refused_by_name() -> None:
    found = gitbench.evaluate(attack="dlg(iterations=1)", defense="mixup", model="tests_wave_model", dataset="tests_waves", victims=2)
    assert found.error == "The defense mixup is one on image data, and this is signal data."


def test_a_dataset_must_say_which_data_it_has() -> None:
    import signals

    class Silent(signals.Waves):
        modality = "image"

    with pytest.raises(DataError, match="says that its modality is 'image', and its data are 'signal'"):
        gitbench.load_dataset(Silent())


@pytest.mark.usefixtures("warm")
def test_a_run_skips_what_does_not_fit_and_counts_it(pytester: pytest.Pytester) -> None:
    pytester.makepyprojecttoml("")
    result = run_project(
        pytester, "--gitbench", "--gitbench-dataset", "tests_waves", "--gitbench-attack", "dlg(iterations=60, init='normal')",
        "--gitbench-attack", "ridge", "--gitbench-report", "report", "-rs",
    )  # fmt: skip
    result.assert_outcomes(passed=2, skipped=2)
    result.stdout.fnmatch_lines(["*the attack ridge is one on image data, and the dataset is one of signal data*"])
    assert {case["case"]["attack"] for case in stored_cases(pytester.path).values()} == {"dlg(iterations=60, init='normal')"}
    table = (pytester.path / "leaderboards").glob("*.md")
    assert "signal_gain" in next(iter(table)).read_text()


def test_scores_of_images_are_those_of_before() -> None:
    truth = torch.rand(2, 2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    scores = gitbench.score(truth.flip(1), truth, blind=truth.mean((0, 1)))
    assert set(scores) == {"mse", "psnr", "ssim", "lpips", "psnr_gain"}
    assert float(scores["mse"].max()) == 0
