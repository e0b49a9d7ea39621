"""kill -9 at random moments loses nothing that was finished, and nothing is measured twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers import write_logged

KILLS, ATTACKS = 20, 40

# The parent imports torch once and forks: a run then starts in milliseconds, so that twenty kills take seconds.
SERVER = """
import os, sys
import pytest, torch
torch.set_num_threads(1)
import gitbench.measure.evaluator, gitbench.measure.metrics.lpips, torchvision
gitbench.measure.metrics.lpips._network(torch.device("cpu"))
import pytest_gitbench.session
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        null = os.open(os.devnull, os.O_RDWR)
        sys.stdout.flush()
        os.dup2(null, 0); os.dup2(null, 1)
        os._exit(pytest.main(["--gitbench", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def finished(folder: Path) -> dict[str, tuple[int, bytes]]:
    found = {}
    for path in (folder / ".gitbench" / "cases").glob("*.json"):
        assert json.loads(path.read_text())["status"] == "done"  # never half a file
        found[path.name] = (path.stat().st_mtime_ns, path.read_bytes())
    return found


@pytest.mark.slow
def test_twenty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path, tiny_npz: Path) -> None:
    # A moment each, so that kills hit it.
    write_logged(tmp_path, tiny_npz, attacks=ATTACKS, wait="time.sleep(0.05)")
    (tmp_path / "server.py").write_text(SERVER)
    moments = random.Random(0)
    server = subprocess.Popen([sys.executable, "server.py"], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    before: dict[str, tuple[int, bytes]] = {}
    killed = 0
    try:
        for kill in range(KILLS + 1):
            server.stdin.write("run\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            if kill < KILLS:
                time.sleep(moments.uniform(0.1, 1.2))
                os.kill(child, signal.SIGKILL)  # still unreaped at worst: never somebody else's process
            status = int(server.stdout.readline())
            killed += status == -signal.SIGKILL
            after = finished(tmp_path)
            for name, content in before.items():
                assert after.get(name) == content, f"{name} was finished before and has been lost or measured again"
            before = after
    finally:
        server.stdin.close()
        server.wait(timeout=30)
        server.stdout.close()
    assert killed >= 5, "the run ended before most kills: make the matrix longer"
    assert len(before) == ATTACKS
    log = (tmp_path / "measured.log").read_text().split("\n")[:-1]
    # Only a case in flight at a kill may be measured again.
    assert ATTACKS <= len(log) <= ATTACKS + killed
    assert not list((tmp_path / ".gitbench" / "cases").glob("*.damaged"))
