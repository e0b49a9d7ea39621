"""The pictures of a case, cut into one small PNG for each victim. Nothing is decoded here that gitbench did not write as PNG."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from gitbench.core.errors import StoreError
from gitbench.store.folder import read_file

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

LARGEST = 2**24  # bytes of a strip; one of 16 images of 128 pixels has less than two million
MOST_PIXELS = 2**24
BEFORE = 8  # victims in a strip that does not say how many it has


class Pictures:
    """Single pictures by their name, each kept once: all attacks are shown beside the same truth.

    Args:
        most: bytes of all of them, so that the page stays light.
    """

    def __init__(self, *, most: int) -> None:
        self.most = most
        self.size = 0
        self.by_name: dict[str, str] = {}

    @property
    def full(self) -> bool:
        return self.size >= self.most

    def add(self, strip: Path, *, victims: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of a strip's pictures: truths and reconstructions; none where there is no strip that can be read."""
        found = cut(strip, victims=victims)
        if found is None:
            return (), ()
        truth, reconstruction = (tuple(self._keep(one) for one in row) for row in found)
        return truth, reconstruction

    def _keep(self, png: bytes) -> str:
        name = hashlib.sha256(png).hexdigest()[:16]
        if name not in self.by_name:
            self.by_name[name] = base64.b64encode(png).decode()
            self.size += len(self.by_name[name])
        return name


def cut(strip: Path, *, victims: int) -> tuple[list[bytes], list[bytes]] | None:
    """The truths and the reconstructions of a strip, each as PNG in its own resolution; None where that cannot be read."""
    import numpy as np
    from PIL import Image

    try:
        content = read_file(strip, most=LARGEST)
        with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
            if image.width * image.height > MOST_PIXELS:
                return None
            told = str(image.info.get("victims", ""))
            pixels = np.asarray(image.convert("L" if image.mode == "L" else "RGB"))
    except (StoreError, OSError, SyntaxError, ValueError):
        return None
    count = min(int(told) if told.isascii() and told.isdigit() and len(told) < 4 else BEFORE, victims)
    height, width = pixels.shape[:2]
    if count < 1 or height % 2 or width % count:
        return None
    pixels = _shrunk(pixels, height // 2, width // count)
    rows = np.split(pixels, 2, axis=0)
    first, second = ([_png(Image.fromarray(np.ascontiguousarray(one))) for one in np.split(row, count, axis=1)] for row in rows)
    return first, second


def _shrunk(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Without the enlargement that strips have: the browser does that again."""
    import numpy as np

    for factor in range(min(height, width), 1, -1):
        if height % factor or width % factor:
            continue
        small = pixels[::factor, ::factor]
        if np.array_equal(small.repeat(factor, axis=0).repeat(factor, axis=1), pixels):
            return small
    return pixels


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
