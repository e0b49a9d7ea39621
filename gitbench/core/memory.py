"""Memory: the process's peak during one case, what is left to take, and how freed memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import sys
from pathlib import Path

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt(3)
_LARGEST = 2**30  # bytes of a tensor whose memory is kept
_MOST = 2**31 - 1  # bytes that are kept free; mallopt takes no more


def keep_freed_memory() -> None:
    """Let the C library keep what is freed for the next tensor, where it is glibc.

    By itself glibc gives each large tensor back to the system at once, and the next one costs the system as many page faults
    anew: a third of the time of the attacks on small networks. :func:`give_back_freed_memory` ends that for what is free by then.
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_MMAP_THRESHOLD, _LARGEST)
            mallopt(_TRIM_THRESHOLD, _MOST)


class _Mallinfo2(ctypes.Structure):
    """What glibc says of its heaps, in bytes and numbers of blocks: mallinfo2(3), of glibc 2.33 and later."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost")
    )


def give_back_freed_memory(*, beyond: int = 0) -> None:
    """Return what is free to the system, where the C library is glibc: after one phase of work, or before something large.

    Holes that were left by small tensors hold no large one, and would stay taken beside it.

    Args:
        beyond: bytes: nothing is returned while less is free, for the next tensor costs page faults anew.
    """
    if platform.libc_ver()[0] == "glibc":
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL(None)
            if beyond:
                library.mallinfo2.restype = _Mallinfo2
            if not beyond or library.mallinfo2().fordblks > beyond:
                library.malloc_trim(0)


def reset_peak(device: torch.device) -> None:
    """Start counting anew, where the system allows it (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        give_back_freed_memory()  # what was kept free is not this case's
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mb(device: torch.device) -> float | None:
    """Peak in MiB since :func:`reset_peak`: of the GPU's memory on CUDA, else the resident set of the process.

    Returns:
        None where the system does not say.
    """
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) / 1024, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)


def available_memory(device: torch.device, *, root: Path = Path("/")) -> int | None:
    """Bytes that can still be taken: of the GPU on CUDA, else of the machine and of the container around us.

    Args:
        device: where the tensors will be.
        root: of the file system that tells, ``/`` outside of tests.

    Returns:
        None where the system does not say.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        # What torch keeps for later is free to us.
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [_machine_memory(root), *_group_memory(root)]
    return min((value for value in found if value is not None), default=None)


def _machine_memory(root: Path) -> int | None:
    with contextlib.suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _group_memory(root: Path) -> list[int]:
    """What is left in our control group (version 2) and in those around it, where they have a limit."""
    top = root / "sys/fs/cgroup"
    own = ""
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                own = line.removeprefix("0::/")
    folder = top / own
    found = []
    for group in (folder, *folder.parents):
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max": no limit
            limit = int((group / "memory.max").read_text())
            found.append(max(0, limit - int((group / "memory.current").read_text()) + _file_cache(group)))
        if group == top:
            break
    return found


def _file_cache(group: Path) -> int:
    """Cached files count as used, but the system gives them up when memory is asked for."""
    names = ("inactive_file", "active_file")
    with contextlib.suppress(OSError, ValueError):
        pairs = (line.split() for line in (group / "memory.stat").read_text().splitlines())
        return sum(int(pair[1]) for pair in pairs if pair[0] in names)
    return 0
