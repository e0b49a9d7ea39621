"""The Python interface and the command line, as the documentation shows them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import gitbench
from gitbench.cli import main
from gitbench.core.errors import ConfigError


class Scaled(gitbench.Defense):
    def __init__(self, *, scale: float = 0.1):
        self.scale = scale

    def protect(self, update, *, generator):
        return update.map(lambda name, tensor: tensor * self.scale)


@pytest.fixture
def options(tiny_npz: Path) -> dict[str, object]:
    return {"attack": "ridge", "model": "mlp", "dataset": f"npz(path={str(tiny_npz)!r})", "victims": 8, "device": "cpu"}


def test_evaluate_gives_the_same_result_for_the_same_seed(options) -> None:
    first, second, other = (gitbench.evaluate(defense="pruning(rate=0.5)", seed=seed, **options) for seed in (0, 0, 1))
    assert first.metrics == second.metrics
    assert first.metrics != other.metrics
    psnr = first.metrics["psnr"]
    assert psnr.low <= psnr.mean <= psnr.high
    assert len(psnr.values) == 8
    assert gitbench.Result.model_validate_json(first.to_json()) == first


def test_evaluate_takes_a_defense_as_an_object(options, tmp_path: Path) -> None:
    result = gitbench.evaluate(defense=Scaled(scale=0.5), results=tmp_path, **options)
    assert result.case.defense == "Scaled(scale=0.5)"
    assert result.verdict == "leaks"
    assert result.baselines.control["psnr_gain"] > 3
    assert {path.name for path in tmp_path.iterdir()} == {"cases", "pictures", "locks", "models"}


def test_a_result_tells_which_local_model_was_drawn(options) -> None:
    drift = "parameter_drift(epochs=1, samples=8)"
    first, again, other = (gitbench.evaluate(defense=drift, seed=seed, **options).local_model for seed in (0, 0, 1))
    assert len(first) == 8
    assert first == again != other
    assert gitbench.evaluate(defense="pruning(rate=0.5)", **options).local_model == ()


def test_batches_are_scored_in_any_order(options) -> None:
    result = gitbench.evaluate(batch_size=2, **options)
    assert len(result.metrics["psnr"].values) == 8


def test_too_many_victims_is_an_error_that_says_so(options) -> None:
    result = gitbench.evaluate(**{**options, "victims": 100})
    assert result.status == "error"
    assert "Lower --gitbench-victims" in result.error


def test_few_victims_are_flagged_and_one_is_never_judged(options) -> None:
    result = gitbench.evaluate(**{**options, "victims": 1})
    assert "few-victims" in result.flags
    assert result.verdict == "inconclusive"


def test_upper_bound_grants_labels(options) -> None:
    result = gitbench.evaluate(**{**options, "attack": "ig(iterations=3, labels='known')"}, threat="upper-bound")
    assert result.status == "done"
    refused = gitbench.evaluate(**{**options, "attack": "ig(iterations=3, labels='known')"})
    assert "needs labels" in refused.error


def test_gradients_of_another_model_mode_are_measured(options) -> None:
    result = gitbench.evaluate(**{**options, "model": "resnet(width=4, mode='train')", "batch_size": 2, "victims": 4})
    assert result.status == "done"
    assert result.settings["model.mode"] == "train"


def test_the_command_line_lists_and_rebuilds(options, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "attack"]) == 0
    assert re.search(r"attack +ridge +gitbench\.attacker\.attacks\.ridge:Ridge", capsys.readouterr().out)
    assert main(["leaderboard", str(tmp_path / "none")]) == 2
    assert "No finished result" in capsys.readouterr().err
    gitbench.evaluate(defense="gaussian_noise(std=3.0) | pruning(rate=0.5)", results=tmp_path, **options)
    assert main(["leaderboard", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    (board,) = (tmp_path / "out").glob("*.md")
    text = board.read_text()
    assert "`gaussian_noise(std=3.0) \\| pruning(rate=0.5)`" in text
    assert "Attacks on undefended gradients" in text


def test_importing_gitbench_imports_no_torch() -> None:
    code = "import sys, gitbench; assert 'torch' not in sys.modules; gitbench.load_dataset; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="evaluat"):
        gitbench.evaluat  # noqa: B018


def test_the_python_example_of_the_documentation(tiny_npz: Path) -> None:
    import torch

    data = gitbench.load_dataset(f"npz(path={str(tiny_npz)!r})")
    model = gitbench.load_model("lenet", data)
    inputs, labels = data.private.inputs[:4].reshape(2, 2, *data.input_shape), data.private.labels[:4].reshape(2, 2)
    generator = torch.Generator().manual_seed(0)
    for defense in ("pruning(rate=0.5)", gitbench.load_defense("pruning(rate=0.5)")):
        update = gitbench.client_update(model, inputs, labels, defense=defense, generator=generator)
        observation = gitbench.Observation(
            update=update, model=model, input_shape=data.input_shape, labels=labels, public=data.public, defense=defense
        )
        reconstruction = gitbench.load_attack("ig(iterations=3)")(observation, generator=generator)
        scores = gitbench.score(reconstruction.inputs, inputs)
        assert {name: values.shape for name, values in scores.items()} == dict.fromkeys(("mse", "psnr", "ssim", "lpips"), (2, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "qick"}, r"Unknown profile 'qick'\. Did you mean 'quick'"),
        ({"gate": {"psnr_gian": 3}}, r"Unknown metric 'psnr_gian' in a threshold\. Did you mean 'psnr_gain'"),
        ({"gate": {"psnr_gain": float("nan")}}, "Expected a finite number as the threshold of psnr_gain"),
        ({"gate": {}}, "Expected at least one threshold"),
        ({"victims": 0}, "The option victims is 0"),
        ({"victims": "auto"}, "Expected a number of victims, got 'auto'"),
        ({"batch_size": -1}, "The option batch-size is -1"),
        ({"device": "tpu"}, "The option device is 'tpu'"),
        ({"threat": "sever"}, r"Unknown threat model 'sever'\. Did you mean 'server'"),
    ],
)
def test_arguments_are_checked_as_options_are(options, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gitbench.evaluate(**{**options, **changes})
