"""NumPy archives in the MedMNIST layout."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch

from gitbench.data import Data, Dataset, Split, from_uint8, need_path
from gitbench.errors import DataError


class Npz(Dataset):
    """Arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` in one file.

    Images are uint8 ``(N, H, W, C)`` or ``(N, H, W)``, labels integers ``(N,)`` or ``(N, 1)``.
    Pickled objects inside the archive are refused, never loaded.

    Args:
        path: the archive; its train split is public, its test split private.
        public: a further archive whose train split the attacker has too.
    """

    name = "npz"

    def __init__(self, *, path: str, public: str | None = None) -> None:
        self.path = path
        self.public = public

    def load(self) -> Data:
        file = need_path(self.path, "an npz archive")
        train = _read(file, "train")
        test = _read(file, "test")
        if self.public is not None:
            further = need_path(self.public, "an npz archive of further public data")
            images, labels = _read(further, "train")
            if images.shape[1:] != train[0].shape[1:]:
                raise DataError(f"Expected images of shape {train[0].shape[1:]} in {further} as in {file}, got {images.shape[1:]}.")
            train = np.concatenate([train[0], images]), np.concatenate([train[1], labels])
        classes = int(train[1].max()) + 1
        if int(test[1].max()) >= classes:
            raise DataError(f"{file}: test_labels hold class {int(test[1].max())}, but the train labels only 0..{classes - 1}.")
        return Data(_split(*train), _split(*test), classes=classes, name=repr(self))


def _read(file: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = _array(file, f"{split}_images")
    labels = _array(file, f"{split}_labels")
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
        raise DataError(f"{file}: expected {split}_images to be uint8 (N, H, W, 1 or 3) or (N, H, W), got {images.dtype} {images.shape}.")
    if images.ndim == 3:
        images = images[..., None]
    if min(images.shape) == 0:
        raise DataError(f"{file}: {split}_images is empty, shape {images.shape}. At least one image is needed.")
    flat = labels.reshape(-1) if labels.ndim in (1, 2) and labels.size == len(labels) else labels
    if flat.dtype.kind not in "iu" or flat.shape != (len(images),):
        raise DataError(
            f"{file}: expected {split}_labels to be integers ({len(images)},) or ({len(images)}, 1), "
            f"one per image, got {labels.dtype} {labels.shape}."
        )
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high >= 100_000:
        raise DataError(f"{file}: expected {split}_labels to count classes from 0, got {low}..{high}.")
    return images, flat.astype(np.int64)


def _array(file: Path, key: str) -> np.ndarray:
    try:
        return _member(file, key)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file}: expected a readable npz archive, but {key!r} cannot be read: {error}. Is the file complete?") from error
    except Exception as error:  # damaged bytes reach zipfile, zlib, tokenize and numpy, each with errors of its own
        if "pickle" in str(error).lower():
            raise DataError(f"{file}: {key!r} is, or holds, a pickled object, which gitbench never loads. Save plain arrays.") from None
        raise DataError(f"{file}: {key!r} is damaged or cannot be read: {error}. Save it again with numpy.savez.") from error


def _member(file: Path, key: str) -> np.ndarray:
    # Opened here, because numpy leaves the file open where it is no archive.
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            raise DataError(f"{file}: expected an npz archive, found {_described(stream.read(6))}.")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            if key not in archive.files:
                raise DataError(f"{file}: expected the array {key!r} (MedMNIST layout), found {', '.join(archive.files) or 'none'}.")
            return np.asarray(archive[key])


def _described(start: bytes) -> str:
    if start == b"\x93NUMPY":
        return "a single array. Save it with numpy.savez"
    if start[:1] == b"\x80":
        return "a pickled object, which gitbench never loads. Save plain arrays with numpy.savez"
    return "something else, or half of one. Is the file complete?"


def _split(images: np.ndarray, labels: np.ndarray) -> Split:
    return Split(from_uint8(torch.from_numpy(images)), torch.from_numpy(labels))
