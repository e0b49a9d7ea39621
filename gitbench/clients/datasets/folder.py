"""Folders of images in the ImageFolder layout."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from gitbench.clients.data import Data, Dataset, Split, from_uint8, need_path
from gitbench.core.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg")
FORMATS = ("PNG", "JPEG")
PIXELS = 100_000_000  # of one image


class Folder(Dataset):
    """``train/CLASS/*.png|jpg`` (public) and ``test/CLASS/...`` (private), resized and centre-cropped.

    Args:
        path: the folder that holds ``train`` and ``test``.
        size: side of the square images in pixels.
        limit: at most so many images per class and split; None takes all.
    """

    name = "folder"

    def __init__(self, *, path: str, size: int = 32, limit: int | None = None) -> None:
        if type(size) is not int or (limit is not None and type(limit) is not int):
            raise ValueError(f"expected whole numbers, got size={size!r} and limit={limit!r}")
        if not 1 <= size <= 1024 or (limit is not None and limit < 1):
            raise ValueError(f"expected size in 1..1024 and limit >= 1, got {size} and {limit}")
        self.path = path
        self.size = size
        self.limit = limit

    def load(self) -> Data:
        root = need_path(self.path, "an image folder with train/ and test/")
        classes = _classes(root / "train")
        unknown = sorted(set(_classes(root / "test")) - set(classes))
        if unknown:
            raise DataError(
                f"{root / 'test'} holds the class {unknown[0]!r}, which {root / 'train'} lacks. Public data must cover all classes."
            )
        bare = [name for name in classes if not any(file.suffix.lower() in SUFFIXES for file in _listed(root / "train" / name))]
        if bare and len(bare) < len(classes):
            raise DataError(f"{root / 'train' / bare[0]} holds no image. Public data must cover all classes.")
        index = {name: position for position, name in enumerate(classes)}
        return Data(self._split(root / "train", index), self._split(root / "test", index), classes=len(classes), name=repr(self))

    def _split(self, folder: Path, index: dict[str, int]) -> Split:
        images: list[np.ndarray] = []
        labels: list[int] = []
        for name in _classes(folder):
            files = sorted(file for file in _listed(folder / name) if file.suffix.lower() in SUFFIXES)
            for file in files[: self.limit]:
                images.append(self._read(file))
                labels.append(index[name])
        if not images:
            raise DataError(f"{folder} holds no image: expected files ending in {', '.join(SUFFIXES)} in its class folders.")
        return Split(from_uint8(torch.from_numpy(np.stack(images))), torch.tensor(labels))

    def _read(self, file: Path) -> np.ndarray:
        try:
            mode, image = _opened(file)
        except Exception as error:  # damaged bytes reach Pillow, zlib and struct, each with errors of its own
            raise DataError(f"{file}: expected a readable PNG or JPEG image, got: {error}. Replace or delete it.") from error
        if mode.startswith(("I", "F")):  # Pillow clips these at 255
            raise DataError(f"{file}: expected 8 bits per channel, got Pillow mode {mode}. Save it again with 8 bits.")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BOX))


def _opened(file: Path) -> tuple[str, Image.Image]:
    """Pillow's mode, and the image as RGB. Nothing is unpacked before the size is known."""
    if not (file.is_file() or file.is_dir()):  # a pipe would be waited for, for ever
        raise OSError("no regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # These formats alone: others run programs (EPS).
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels, at most {PIXELS} are read")
            return opened.mode, opened.convert("RGB")


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"Expected the folder {folder} with one folder per class, found none.")
    classes = sorted(item.name for item in _listed(folder) if item.is_dir())
    if not classes:
        raise DataError(f"{folder} holds no class folders: expected {folder}/CLASS/*.png or .jpg.")
    return classes


def _listed(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error}. Check its permissions.") from error
