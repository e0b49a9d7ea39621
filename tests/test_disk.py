"""A disk or a clock in trouble, and several runs at once: said clearly, and nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import gitbench
from gitbench.attacker.fit_cache import FitCache
from gitbench.core.errors import StoreError
from gitbench.run.bench import Bench, case_of
from gitbench.store.folder import Store
from gitbench.store.result import NOT_JUDGED, SCHEMA
from helpers import ALONE

ATTACK = """
import os, time
from pathlib import Path
import torch
import gitbench

class Logged(gitbench.Attack):
    requires = frozenset({"architecture"})

    def __init__(self, *, which: int = 0, seconds: float = 0.0):
        self.which = which
        self.seconds = seconds

    def run(self, observation, state, *, generator, progress):
        time.sleep(self.seconds)
        with Path("measured.log").open("a") as log:
            log.write(f"{self.which}\\n")
        return torch.rand((observation.update.victims, observation.batch_size, *observation.input_shape), generator=generator)
"""


@pytest.fixture
def bench(warm: None, pytester: pytest.Pytester, tiny_npz: Path) -> pytest.Pytester:
    attacks = [f"attacks.py:Logged(which={which})" for which in range(3)]
    pytester.makepyprojecttoml(
        f"[tool.gitbench]\ndataset = \"npz(path={str(tiny_npz)!r})\"\nmodel = 'mlp'\ndefense = 'none'\nvictims = 2\nattack = {attacks!r}\n"
    )
    pytester.makepyfile(attacks=ATTACK)
    return pytester


def run(bench: pytest.Pytester, *arguments: str) -> str:
    """The output. No run of these tests may end in a traceback of ours."""
    done = bench.runpytest_inprocess("--gitbench", "--color=no", *arguments)
    text = "\n".join([*done.outlines, *done.errlines])
    assert "Traceback" not in text, text
    assert "INTERNALERROR" not in text, text
    assert not re.search(r"\.py:\d+: \w+Error", text), text
    return text


def files(bench: pytest.Pytester) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (bench.path / ".gitbench" / "cases").glob("*.json")}


def measured(bench: pytest.Pytester) -> list[str]:
    log = bench.path / "measured.log"
    return log.read_text().split() if log.exists() else []


def refusing(monkeypatch: pytest.MonkeyPatch, number: int, *, under: Path, writes: Callable[[], bool] = lambda: True) -> None:
    """Every attempt to write below a folder fails. (Permissions would not do: they do not stop root.)"""
    real = os.open

    def opened(path: object, flags: int, *arguments: object, **options: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR) and str(under) in os.path.abspath(str(path)) and writes():
            raise OSError(number, os.strerror(number), str(path))
        return real(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", opened)


# A full disk


def test_a_disk_that_fills_up_loses_only_what_does_not_fit(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = os.fsync, []

    def fsync(handle: int) -> None:
        if len(written) >= 2:  # the first cell's picture and result
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(handle)
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        text = run(bench)
    assert text.count("No space left on device. Free the disk or choose another folder.") >= 2
    assert "1 skipped" in text  # its attack guesses at random: no control
    assert "2 failed" in text
    before = files(bench)
    assert len(before) == 1
    assert not list((bench.path / ".gitbench").rglob("*.tmp"))
    assert "3 skipped" in run(bench)
    after = files(bench)
    assert len(after) == 3
    assert before.items() <= after.items()
    assert measured(bench).count("0") == 1


def test_a_full_disk_while_learning_is_told(tmp_path: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.ENOSPC, under=tmp_path / "models")
    found = gitbench.evaluate(
        attack="ridge", model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", victims=2, device="cpu", results=tmp_path
    )
    assert found.status == "error"
    assert "models" in found.error
    assert "No space left on device" in found.error
    assert "Free the disk or choose another folder" in found.error


# A read-only folder


def test_a_complete_results_folder_may_be_read_only(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run(bench)
    before = files(bench)
    refusing(monkeypatch, errno.EROFS, under=bench.path / ".gitbench")
    assert "3 skipped" in run(bench)
    assert files(bench) == before
    assert len(measured(bench)) == 3


def test_a_read_only_results_folder_is_named(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run(bench, "--gitbench-attack", "attacks.py:Logged(which=0)")
    before = files(bench)
    refusing(monkeypatch, errno.EROFS, under=bench.path / ".gitbench")
    text = run(bench)
    assert "1 skipped" in text
    assert "2 failed" in text
    assert "Read-only file system" in text
    assert "Choose another folder with --gitbench-results." in text
    assert files(bench) == before
    assert measured(bench) == ["0"]  # nothing is measured that could not be kept


def test_a_lock_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.EACCES, under=tmp_path)
    with (
        pytest.raises(StoreError, match=r"Cannot lock .*case\.lock: .*Permission denied.*Choose another folder"),
        Store(tmp_path).lock("case"),
    ):
        pass


def test_a_read_only_leaderboard_folder_is_told_and_fails_no_cell(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing(monkeypatch, errno.EROFS, under=bench.path / "leaderboards")
    text = run(bench)
    assert "3 skipped" in text
    assert "not written, Cannot write" in text


# Results that cannot be used


def test_a_result_of_a_newer_gitbench_fails_its_cell_and_stays(bench: pytest.Pytester) -> None:
    run(bench)
    path = min((bench.path / ".gitbench" / "cases").iterdir())
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1, "novelty": 1}))
    before = files(bench)
    text = run(bench)
    assert f"has schema {SCHEMA + 1}; this gitbench reads up to {SCHEMA}. Upgrade gitbench, or choose another folder" in text
    assert "1 failed" in text
    assert "2 skipped" in text
    assert files(bench) == before


def test_a_truncated_result_is_kept_aside_and_measured_again(bench: pytest.Pytester) -> None:
    run(bench)
    path = min((bench.path / ".gitbench" / "cases").iterdir())
    half = path.read_bytes()[:200]
    path.write_bytes(half)
    text = run(bench, "-W", "default")
    assert "was damaged: it is kept as" in text
    assert "3 skipped" in text
    assert path.with_suffix(".damaged").read_bytes() == half
    assert json.loads(path.read_text())["status"] == "done"
    assert len(measured(bench)) == 4


def test_where_warnings_are_errors_a_truncated_result_fails_its_cell_once(bench: pytest.Pytester) -> None:
    run(bench)
    path = min((bench.path / ".gitbench" / "cases").iterdir())
    path.write_bytes(path.read_bytes()[:200])
    text = run(bench, "-W", "error")
    assert "1 failed, 2 skipped" in text
    assert "was damaged: it is kept as" in text
    assert "3 skipped" in run(bench, "-W", "error")


def test_a_damaged_result_that_another_run_has_moved_is_simply_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    path = store.case_path("abc")
    path.parent.mkdir(parents=True)
    path.write_text("rubbish")
    real = os.replace

    def replaced(source: Path, target: Path) -> None:
        real(source, target)  # the other run is faster
        real(source, target)

    monkeypatch.setattr(os, "replace", replaced)
    assert store.load("abc") is None


# The clock


def clock(monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Every look at the clock is ``jump`` seconds later than the last."""
    moments = iter(range(10**9))
    start = time.time()
    monkeypatch.setattr(time, "time", lambda: start + jump * next(moments))


def test_a_clock_that_runs_backwards_measures_each_case_once(bench: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run(bench)
    clock(monkeypatch, -3600.0)
    text = run(bench, "--gitbench-fresh")
    assert "3 skipped" in text
    assert sorted(measured(bench)) == ["0", "0", "1", "1", "2", "2"]
    assert len(files(bench)) == 3
    run(bench)  # and they are taken later
    assert len(measured(bench)) == 6


def test_fresh_takes_no_result_of_the_future(tmp_path: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = case_of(
        attack="ridge", defense="none", model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", threat="server", profile="quick",
        victims=2, batch_size=1, seed=0,
    )  # fmt: skip
    store, now = Store(tmp_path), time.time()
    with monkeypatch.context() as patched:
        patched.setattr(time, "time", lambda: now + 1e6)
        Bench(store=store, device="cpu").measure(case)
    fresh = Bench(store=store, device="cpu", fresh_since=now)
    assert fresh.stored(case) is None
    assert Bench(store=store, device="cpu").stored(case) is not None
    again = fresh.measure(case)
    assert again.finished_at < store.load(case.case_id).finished_at or store.load(case.case_id) == again
    assert fresh.stored(case) == again


def test_what_was_learned_here_is_fresh_whatever_the_clock_says(tmp_path: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    options = {
        "model": "mlp",
        "dataset": f"npz(path={str(tiny_npz)!r})",
        "threat": "server",
        "profile": "quick",
        "batch_size": 1,
        "seed": 0,
    }
    fitted = []
    bench = Bench(store=Store(tmp_path), device="cpu", fresh_since=now)
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    for victims in (2, 3):
        bench.measure(case_of(attack="ridge", defense="none", victims=victims, **options))
        fitted.append(next((tmp_path / "models").glob("*.safetensors")).stat().st_mtime_ns)
    assert fitted[0] == fitted[1]
    assert isinstance(bench._chain._fits, FitCache)


# Two runs at once


@pytest.mark.parametrize("broken", [False, True], ids=["done", "error"])
def test_while_another_measures_the_control_the_case_is_measured(
    broken: bool, tmp_path: Path, tiny_npz: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "attacks.py").write_text(ATTACK.replace("        return", "        assert not self.which\n        return"))
    case = case_of(
        model="mlp", dataset=f"npz(path={str(tiny_npz)!r})", threat="server", profile="quick", batch_size=1, seed=0, victims=2,
        attack=f"attacks.py:Logged(which={int(broken)})", defense="gaussian_noise(std=1.0)",
    )  # fmt: skip
    store, found = Store(tmp_path), list[gitbench.Result]()
    thread = threading.Thread(target=lambda: found.append(Bench(store=store, device="cpu").measure(case)))
    with store.lock(case.control().case_id):
        thread.start()
        until = time.monotonic() + 60
        while (ahead := store.load(case.case_id)) is None and time.monotonic() < until:
            time.sleep(0.02)
        assert ahead is not None
        assert (ahead.status, ahead.verdict_reason == NOT_JUDGED) == (("error", False) if broken else ("done", True))
        assert not found
    thread.join(60)
    (result,) = found
    assert result == store.load(case.case_id)
    assert result.finished_at == ahead.finished_at
    assert result.verdict_reason != NOT_JUDGED
    assert len((tmp_path / "measured.log").read_text().split()) == 2  # the case and its control


@pytest.mark.slow
def test_two_runs_in_one_folder_share_the_work(tmp_path: Path, tiny_npz: Path) -> None:
    (tmp_path / "attacks.py").write_text(ATTACK)
    attacks = [f"attacks.py:Logged(which={which}, seconds=0.3)" for which in range(8)]
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.gitbench]\ndataset = [\"npz(path='{tiny_npz}')\"]\nmodel = ['mlp']\ndefense = ['none']\nvictims = 2\nattack = {attacks!r}\n"
    )
    command = [sys.executable, "-m", "pytest", "--gitbench", "-p", "no:cacheprovider", *ALONE]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=600)[0] for process in runs]
    for process, output in zip(runs, outputs, strict=True):
        assert process.returncode == 0, output
        assert "8 skipped" in output
    assert sorted((tmp_path / "measured.log").read_text().split()) == [str(which) for which in range(8)]
    cases = list((tmp_path / ".gitbench" / "cases").iterdir())
    assert len(cases) == 8
    assert all(json.loads(path.read_text())["status"] == "done" for path in cases)
    assert len(list((tmp_path / "leaderboards").glob("*.md"))) == 1
