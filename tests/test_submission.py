"""Reconstructions from others: scored on the victims they claim, refused where anything is odd, and no code of theirs runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import gitbench
from gitbench.attacker import attack as attack_module
from gitbench.cli import main
from gitbench.clients.data import draw_victims
from gitbench.core.errors import AttackError, GitbenchError, StoreError
from gitbench.core.random import make_generator
from gitbench.core.spec import parse_spec
from gitbench.publish.entries import read_entries
from gitbench.publish.manifest import Claim, read_claim
from gitbench.publish.submission import read_reconstructions, score_submission, write_observation
from gitbench.run.profiles import PROFILES
from gitbench.store.folder import Store
from hostile import CONTROLS, harmless, quickly

SHAPE = (3, 2, 3, 8, 8)


@pytest.fixture
def told(tiny_npz: Path) -> dict[str, object]:
    return {
        "kind": "gitbench submission",
        "schema": 1,
        "name": "fishing",
        "author": "Ann",
        "inputs": "found.safetensors",
        "dataset": f"npz(path={str(tiny_npz)!r})",
        "model": "mlp",
        "defense": "gaussian_noise(std=0.1)",
        "victims": 3,
        "batch_size": 2,
        "seed": 1,
    }


@pytest.fixture
def truth(tiny_npz: Path) -> torch.Tensor:
    data = gitbench.load_dataset(f"npz(path={str(tiny_npz)!r})")
    return draw_victims(data.private, victims=3, batch_size=2, seed=1)[0]


@pytest.fixture
def claim(tmp_path: Path, told: dict[str, object]) -> Callable[..., Path]:
    def write(inputs: torch.Tensor | None = None, **changes: object) -> Path:
        if inputs is not None:
            save_file({"inputs": inputs.contiguous()}, tmp_path / "found.safetensors")  # as docs/entries.md has it
        path = tmp_path / "claim.json"
        path.write_text(json.dumps({**told, **changes}))
        return path

    return write


# Scoring


def test_reconstructions_are_scored_on_the_victims_of_the_claim(claim: Callable[..., Path], truth: torch.Tensor, tmp_path: Path) -> None:
    guess = (truth.flip(1) * 0.9).clamp(0, 1)  # the order within a batch means nothing
    store = Store(tmp_path / "run")
    found = score_submission(claim(guess), store=store)
    expected = gitbench.score(guess, truth)["psnr"].mean(dim=1)
    assert found.metrics["psnr"].values == pytest.approx(expected.tolist())
    assert found.case.attack == "submission(author='Ann', name='fishing')"
    assert (found.case.victims, found.case.batch_size, found.case.seed, found.case.threat) == (3, 2, 1, "server")
    assert store.load(found.case_id) == found
    assert store.picture_path(found.case_id).is_file()
    (entry,) = read_entries([store.case_path(found.case_id)])  # what we write is taken by us
    assert entry.result.metrics == found.metrics


def test_the_truth_scores_as_the_truth_and_is_judged(claim: Callable[..., Path], truth: torch.Tensor) -> None:
    found = score_submission(claim(truth))
    assert found.metrics["psnr"].mean == 100
    assert found.verdict == "leaks"
    undefended = score_submission(claim(truth, defense="none"))
    assert undefended.verdict == "leaks"


def test_what_does_not_leak_acquits_nobody(claim: Callable[..., Path], truth: torch.Tensor) -> None:
    found = score_submission(claim(torch.full_like(truth, 0.5)))
    assert (found.verdict, found.metrics["psnr"].mean is not None) == ("inconclusive", True)


def test_npz_is_taken_too(claim: Callable[..., Path], truth: torch.Tensor, tmp_path: Path) -> None:
    path = claim()
    path.write_text(json.dumps({**json.loads(path.read_text()), "inputs": "found.npz"}))
    for dtype in ("float16", "float32", "float64"):
        np.savez(tmp_path / "found.npz", inputs=truth.numpy().astype(dtype))
        assert score_submission(path).metrics["psnr"].mean > 50, dtype


def test_other_reconstructions_are_another_case(claim: Callable[..., Path], truth: torch.Tensor) -> None:
    assert score_submission(claim(truth)).case_id != score_submission(claim(truth * 0.5)).case_id
    assert score_submission(claim(truth)).case_id == score_submission(claim(truth)).case_id


def test_a_submission_takes_part_in_the_worst_case(
    claim: Callable[..., Path], truth: torch.Tensor, tmp_path: Path, told: dict[str, object]
) -> None:
    options = {key: told[key] for key in ("dataset", "model", "defense", "victims", "batch_size", "seed")}
    gitbench.evaluate(attack="ridge", profile="quick", results=tmp_path / "run", **options)
    assert main(["score", str(claim(truth)), "--results", str(tmp_path / "run")]) == 0
    assert main(["leaderboard", str(tmp_path / "run"), "--out", str(tmp_path / "boards")]) == 0
    (board,) = (tmp_path / "boards").glob("*.md")
    line = next(line for line in board.read_text().partition("## Every attack")[2].splitlines() if line.startswith("| `gaussian_noise"))
    assert "without what others sent in" in line
    assert "leaks, by others" in line


def test_no_code_of_a_claim_runs(claim: Callable[..., Path], truth: torch.Tensor, tmp_path: Path) -> None:
    evil = tmp_path / "evil.py"
    evil.write_text("raise SystemExit('it ran')\nclass Evil: pass\n")
    found = score_submission(claim(truth, defense=f"{evil}:Evil", model=f"{evil}:Evil"))
    assert found.status == "done"
    with pytest.raises(StoreError, match="code that a claim names is not run"):
        score_submission(claim(truth, dataset=f"{evil}:Evil"))


def test_nothing_is_downloaded_for_a_claim(claim: Callable[..., Path], truth: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing is downloaded for a claim"):
        score_submission(claim(truth, dataset=f"cifar10(root={str(tmp_path)!r}, download=True)"))


def test_the_claims_profiles_are_the_configurations() -> None:
    assert set(get_args(Claim.model_fields["profile"].annotation)) == set(PROFILES)


# Hostile claims


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "result"}, "kind: "),
        ({"schema": 2}, "schema: "),
        ({"extra": 1}, "extra: "),
        ({"\x1b[31m" * 1000: 1}, "Extra inputs"),
        ({"name": ""}, "visible characters"),
        ({"name": "x" * 81}, "at most 80"),
        ({"author": "a\x1b[31m"}, "visible characters"),
        ({"inputs": "../found.safetensors"}, "beside this one"),
        ({"inputs": "/etc/passwd"}, "beside this one"),
        ({"inputs": "..\\found.npz"}, "beside this one"),
        ({"inputs": "found.pkl"}, "beside this one"),
        ({"inputs": "found.pt"}, "beside this one"),
        ({"dataset": "fotos"}, "Unknown dataset 'fotos'"),
        ({"dataset": "npz(path='missing.npz')"}, "found nothing there"),
        ({"dataset": "npz(path='/dev/zero')"}, "no regular file"),
        ({"model": "lenett"}, "Unknown model 'lenett'"),
        ({"defense": "prune"}, "Unknown defense 'prune'"),
        ({"threat": "godlike"}, "unknown threat model 'godlike'"),
        ({"profile": "huge"}, "profile: "),
        ({"victims": 0}, "victims: "),
        ({"victims": 10**30}, "victims: "),
        ({"victims": 999_999, "batch_size": 999_999}, "private images"),
        ({"victims": "3; rm"}, "victims: "),
        ({"batch_size": 1.5}, "batch_size: "),
        ({"seed": -1}, "seed: "),
        ({"dataset": "npz(path=__import__('os').getcwd())"}, "Cannot read the dataset"),
    ],
)
def test_a_claim_that_cannot_be_is_refused(claim: Callable[..., Path], truth: torch.Tensor, changes: dict, message: str) -> None:
    path = claim(truth)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with quickly(), pytest.raises(GitbenchError) as caught:
        score_submission(path)
    assert message in str(caught.value)
    assert harmless(str(caught.value))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe\x00", b"[" * 50_000, b" " * 2**17, b'{"kind": ' + b"9" * 5000 + b"}"]
)
def test_what_is_no_claim_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "claim.json"
    path.write_bytes(content)
    with quickly(), pytest.raises(StoreError, match=r"claim\.json"):
        read_claim(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    for name, read in (("claim.json", read_claim), ("found.safetensors", lambda path: read_reconstructions(path, SHAPE))):
        os.mkfifo(tmp_path / name)
        with pytest.raises(GitbenchError, match="found"):
            read(tmp_path / name)
    with pytest.raises(StoreError, match="something else"):
        read_claim(tmp_path)


@pytest.mark.parametrize("control", [*CONTROLS, "|`*_[x](y)<img src=x>#", "'", '"', "\\", "+", ")|("])
def test_names_are_escaped_or_refused(
    claim: Callable[..., Path], truth: torch.Tensor, control: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = claim(truth, name=f"a{control}b", author=f"c{control}d") if control != "\ud800" else claim(truth)
    status = main(["score", str(path), "--results", str(tmp_path / "run")])
    told = capsys.readouterr()
    assert harmless(told.out + told.err)
    if status == 0:
        (found,) = Store(tmp_path / "run").results()
        assert str(parse_spec("attack", found.case.attack)) == found.case.attack
        assert main(["leaderboard", str(tmp_path / "run"), "--out", str(tmp_path / "boards")]) == 0
        (board,) = (tmp_path / "boards").glob("*.md")
        assert harmless(board.read_text())
    else:
        assert status == 2
        assert "visible characters" in told.err


def test_a_file_that_is_missing_is_named(claim: Callable[..., Path]) -> None:
    with pytest.raises(AttackError, match=r"Cannot read the reconstructions .*found\.safetensors"):
        score_submission(claim())


# What the attacker of the case gets to see


@pytest.mark.parametrize(
    "defense", ["none", "gaussian_noise(std=0.1)", "parameter_drift(epochs=1, samples=16)", "clipping(max_norm=1.0) | pruning(rate=0.5)"]
)
def test_what_observe_writes_is_what_an_attack_saw_bit_for_bit(
    claim: Callable[..., Path], told: dict[str, object], defense: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    call = attack_module.Attack.__call__

    def spy(self, observation, **options):
        seen.append(observation)
        return call(self, observation, **options)

    monkeypatch.setattr(attack_module.Attack, "__call__", spy)
    options = {key: told[key] for key in ("dataset", "model", "victims", "batch_size", "seed")}
    result = gitbench.evaluate(attack="ridge", defense=defense, device="cpu", **options)
    assert result.status == "done"
    write_observation(claim(defense=defense), tmp_path / "seen.safetensors", device="cpu")
    written = load_file(tmp_path / "seen.safetensors")
    update = seen[0].update.tensors  # of the case; its control comes after it
    assert {name for name in written if name.startswith("update/")} == {f"update/{name}" for name in update}
    for name, tensor in update.items():
        assert torch.equal(written[f"update/{name}"], tensor), name
    for name, tensor in seen[0].model.state_dict().items():
        assert torch.equal(written[f"model/{name}"], tensor), name
    assert "labels" not in written  # what is not granted is not written
    # The same in Python, as docs/entries.md has it.
    data = gitbench.load_dataset(told["dataset"])
    model = gitbench.load_defense(defense).modify_model(gitbench.load_model("mlp", data, seed=1))
    inputs, labels = draw_victims(data.private, victims=3, batch_size=2, seed=1)
    generator = make_generator(1, "defense", defense)
    again = gitbench.client_update(model, inputs, labels, defense=defense, generator=generator, public=data.public)
    for name, tensor in update.items():
        assert torch.equal(again.tensors[name], tensor), name


def test_only_what_the_threat_model_grants_is_written(claim: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "seen.safetensors"
    write_observation(claim(threat="eavesdropper"), out, device="cpu")
    assert all(name.startswith("update/") for name in load_file(out))
    assert main(["observe", str(claim(threat="upper-bound")), "--out", str(out)]) == 0
    found = load_file(out)
    assert found["labels"].shape == (3, 2)
    assert any(name.startswith("model/") for name in found)


def test_the_rounds_of_a_claim_are_written_one_by_one_and_combined(claim: Callable[..., Path], tmp_path: Path) -> None:
    once, often = tmp_path / "once", tmp_path / "often"
    write_observation(claim(), once, device="cpu")
    write_observation(claim(rounds=3), often, device="cpu")
    one, found = load_file(once), load_file(often)
    assert not [name for name in one if name.startswith("rounds/")]
    for name in (name.removeprefix("update/") for name in one if name.startswith("update/")):
        rounds = torch.stack([found[f"rounds/{number}/{name}"] for number in range(3)])
        torch.testing.assert_close(found[f"update/{name}"], rounds.mean(0))
        assert torch.equal(rounds[0], one[f"update/{name}"])


def test_observing_what_cannot_be_is_an_error_and_no_traceback(
    claim: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["observe", str(claim(model="lenett")), "--out", str(tmp_path / "x")]) == 2
    assert "Unknown model 'lenett'" in capsys.readouterr().err
    assert main(["score", str(tmp_path / "none.json")]) == 2
