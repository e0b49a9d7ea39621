"""Memory where the system tells little: gitbench runs without the modules and files that Windows lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from helpers import make_data, write_npz

WITHOUT = """
import pathlib, sys
sys.modules["resource"] = None  # an import of it raises ImportError

def refuse(self, *args, **kwargs):
    if str(self).startswith("/proc"):
        raise FileNotFoundError(str(self))
    return read(self, *args, **kwargs)

read, pathlib.Path.read_text = pathlib.Path.read_text, refuse
"""


def test_an_attack_runs_on_a_system_that_does_not_tell_its_peak(tmp_path: Path) -> None:
    data = write_npz(tmp_path / "tiny.npz", make_data())
    code = f"""{WITHOUT}
import gitbench
found = gitbench.evaluate(attack="ridge", model="mlp(hidden=(8,))", dataset={f"npz(path={str(data)!r})"!r}, victims=2, profile="quick")
assert found.status == "done", found.error
assert found.cost.peak_memory_mb is None
assert found.metrics["psnr"].mean is not None
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, cwd=tmp_path)
