"""Archives: what they give, and that every damaged one is named, never half read and never executed."""

from __future__ import annotations

import gc
import io
import math
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gitbench.clients.data import load_dataset
from gitbench.clients.datasets.npz import Npz
from gitbench.core.errors import DataError, SpecError
from helpers import CIFAR10, check_data

Arrays = dict[str, np.ndarray]


def arrays(*, channels: int | None = 3, size: int = 8, train: int = 6, test: int = 3) -> Arrays:
    random = np.random.default_rng(0)
    shape = (size, size) if channels is None else (size, size, channels)
    return {
        "train_images": random.integers(0, 256, (train, *shape)).astype(np.uint8),
        "train_labels": np.arange(train) % 3,
        "test_images": random.integers(0, 256, (test, *shape)).astype(np.uint8),
        "test_labels": np.arange(test) % 3,
    }


def archive(path: Path, found: Arrays) -> Path:
    with path.open("wb") as file:
        np.savez(file, **found)
    return path


def refused(path: Path, message: str) -> None:
    """Reading fails, and the message names the file and what was expected."""
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(Npz(path=str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_npz_reads_the_medmnist_layout(tmp_path: Path, channels: int | None, column: bool, dtype: type) -> None:
    found = arrays(channels=channels)
    for key in ("train_labels", "test_labels"):
        labels = found[key].astype(dtype)
        found[key] = labels[:, None] if column else labels
    data = load_dataset(f"npz(path={str(archive(tmp_path / 'x.npz', found))!r})")
    check_data(data)
    assert data.input_shape == (channels or 1, 8, 8)
    assert (len(data.public), len(data.private), data.classes) == (6, 3, 3)
    assert data.public.labels.tolist() == [0, 1, 2, 0, 1, 2]
    images = found["test_images"].reshape(3, 8, 8, -1)
    np.testing.assert_allclose(data.private.inputs.numpy(), images.transpose(0, 3, 1, 2) / 255, atol=1e-7)


def test_npz_reads_a_compressed_archive_and_non_square_images(tmp_path: Path) -> None:
    found = arrays()
    for key in ("train_images", "test_images"):
        found[key] = found[key][:, :5]
    np.savez_compressed(tmp_path / "x.npz", **found)
    assert load_dataset(Npz(path=str(tmp_path / "x.npz"))).input_shape == (3, 5, 8)


def test_npz_adds_further_public_data(tmp_path: Path) -> None:
    first, further = arrays(), arrays(train=4)
    further = {"train_images": further["train_images"], "train_labels": np.array([[3], [4], [0], [1]])}
    paths = archive(tmp_path / "a.npz", first), archive(tmp_path / "b.npz", further)
    data = load_dataset(f"npz(path={str(paths[0])!r}, public={str(paths[1])!r})")
    check_data(data)
    assert (len(data.public), len(data.private), data.classes) == (10, 3, 5)
    assert data.public.labels.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]
    np.testing.assert_array_equal((data.public.inputs[6:] * 255).round().byte().permute(0, 2, 3, 1).numpy(), further["train_images"])


def test_npz_names_further_public_data_that_does_not_fit(tmp_path: Path) -> None:
    file = archive(tmp_path / "a.npz", arrays())
    other = archive(tmp_path / "b.npz", arrays(size=9))
    with pytest.raises(DataError, match=rf"Expected images of shape \(8, 8, 3\) in {other} as in {file}, got \(9, 9, 3\)"):
        load_dataset(Npz(path=str(file), public=str(other)))
    with pytest.raises(DataError, match=r"Expected an npz archive of further public data at .*missing.npz, found nothing there"):
        load_dataset(Npz(path=str(file), public=str(tmp_path / "missing.npz")))


def without(key: str) -> Callable[[Arrays], Arrays]:
    return lambda found: {name: array for name, array in found.items() if name != key}


def changed(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda found: {**found, key: change(found[key])}


DAMAGES = {
    "key": (without("test_labels"), r"expected the array 'test_labels' \(MedMNIST layout\), found train_images, train_labels, test_images"),
    "keys": (lambda _: {}, r"expected the array 'train_images' \(MedMNIST layout\), found none"),
    "float images": (changed("train_images", lambda a: a / 255), r"expected train_images to be uint8 .* got float64 \(6, 8, 8, 3\)"),
    "int images": (changed("test_images", lambda a: a.astype(np.int16)), r"expected test_images to be uint8 .* got int16"),
    "text images": (changed("train_images", lambda a: a.astype(str)), r"expected train_images to be uint8 .* got <U"),
    "flat images": (changed("train_images", lambda a: a.reshape(6, -1)), r"\(N, H, W, 1 or 3\) or \(N, H, W\), got uint8 \(6, 192\)"),
    "channels first": (changed("train_images", lambda a: a.transpose(0, 3, 1, 2)), r"\(N, H, W, 1 or 3\).* got uint8 \(6, 3, 8, 8\)"),
    "two channels": (changed("train_images", lambda a: a[..., :2]), r"\(N, H, W, 1 or 3\).* got uint8 \(6, 8, 8, 2\)"),
    "one number": (changed("train_images", lambda a: a[0, 0, 0, 0]), r"expected train_images to be uint8 .* got uint8 \(\)"),
    "no images": (changed("train_images", lambda a: a[:0]), r"train_images is empty, shape \(0, 8, 8, 3\)\. At least one image"),
    "no pixels": (changed("train_images", lambda a: a[:, :0]), r"train_images is empty, shape \(6, 0, 8, 3\)"),
    "few labels": (
        changed("train_labels", lambda a: a[:5]),
        r"train_labels to be integers \(6,\) or \(6, 1\), one per image, got int64 \(5,\)",
    ),
    "no labels": (
        changed("test_labels", lambda a: a[:0]),
        r"test_labels to be integers \(3,\) or \(3, 1\), one per image, got int64 \(0,\)",
    ),
    "many labels": (changed("test_labels", lambda a: np.stack([a, a], 1)), r"test_labels to be integers .* got int64 \(3, 2\)"),
    "row of labels": (changed("test_labels", lambda a: a[None]), r"test_labels to be integers .* got int64 \(1, 3\)"),
    "one label": (changed("test_labels", lambda a: a[0]), r"test_labels to be integers .* got int64 \(\)"),
    "float labels": (changed("train_labels", lambda a: a.astype(float)), r"train_labels to be integers .* got float64 \(6,\)"),
    "bool labels": (changed("train_labels", lambda a: a > 0), r"train_labels to be integers .* got bool"),
    "text labels": (changed("train_labels", lambda a: a.astype(str)), r"train_labels to be integers .* got <U"),
    "negative labels": (changed("train_labels", lambda a: a - 1), r"expected train_labels to count classes from 0, got -1\.\.1"),
    "huge labels": (
        changed("train_labels", lambda a: a.astype(np.uint64) + np.uint64(2**64 - 9)),
        r"train_labels to count classes from 0, got 18446",
    ),
    "new class": (changed("test_labels", lambda a: a + 5), r"test_labels hold class 7, but the train labels only 0\.\.2"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_npz_names_the_array_that_is_wrong(tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    refused(archive(tmp_path / "x.npz", change(arrays())), message)


def test_npz_needs_test_images_like_the_train_images(tmp_path: Path) -> None:
    file = archive(tmp_path / "x.npz", changed("test_images", lambda a: a[:, :4])(arrays()))
    refused(file, r"public and private images of .* of one shape, got \(3, 8, 8\) and \(3, 4, 8\)")


def test_npz_that_is_not_there(tmp_path: Path) -> None:
    refused(tmp_path / "x.npz", r"Expected an npz archive at .*x.npz, found nothing there\. Check the path; it is relative to")


@pytest.mark.parametrize("path", [5, "~no-such-user-here/x.npz", "x" * 300])
def test_npz_with_a_path_that_is_none(path: object) -> None:
    with pytest.raises((DataError, SpecError)):
        load_dataset(f"npz(path={path!r})")


@pytest.mark.parametrize("compressed", [False, True])
def test_npz_cut_short(tmp_path: Path, compressed: bool) -> None:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays())
    content = stream.getvalue()
    file = tmp_path / "x.npz"
    points = [0, 1, 2, 3, 4, 30, 60, 130, 200, *range(300, len(content) - 1, 97), len(content) - 22, len(content) - 1]
    for point in points:
        file.write_bytes(content[:point])
        refused(file, "x.npz: ")


@pytest.mark.parametrize("content", [b"train_images,train_labels\n1,2\n", b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", bytes(64), b"not a zip"])
def test_npz_that_is_no_archive(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    refused(file, "x.npz: ")


def test_npz_that_is_text_is_not_called_a_pickle(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    file.write_text("train_images,train_labels\n1,2\n")
    refused(file, "expected an npz archive")


def test_npz_that_is_a_folder(tmp_path: Path) -> None:
    refused(tmp_path, "expected a readable npz archive.*Is a directory")


def test_npz_that_is_a_single_array(tmp_path: Path) -> None:
    file = tmp_path / "x.npz"
    with file.open("wb") as stream:
        np.save(stream, np.zeros((3, 8, 8), np.uint8))
    refused(file, r"expected an npz archive, found a single array\. Save it with numpy.savez")


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("key", ["train_images", "test_labels"])
def test_npz_never_loads_a_pickle(tmp_path: Path, key: str) -> None:
    marker = tmp_path / "exploded"
    objects = np.array([Bomb(marker)], dtype=object)
    file = archive(tmp_path / "x.npz", {**arrays(), key: objects})
    refused(file, f"'{key}' is, or holds, a pickled object, which gitbench never loads")
    assert not marker.exists()
    with np.load(file, allow_pickle=True) as opened:
        opened[key]
    assert marker.exists()  # the bomb was live


def test_npz_never_loads_a_bare_pickle(tmp_path: Path) -> None:
    file, marker = tmp_path / "x.npz", tmp_path / "exploded"
    for content in (pickle.dumps(Bomb(marker)), pickle.dumps(Bomb(marker), protocol=0)):
        file.write_bytes(content)
        refused(file, "x.npz: ")
    with file.open("wb") as stream:
        np.save(stream, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    refused(file, "x.npz: ")
    with zipfile.ZipFile(file, "w") as opened:  # a member that is no array at all
        for key in arrays():
            opened.writestr(key, pickle.dumps(Bomb(marker)))
    refused(file, r"expected train_images to be uint8")
    assert not marker.exists()


def header(text: bytes) -> bytes:
    """An array file with any header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(64)


def in_archive(member: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("train_images.npy", member)
    return stream.getvalue()


def encrypted() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays())
    content = bytearray(stream.getvalue())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(in_archive(header(b"{'descr': 'zz', 'fortran_order': False, 'shape': (4,)}")), id="dtype"),
        pytest.param(in_archive(header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (-1,)}")), id="negative"),
        pytest.param(in_archive(header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999,)}")), id="huge"),
        pytest.param(in_archive(header(b"{'descr': '|u1', 'fortran_order': False, 'shape': (999,)}")), id="short"),
        pytest.param(in_archive(header(b"[1, 2]")), id="list"),
        pytest.param(in_archive(b"\x93NUMPY\x09\x00"), id="version"),
        pytest.param(in_archive(header(b"(((")), id="brackets"),  # tokenize.TokenError
        pytest.param(in_archive(header(b"{[]: 1}")), id="unhashable"),  # TypeError
        pytest.param(encrypted(), id="encrypted"),  # RuntimeError
    ],
)
def test_npz_with_a_damaged_member(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.npz"
    file.write_bytes(content)
    refused(file, "'train_images' (is damaged|cannot be read|is, or holds)")


def test_npz_that_is_damaged_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leaks: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", leaks.append)
    file = archive(tmp_path / "x.npz", arrays())
    file.write_bytes(file.read_bytes()[:200])
    refused(file, "x.npz: ")
    gc.collect()
    assert not leaks


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "x.npz"


@settings(max_examples=100)
@given(start=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06", b"\x93NUMPY", b"\x80\x04"]), rest=st.binary(max_size=200))
def test_random_bytes_only_ever_raise_data_error(scratch: Path, start: bytes, rest: bytes) -> None:
    scratch.write_bytes(start + rest)
    with pytest.raises(DataError):
        load_dataset(Npz(path=str(scratch)))


@settings(max_examples=100)
@given(where=st.floats(0, 1, exclude_max=True), value=st.integers(0, 255), compressed=st.booleans())
def test_a_changed_byte_is_noticed_or_harmless(scratch: Path, where: float, value: int, compressed: bool) -> None:
    stream = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(stream, **arrays())
    content = bytearray(stream.getvalue())
    content[math.floor(where * len(content))] = value
    scratch.write_bytes(content)
    try:
        check_data(load_dataset(Npz(path=str(scratch))))
    except DataError:
        return


@pytest.mark.skipif(not CIFAR10.exists(), reason="shared/data/cifar10.npz is not here")
def test_npz_reads_cifar10() -> None:
    data = load_dataset(f"npz(path={str(CIFAR10)!r})")
    check_data(data)
    assert data.input_shape == (3, 32, 32)
    assert (len(data.public), len(data.private), data.classes) == (5085, 800, 10)
    assert sorted(set(data.private.labels.tolist())) == list(range(10))
