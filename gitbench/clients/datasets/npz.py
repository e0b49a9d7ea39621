"""NumPy archives in the MedMNIST layout."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch

from gitbench.clients.data import Data, Dataset, Split, from_uint8, need_path
from gitbench.core.errors import DataError
from gitbench.core.memory import available_memory

_GIB = 2**30
_MAGIC = b"\x93NUMPY"
_LONGEST_HEADER = 2**16  # numpy reads no header of more than 10,000 bytes, but unpacks it first
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


class Npz(Dataset):
    """Arrays ``train_images``, ``train_labels``, ``test_images``, ``test_labels`` in one file.

    Images are uint8 ``(N, H, W, C)`` or ``(N, H, W)``, labels integers ``(N,)`` or ``(N, 1)``.
    Pickled objects inside the archive are refused, never loaded.

    Args:
        path: the archive; its train split is public, its test split private.
        public: a further archive whose train split the attacker has too.
        channels: 3 repeats the one channel of grey images, for a model that takes colour; None leaves them as they are.
    """

    name = "npz"

    def __init__(self, *, path: str, public: str | None = None, channels: int | None = None) -> None:
        self.path = path
        self.public = public
        self.channels = channels

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
        return Data(self._split(*train), self._split(*test), classes=classes, name=repr(self))

    def _split(self, images: np.ndarray, labels: np.ndarray) -> Split:
        return Split(from_uint8(torch.from_numpy(images), channels=self.channels), torch.from_numpy(labels))


def _read(file: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    images = read_array(file, f"{split}_images", layout=" (MedMNIST layout)")
    labels = read_array(file, f"{split}_labels", layout=" (MedMNIST layout)")
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


def read_array(file: Path, key: str, *, layout: str = "") -> np.ndarray:
    """One array of an archive from anywhere; nothing is unpickled, and what claims too much is not unpacked.

    Args:
        file: the archive.
        key: the array's name.
        layout: what a message says of where the name comes from.

    Raises:
        DataError: there is no such array, or it cannot be read.
    """
    try:
        return _member(file, key, layout)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{file}: expected a readable npz archive, but {key!r} cannot be read: {error}. Is the file complete?") from error
    except Exception as error:  # damaged bytes reach zipfile, zlib, tokenize and numpy, each with errors of its own
        if "pickle" in str(error).lower():
            raise DataError(f"{file}: {key!r} is, or holds, a pickled object, which gitbench never loads. Save plain arrays.") from None
        raise DataError(f"{file}: {key!r} is damaged or cannot be read: {error}. Save it again with numpy.savez.") from error


def _member(file: Path, key: str, layout: str) -> np.ndarray:
    if not (file.is_file() or file.is_dir()):  # a pipe would be waited for, for ever
        raise DataError(f"{file}: expected an npz archive, found no regular file.")
    # Opened here, because numpy leaves the file open where it is no archive.
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            stream.seek(0)
            raise DataError(f"{file}: expected an npz archive, found {_described(stream.read(6))}.")
        stream.seek(0)
        with np.load(stream, allow_pickle=False) as archive:
            if key not in archive.files:
                raise DataError(f"{file}: expected the array {key!r}{layout}, found {', '.join(archive.files) or 'none'}.")
            if archive.zip is not None:
                _check_size(file, key, archive.zip)
            return np.asarray(archive[key])


def _check_size(file: Path, key: str, archive: zipfile.ZipFile) -> None:
    """Refuse what claims more than it holds, or holds more than there is memory for, before any of it is unpacked."""
    member = archive.getinfo(f"{key}.npy" if f"{key}.npy" in archive.namelist() else key)
    # As read, and as the float32 that training and attacks work with.
    needed, available = 5 * member.file_size, available_memory(torch.device("cpu"))
    if available is not None and needed > available:
        size = f"unpacks to {member.file_size / _GIB:.1f} GiB and needs {needed / _GIB:.1f}"
        raise DataError(f"{file}: {key!r} {size}; {available / _GIB:.1f} GiB are available.")
    with archive.open(member) as stream:
        start = stream.read(12)
        if not start.startswith(_MAGIC):
            return  # no array: what it is will be told where it is read
        header = int.from_bytes(start[8:10] if start[6:7] == b"\x01" else start[8:12], "little")
        if header > _LONGEST_HEADER:
            raise DataError(f"{file}: {key!r} is damaged: its header claims {header} bytes. Save it again with numpy.savez.")
        stream.seek(0)
        version = np.lib.format.read_magic(stream)
        if version not in _HEADERS:
            return
        shape, _, dtype = _HEADERS[version](stream)
        claimed = math.prod(shape) * dtype.itemsize
        left = member.file_size - stream.tell()
    if claimed > left and not dtype.hasobject:
        raise DataError(f"{file}: {key!r} is damaged: it claims {claimed} bytes, shape {shape}, and holds {left}. Save it again.")


def _described(start: bytes) -> str:
    if start == _MAGIC:
        return "a single array. Save it with numpy.savez"
    if start[:1] == b"\x80":
        return "a pickled object, which gitbench never loads. Save plain arrays with numpy.savez"
    return "something else, or half of one. Is the file complete?"
