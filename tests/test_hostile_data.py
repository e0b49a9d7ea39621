"""Hostile archives and images: refused quickly, before they take memory or time."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gitbench.clients.data import load_dataset
from gitbench.clients.datasets import npz
from gitbench.clients.datasets.folder import Folder
from gitbench.clients.datasets.npz import Npz
from gitbench.core.errors import DataError, GitbenchError, SpecError
from hostile import quickly

# npz


def member(header: bytes, *, version: bytes = b"\x01\x00", body: bytes = b"", size: int = 2) -> bytes:
    return b"\x93NUMPY" + version + len(header).to_bytes(size, "little") + header + body


def archive(path: Path, content: bytes, *, compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as opened:
        opened.writestr("train_images.npy", content)
    return path


def refused(path: Path, message: str, *, seconds: float = 5) -> None:
    with quickly(seconds), pytest.raises(DataError, match=message) as caught:
        load_dataset(Npz(path=str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("shape", ["(4000000000000,)", "(1000000, 1000, 1000, 3)", "(9223372036854775807, 9)", f"({10**30},)"])
def test_a_header_that_claims_terabytes_is_refused(tmp_path: Path, shape: str) -> None:
    header = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".encode()
    refused(
        archive(tmp_path / "x.npz", member(header, body=bytes(64))),
        r"'train_images' is damaged: it claims \d+ bytes, shape .*, and holds 64",
    )


def test_a_header_of_gigabytes_is_refused(tmp_path: Path) -> None:
    content = member(b" " * 2**20, version=b"\x02\x00", size=4)
    refused(archive(tmp_path / "x.npz", content, compression=zipfile.ZIP_DEFLATED), r"is damaged: its header claims 1048576 bytes")


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (64, 1024, 1024, 1)}"
    path = archive(tmp_path / "x.npz", member(header, body=bytes(2**26)), compression=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    monkeypatch.setattr(npz, "available_memory", lambda device: 2**28)
    refused(path, r"'train_images' unpacks to 0\.1 GiB and needs 0\.3; 0\.2 GiB are available")


def test_a_size_that_the_directory_lies_about_is_noticed(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.npz", member(b"{'descr': '|u1', 'fortran_order': False, 'shape': (64,)}", body=bytes(64)))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = struct.pack("<I", 2**32 - 2)  # the unpacked size
    path.write_bytes(content)
    refused(path, "x.npz: ")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.npz")
    refused(tmp_path / "x.npz", "expected an npz archive, found no regular file")


# Image folders


def two_classes(root: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.new("RGB", (9, 9)).save(root / split / name / "1.png")
    return root


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return two_classes(tmp_path)


def image_refused(root: Path, message: str) -> None:
    with quickly(10), pytest.raises(DataError, match=message) as caught:
        load_dataset(Folder(path=str(root)))
    assert "1.png: expected a readable PNG, JPEG, WEBP, TIFF or BMP image, got: " in str(caught.value)


def png(width: int, height: int, data: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (11_000, 11_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
@pytest.mark.parametrize("warned", ["error", "ignore"])
def test_an_image_of_too_many_pixels_is_refused(images: Path, width: int, height: int, warned: str) -> None:
    (images / "train" / "cat" / "1.png").write_bytes(png(width, height))
    with warnings.catch_warnings():
        warnings.simplefilter(warned)
        image_refused(images, r"pixels")


def test_no_other_format_is_opened_under_the_name_of_a_png(images: Path) -> None:
    # Pillow runs Ghostscript for PostScript.
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(executed) (w) file\n"
    (images / "train" / "cat" / "1.png").write_bytes(content)
    image_refused(images, "cannot identify image file")
    stream = io.BytesIO()
    Image.new("RGB", (9, 9)).save(stream, "GIF")
    (images / "train" / "cat" / "1.png").write_bytes(stream.getvalue())
    image_refused(images, "cannot identify image file")


def test_a_pipe_in_a_folder_is_not_waited_for(images: Path) -> None:
    (images / "train" / "cat" / "1.png").unlink()
    os.mkfifo(images / "train" / "cat" / "1.png")
    image_refused(images, "no regular file")


@pytest.fixture(scope="module")
def changing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return two_classes(tmp_path_factory.mktemp("changing"))


PICTURES = {}
for suffix, save_as in ((".png", "PNG"), (".jpg", "JPEG"), (".webp", "WEBP"), (".tif", "TIFF"), (".bmp", "BMP")):
    with io.BytesIO() as made:
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(made, save_as)
        PICTURES[suffix] = made.getvalue()


@settings(max_examples=150)
@given(
    suffix=st.sampled_from(sorted(PICTURES)),
    where=st.floats(0, 1, exclude_max=True),
    put=st.binary(max_size=8),
    cut=st.integers(0, 8),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_damaged_image_is_read_or_named(changing: Path, suffix: str, where: float, put: bytes, cut: int) -> None:
    content = PICTURES[suffix]
    at = math.floor(where * len(content))
    file = changing / "train" / "cat" / f"2{suffix}"
    file.write_bytes(content[:at] + put + content[at + cut :])
    try:
        data = load_dataset(Folder(path=str(changing)))
    except DataError as error:
        assert str(file) in str(error)
    else:
        assert data.input_shape == (3, 32, 32)
    finally:
        file.unlink()


def test_a_folder_that_cannot_be_listed_is_named(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"Cannot read the folder .*train: .*Permission denied.*Check its permissions"):
        load_dataset(Folder(path=str(images)))


def test_a_class_without_public_images_is_named(images: Path) -> None:
    (images / "train" / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"train/dog holds no image\. Public data must cover all classes"):
        load_dataset(Folder(path=str(images)))


def test_sixteen_bits_are_refused(images: Path) -> None:
    Image.fromarray(np.full((9, 9), 32768, np.uint16)).save(images / "train" / "cat" / "1.png")
    with pytest.raises(DataError, match=r"1\.png: expected 8 bits per channel, got Pillow mode I.*Save it again with 8 bits"):
        load_dataset(Folder(path=str(images)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("npz(path=5)", r"Expected the path of an npz archive, got 5"),
        ("npz(path='~no-such-user-here/x.npz')", r"Expected an npz archive at ~no-such-user-here/x\.npz, but there can be none: "),
        ("photos(public=1.5)", r"expected whole numbers and seed >= 0, got 1\.5, 64, 32, 0"),
        ("folder(path='x', size=0)", r"expected size in 1\.\.1024 and limit >= 1, got 0 and None"),
    ],
)
def test_data_that_cannot_be_is_named(text: str, message: str) -> None:
    with pytest.raises(GitbenchError, match=message):
        load_dataset(text)


@pytest.mark.parametrize("options", ["size=1.5", "size=True", "limit=1.5", "limit='a'"])
def test_folder_refuses_numbers_that_are_none(images: Path, options: str) -> None:
    with pytest.raises(SpecError, match=r"expected whole numbers, got size="):
        load_dataset(f"folder(path={str(images)!r}, {options})")


def test_photos_refuse_to_crop_for_ever() -> None:
    with quickly(), pytest.raises(SpecError, match="expected at most 100000 public and private crops per class, got 1000000000000 and 64"):
        load_dataset("photos(public=1000000000000)")
