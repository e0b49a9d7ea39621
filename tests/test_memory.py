"""Memory where the system tells little: gitbench runs without the modules and files that Windows lacks."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gitbench.core.memory import keep_freed_memory
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


FAULTS = """
import platform, resource, sys
import torch
from gitbench.core.memory import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
before = 0
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
def test_freed_memory_is_taken_again_without_a_page_fault() -> None:
    def faults(how: str) -> int:
        return int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)

    assert faults("kept") < 1000 < faults("given back")


KEPT_FREE = """
import torch
from gitbench.core.memory import keep_freed_memory, peak_memory_mb, reset_peak

keep_freed_memory()
cpu = torch.device("cpu")
parts = [torch.ones(2**20) for _ in range(100)]  # 400 MiB
del parts
reset_peak(cpu)
print(peak_memory_mb(cpu) or 0)
torch.ones(2**26)
print(peak_memory_mb(cpu) or 0)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
def test_what_an_earlier_case_left_free_is_not_in_the_peak_of_the_next() -> None:
    told = subprocess.run([sys.executable, "-c", KEPT_FREE], capture_output=True, text=True, check=True).stdout
    before, after = map(float, told.split())
    assert 200 < after - before < 300  # the 256 MiB of its own


GIVEN_BACK = """
import torch
from gitbench.core.memory import give_back_freed_memory, keep_freed_memory

keep_freed_memory()
parts = [torch.ones(2**20) for _ in range(100)]  # 400 MiB
del parts
for beyond in (2**40, 2**28, 0):
    give_back_freed_memory(beyond=beyond)
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmRSS:")))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps memory by rules of its own")
def test_much_that_is_free_is_given_back_and_little_is_kept() -> None:
    told = subprocess.run([sys.executable, "-c", GIVEN_BACK], capture_output=True, text=True, check=True).stdout
    kept, given, nothing = (int(line) / 1024 for line in told.split())
    assert kept - given > 350
    assert given - nothing < 50


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", lambda _: pytest.fail("looked into it"))
    keep_freed_memory()
