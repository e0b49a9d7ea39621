"""breaching in an environment of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

VERSION = "0.1.2"


def peer_python() -> Path:
    """The interpreter of an environment with breaching and this one's torch, which is made in a cache folder where it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    torch, torchvision = (metadata.version(name).partition("+")[0] for name in ("torch", "torchvision"))
    folder = cache / "gitbench" / f"breaching-{VERSION}-torch-{torch}-python-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").exists():
        venv.create(folder, with_pip=True, clear=True)
        wanted = [f"breaching=={VERSION}", f"torch=={torch}", f"torchvision=={torchvision}"]
        subprocess.run([python, "-m", "pip", "install", "--quiet", *wanted], check=True)
        (folder / "complete").touch()
    return python
