"""Folders of images in the ImageFolder layout."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image

from gitbench.clients.data import Data, Dataset, Split, from_uint8, need_path
from gitbench.core.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
PIXELS = 100_000_000  # of one image
GROUND = "white"  # behind what is transparent
_LAYOUT = "one folder of images per class, CLASS/IMAGE"
_KINDS = 8  # that a message names
_Turn = Image.Transpose
# What EXIF says of how the camera was held, and what undoes it.
_UPRIGHT = {
    2: _Turn.FLIP_LEFT_RIGHT,
    3: _Turn.ROTATE_180,
    4: _Turn.FLIP_TOP_BOTTOM,
    5: _Turn.TRANSPOSE,
    6: _Turn.ROTATE_270,
    7: _Turn.TRANSVERSE,
    8: _Turn.ROTATE_90,
}


class Folder(Dataset):
    """``train/CLASS/IMAGE`` (public) and ``test/CLASS/IMAGE`` (private), resized and centre-cropped.

    PNG, JPEG, WebP, TIFF and BMP are read, of several pages the first. Images are turned upright as their EXIF data say, and what is
    transparent is put on white. Files with other suffixes are left out with a warning that counts them; hidden ones without a word.

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
        train, test = root / "train", root / "test"
        classes = _classes(train)
        unknown = sorted(set(_classes(test)) - set(classes))
        if unknown:
            raise DataError(f"{test} holds the class {unknown[0]!r}, which {train} lacks. Public data must cover all classes.")
        if len(classes) == 1:
            raise DataError(f"{train} holds one class folder, {classes[0]!r}: expected two classes or more, {_LAYOUT}.")
        bare = [name for name in classes if not _images(train / name)]
        if bare and len(bare) < len(classes):
            found = _told(_others(train / bare[0]))
            raise DataError(f"{train / bare[0]} holds no image{found and ', only '}{found}. Public data must cover all classes.")
        index = {name: position for position, name in enumerate(classes)}
        data = Data(self._split(train, index), self._split(test, index), classes=len(classes), name=repr(self))
        skipped = _skipped(train) + _skipped(test)
        if skipped:
            warnings.warn(f"{root}: left out {_told(skipped)}. Read are {', '.join(SUFFIXES)} in class folders.", stacklevel=2)
        return data

    def _split(self, folder: Path, index: dict[str, int]) -> Split:
        images: list[np.ndarray] = []
        labels: list[int] = []
        for name in _classes(folder):
            for file in _images(folder / name)[: self.limit]:
                images.append(self._read(file))
                labels.append(index[name])
        if not images:
            found = _told(_skipped(folder)) or "none"
            raise DataError(f"{folder} holds no image: expected files ending in {', '.join(SUFFIXES)} in its class folders, found {found}.")
        return Split(from_uint8(torch.from_numpy(np.stack(images))), torch.tensor(labels))

    def _read(self, file: Path) -> np.ndarray:
        try:
            mode, image = _opened(file)
        except Exception as error:  # damaged bytes reach Pillow, zlib and struct, each with errors of its own
            kinds = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
            raise DataError(f"{file}: expected a readable {kinds} image, got: {error}. Replace or delete it.") from error
        if mode.startswith(("I", "F")):  # Pillow clips these at 255
            raise DataError(f"{file}: expected 8 bits per channel, got Pillow mode {mode}. Save it again with 8 bits.")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        return np.asarray(image.resize((self.size, self.size), Image.Resampling.BOX))


def _opened(file: Path) -> tuple[str, Image.Image]:
    """Pillow's mode, and the image upright as RGB. Nothing is unpacked before the size is known."""
    if not (file.is_file() or file.is_dir()):  # a pipe would be waited for, for ever
        raise OSError("no regular file")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # These formats alone: others run programs (EPS).
        with Image.open(file, formats=FORMATS) as opened:
            if opened.width * opened.height > PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels, at most {PIXELS} are read")
            opened.load()
            return opened.mode, _on_ground(_upright(opened))


def _upright(image: Image.Image) -> Image.Image:
    """Undo how the camera was held. EXIF data that cannot be read say nothing of it, as in any viewer."""
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # noqa: BLE001 - damaged bytes again
        return image
    return image if turn is None else image.transpose(turn)


def _on_ground(image: Image.Image) -> Image.Image:
    if image.getbands()[-1] not in "Aa" and "transparency" not in image.info:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, GROUND), image).convert("RGB")


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise DataError(f"Expected the folder {folder} with one folder per class, found none.")
    classes = sorted(item.name for item in _listed(folder) if item.is_dir())
    if not classes:
        raise DataError(f"{folder} holds no class folders: expected {_LAYOUT}, found {_told(_skipped(folder)) or 'nothing'}.")
    return classes


def _images(folder: Path) -> list[Path]:
    return sorted(file for file in _listed(folder) if file.suffix.lower() in SUFFIXES)


def _others(folder: Path) -> Counter[str]:
    """What is not read in a class folder, by suffix."""
    return Counter(_kind(item) for item in _listed(folder) if item.suffix.lower() not in SUFFIXES)


def _skipped(folder: Path) -> Counter[str]:
    """What is not read of a split: the same of all class folders, and the files beside these."""
    found: Counter[str] = Counter()
    for item in _listed(folder):
        found += _others(item) if item.is_dir() else Counter([f"{_kind(item)} outside of class folders"])
    return found


def _kind(item: Path) -> str:
    return "folder" if item.is_dir() else ascii(item.suffix.lower())[1:-1] or "without suffix"


def _told(found: Counter[str]) -> str:
    """``180 .gif, 1 .txt``: the kinds that are most frequent, and how many files are of others."""
    kinds = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in kinds[_KINDS:])
    return ", ".join([*(f"{count} {kind}" for kind, count in kinds[:_KINDS]), *([f"{rest} of other kinds"] if rest else [])])


def _listed(folder: Path) -> list[Path]:
    """What is in a folder and not hidden."""
    try:
        return [item for item in folder.iterdir() if not item.name.startswith(".")]
    except OSError as error:
        raise DataError(f"Cannot read the folder {folder}: {error}. Check its permissions.") from error
