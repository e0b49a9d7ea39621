"""Ctrl-C once: what is finished is kept and shown, pytest exits with 2, and the next run does the rest."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gitbench.store.folder import write_atomic
from helpers import ALONE, write_logged


@pytest.fixture(autouse=True)
def _heed_ctrl_c() -> Iterator[None]:
    """What a shell starts in the background ignores SIGINT, and so would all that it starts in turn."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def folder(tmp_path: Path, tiny_npz: Path) -> Path:
    write_logged(tmp_path, tiny_npz, attacks=5, wait="if which >= 2 and not Path('interrupted').exists(): time.sleep(3600)")
    return tmp_path


def start(folder: Path, *extra: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pytest", "--gitbench", "-p", "no:cacheprovider", *ALONE, *extra]
    # A group of its own: Ctrl-C in a terminal reaches all processes of the group.
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def finished(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in (folder / ".gitbench" / "cases").glob("*.json")}
    assert all(json.loads(content)["status"] == "done" for content in found.values())
    return found


def wait_for(folder: Path, lines: int) -> None:
    for _ in range(6000):
        log = folder / "started.log"
        if log.exists() and log.read_text().count("\n") >= lines:
            return
        time.sleep(0.1)
    raise AssertionError("the run did not get there")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")
@pytest.mark.parametrize(("extra", "started"), [(("-p", "no:xdist"), 3), (("-n", "2"), 4)], ids=["plain", "n2"])
def test_ctrl_c_once_keeps_shows_and_exits_with_two(folder: Path, extra: tuple[str, ...], started: int) -> None:
    run = start(folder, *extra)
    try:
        wait_for(folder, started)  # two are finished, and every process hangs in another
        while len(finished(folder)) < 2:
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)
        output, _ = run.communicate(timeout=600)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()
    assert run.returncode == pytest.ExitCode.INTERRUPTED == 2, output
    (row,) = [line for line in output.splitlines() if line.startswith("none ")]
    assert row.count("no control") == 2, output  # the partial matrix
    assert "not written, not measured yet:" in output
    assert "INTERNALERROR" not in output
    before = finished(folder)
    assert len(before) == 2
    assert not list((folder / ".gitbench").rglob("*.tmp"))
    assert not (folder / "leaderboards").exists()
    (folder / "interrupted").touch()
    again = start(folder)
    output, _ = again.communicate(timeout=600)
    after = finished(folder)
    assert len(after) == 5, output
    assert {name: after[name] for name in before} == before
    log = (folder / "started.log").read_text().split()
    assert sorted(set(log)) == ["0", "1", "2", "3", "4"]
    assert [log.count(which) for which in "01"] == [1, 1]  # what was finished was not measured again


# Writing


def interrupt_during(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    real = os.fsync

    def fsync(handle: int) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)  # so that the handler runs
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)


def test_ctrl_c_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt_during(monkeypatch, 1)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file.json", b"whole")
    assert (tmp_path / "file.json").read_bytes() == b"whole"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_twice_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)
    interrupt_during(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(tmp_path / "file.json", b"whole")
    assert list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGINT) is before


def test_who_ignores_ctrl_c_goes_on_ignoring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt_during(monkeypatch, 1)
        write_atomic(tmp_path / "file.json", b"whole")
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "file.json").read_bytes() == b"whole"
