"""Crops of the photographs that scikit-image ships in its wheel: real images, nothing to download."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gitbench.clients.data import Data, Dataset, Split, from_uint8
from gitbench.core.errors import DataError

# Class names as scikit-image documents them, and the files in its wheel.
FILES: dict[str, str] = {
    "astronaut": "astronaut.png",
    "chelsea": "chelsea.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "retina": "retina.jpg",
    "stereo_motorcycle": "motorcycle_left.png",
}
SMALLEST, LARGEST = 32, 128
MOST = 100_000  # crops per class
Box = tuple[int, int, int, int]


class Photos(Dataset):
    """Eight photographs as eight classes; square crops of 32-128 pixels, resized.

    The public crops come from one side of each photograph (two thirds of its longer axis), the
    private ones from the other: no pixel belongs to both.

    Args:
        public: public crops per class.
        private: private crops per class.
        size: side of the resized crops in pixels.
        seed: chooses the crops.
    """

    name = "photos"

    def __init__(self, *, public: int = 512, private: int = 64, size: int = 32, seed: int = 0) -> None:
        if not all(type(number) is int for number in (public, private, size, seed)) or seed < 0:
            raise ValueError(f"expected whole numbers and seed >= 0, got {public!r}, {private!r}, {size!r}, {seed!r}")
        if max(public, private) > MOST:
            raise ValueError(f"expected at most {MOST} public and private crops per class, got {public} and {private}")
        if min(public, private) < 1 or not 8 <= size <= LARGEST:
            raise ValueError(f"expected public, private >= 1 and size in 8..{LARGEST}, got {public}, {private}, {size}")
        self.public = public
        self.private = private
        self.size = size
        self.seed = seed

    def load(self) -> Data:
        random = np.random.default_rng(self.seed)
        public, private = [], []
        for file in FILES.values():
            image = read_photo(file)
            left, right = regions(image.size)
            public.append(self._crops(image, boxes(left, self.public, random)))
            private.append(self._crops(image, boxes(right, self.private, random)))
        return Data(self._split(public), self._split(private), classes=len(FILES), name=repr(self))

    def _crops(self, image: Image.Image, crops: list[Box]) -> np.ndarray:
        side = (self.size, self.size)
        return np.stack([np.asarray(image.crop(box).resize(side, Image.Resampling.BOX)) for box in crops])

    def _split(self, groups: list[np.ndarray]) -> Split:
        labels = torch.arange(len(groups)).repeat_interleave(len(groups[0]))
        return Split(from_uint8(torch.from_numpy(np.concatenate(groups))), labels)


def read_photo(file: str) -> Image.Image:
    """Open one file of scikit-image's wheel as RGB, without importing scikit-image."""
    found = importlib.util.find_spec("skimage")
    path = Path(found.origin).parent / "data" / file if found and found.origin else None
    if path is None or not path.is_file():
        raise DataError(f"Expected {file} in the installed scikit-image, found {path}. Run: pip install --force-reinstall scikit-image.")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} is damaged: {error}. Run: pip install --force-reinstall scikit-image.") from error


def regions(size: tuple[int, int]) -> tuple[Box, Box]:
    """Cut a photograph of ``(width, height)`` in two along its longer axis: (public, private) boxes."""
    width, height = size
    if width >= height:
        cut = width * 2 // 3
        return (0, 0, cut, height), (cut, 0, width, height)
    cut = height * 2 // 3
    return (0, 0, width, cut), (0, cut, width, height)


def boxes(region: Box, count: int, random: np.random.Generator) -> list[Box]:
    """Draw square crops that lie wholly inside ``region``: boxes (left, top, right, bottom)."""
    left, top, right, bottom = region
    drawn = []
    for _ in range(count):
        side = int(random.integers(SMALLEST, min(LARGEST, right - left, bottom - top) + 1))
        x = int(random.integers(left, right - side + 1))
        y = int(random.integers(top, bottom - side + 1))
        drawn.append((x, y, x + side, y + side))
    return drawn
