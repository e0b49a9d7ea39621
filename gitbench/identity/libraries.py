"""Where packages are installed: what lies there is other people's work."""

from __future__ import annotations

import functools
import sysconfig
from pathlib import Path


@functools.cache
def holds_libraries(folder: Path) -> bool:
    """Whether a folder is Python's own or one that packages are installed into."""
    paths = sysconfig.get_paths()
    known = {Path(paths[name]).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return folder.resolve() in known or folder.resolve().name in ("site-packages", "dist-packages")
