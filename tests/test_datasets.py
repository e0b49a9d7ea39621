"""Datasets: what they give, and that every damaged file is named, never half read and never executed."""

from __future__ import annotations

import gc
import io
import math
import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gitbench.data import Data, Dataset, Split, load_dataset
from gitbench.datasets import photos
from gitbench.datasets.folder import Folder
from gitbench.datasets.npz import Npz
from gitbench.errors import DataError, SpecError
from helpers import CIFAR10, make_data

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


def check(data: Data) -> None:
    """What every dataset promises."""
    for split in (data.public, data.private):
        assert split.inputs.dtype == torch.float32
        assert split.inputs.shape == (len(split), *data.input_shape)
        assert split.labels.dtype == torch.int64
        assert split.labels.shape == (len(split),)
        assert float(split.inputs.min()) >= 0
        assert float(split.inputs.max()) <= 1
        assert int(split.labels.min()) >= 0
        assert int(split.labels.max()) < data.classes


# photos


@pytest.fixture(scope="module")
def few() -> Data:
    return load_dataset("photos(public=6, private=4, size=16, seed=3)")


def test_photos_have_the_promised_shapes(few: Data) -> None:
    check(few)
    assert few.input_shape == (3, 16, 16)
    assert few.classes == len(photos.FILES) == 8
    assert few.public.labels.tolist() == [label for label in range(8) for _ in range(6)]
    assert few.private.labels.tolist() == [label for label in range(8) for _ in range(4)]
    assert few.name == "photos(public=6, private=4, size=16, seed=3)"
    assert float(few.public.inputs.std()) > 0.1


def test_photos_are_the_same_every_time(few: Data) -> None:
    again = load_dataset("photos(public=6, private=4, size=16, seed=3)")
    assert torch.equal(again.public.inputs, few.public.inputs)
    assert torch.equal(again.private.inputs, few.private.inputs)
    other = load_dataset("photos(public=6, private=4, size=16, seed=4)")
    assert not torch.equal(other.private.inputs, few.private.inputs)


def drawn(public: int, private: int, seed: int) -> dict[str, tuple[Image.Image, list[photos.Box], list[photos.Box]]]:
    """The boxes of every photograph, in the order in which the loader draws them."""
    random = np.random.default_rng(seed)
    found = {}
    for file in photos.FILES.values():
        image = photos.read_photo(file)
        left, right = photos.regions(image.size)
        found[file] = image, photos.boxes(left, public, random), photos.boxes(right, private, random)
    return found


def test_public_and_private_crops_share_no_pixel(few: Data) -> None:
    # The boxes painted below are those that the loader crops.
    for label, (image, public, private) in enumerate(drawn(6, 4, seed=3).values()):
        for split, boxes in ((few.public, public), (few.private, private)):
            for found, box in zip(split.inputs[split.labels == label], boxes, strict=True):
                crop = np.asarray(image.crop(box).resize((16, 16), Image.Resampling.BOX))
                assert torch.equal((found * 255).round().byte().permute(1, 2, 0), torch.from_numpy(crop.copy()))
    for file, (image, public, private) in drawn(512, 64, seed=0).items():
        masks = np.zeros((2, image.height, image.width), dtype=bool)
        for mask, boxes in zip(masks, (public, private), strict=True):
            for left, top, right, bottom in boxes:
                assert 0 <= left < right <= image.width, file
                assert 0 <= top < bottom <= image.height, file
                assert photos.SMALLEST <= right - left == bottom - top <= photos.LARGEST, file
                mask[top:bottom, left:right] = True
        assert not (masks[0] & masks[1]).any(), file
        assert masks.any(axis=(1, 2)).all(), file


@pytest.mark.parametrize("size", [(600, 300), (300, 600), (400, 400)])
def test_private_crops_lie_beyond_public_ones(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    # Brightness that grows along the longer axis tells where a crop came from, whatever the code does.
    width, height = size
    ramp = np.linspace(0, 255, max(size)).astype(np.uint8)
    pixels = np.broadcast_to(ramp if width >= height else ramp[:, None], (height, width))
    monkeypatch.setattr(photos, "read_photo", lambda _: Image.fromarray(pixels.copy()).convert("RGB"))
    data = load_dataset("photos(public=20, private=20, size=8)")
    assert float(data.public.inputs.max()) <= float(data.private.inputs.min())


@given(width=st.integers(100, 900), height=st.integers(100, 900), seed=st.integers(0, 99))
def test_regions_are_disjoint_and_cover_the_photograph(width: int, height: int, seed: int) -> None:
    regions = photos.regions((width, height))
    mask = np.zeros((height, width), dtype=int)
    for left, top, right, bottom in regions:
        mask[top:bottom, left:right] += 1
    assert (mask == 1).all()
    random = np.random.default_rng(seed)
    for region in regions:
        for left, top, right, bottom in photos.boxes(region, 5, random):
            assert region[0] <= left < right <= region[2]
            assert region[1] <= top < bottom <= region[3]


@pytest.mark.parametrize("options", ["public=0", "private=0", "size=7", "size=129"])
def test_photos_refuse_bad_options(options: str) -> None:
    with pytest.raises(SpecError, match=r"refuses its options: expected public, private >= 1 and size in 8\.\.128"):
        load_dataset(f"photos({options})")


@pytest.mark.parametrize("options", ["seed=-1", "public=1.5", "seed='a'"])
def test_photos_refuse_numbers_that_are_no_counts(options: str) -> None:
    with pytest.raises(SpecError, match="refuses its options"):
        load_dataset(f"photos({options})")


def test_a_damaged_photograph_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "skimage"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda _: type("Spec", (), {"origin": str(package / "__init__.py")}))
    with pytest.raises(DataError, match=r"Expected astronaut.png in the installed scikit-image.*pip install --force-reinstall"):
        load_dataset("photos")
    (package / "data" / "astronaut.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    with pytest.raises(DataError, match=r"astronaut.png is damaged: .*pip install --force-reinstall"):
        load_dataset("photos")
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match=r"Expected astronaut.png in the installed scikit-image, found None"):
        load_dataset("photos")


# npz


@pytest.mark.parametrize("channels", [None, 1, 3])
@pytest.mark.parametrize("column", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_npz_reads_the_medmnist_layout(tmp_path: Path, channels: int | None, column: bool, dtype: type) -> None:
    found = arrays(channels=channels)
    for key in ("train_labels", "test_labels"):
        labels = found[key].astype(dtype)
        found[key] = labels[:, None] if column else labels
    data = load_dataset(f"npz(path={str(archive(tmp_path / 'x.npz', found))!r})")
    check(data)
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
    check(data)
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
        check(load_dataset(Npz(path=str(scratch))))
    except DataError:
        return


@pytest.mark.skipif(not CIFAR10.exists(), reason="shared/data/cifar10.npz is not here")
def test_npz_reads_cifar10() -> None:
    data = load_dataset(f"npz(path={str(CIFAR10)!r})")
    check(data)
    assert data.input_shape == (3, 32, 32)
    assert (len(data.public), len(data.private), data.classes) == (5085, 800, 10)
    assert sorted(set(data.private.labels.tolist())) == list(range(10))


# folder


def picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (20, 12), value: int = 128) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = {
        "L": value,
        "LA": (value, 255),
        "RGB": (value,) * 3,
        "RGBA": (value, value, value, 255),
        "1": 1,
        "P": value,
        "CMYK": (0, 0, 0, 127),
    }[mode]
    Image.new(mode, size, colour).save(path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    root = tmp_path / "images"
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(root / split / name / "1.png")
            picture(root / split / name / "2.jpg", size=(9, 31))
    return root


def load_folder(root: Path, **options: int) -> Data:
    return load_dataset(Folder(path=str(root), **options))


def test_folder_reads_the_image_folder_layout(images: Path) -> None:
    picture(images / "train" / "cat" / "3.JPEG")
    (images / "train" / "cat" / "notes.txt").write_text("not an image")
    data = load_dataset(f"folder(path={str(images)!r}, size=16)")
    check(data)
    assert data.input_shape == (3, 16, 16)
    assert data.classes == 2
    assert data.public.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.private.labels.tolist() == [0, 0, 1, 1]
    assert load_folder(images).input_shape == (3, 32, 32)
    assert load_folder(images, limit=1).public.labels.tolist() == [0, 1]


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "1", "P"])
def test_folder_reads_every_kind_of_png(images: Path, mode: str) -> None:
    data = load_folder(images)
    picture(images / "test" / "cat" / "1.png", mode=mode)
    again = load_folder(images)
    check(again)
    if mode not in ("1", "P"):  # these have colours of their own
        assert torch.equal(again.private.inputs, data.private.inputs)


def test_folder_reads_cmyk_jpeg(images: Path) -> None:
    picture(images / "test" / "cat" / "2.jpg", mode="CMYK")
    check(load_folder(images))


def test_folder_crops_the_centre(images: Path) -> None:
    # Red outside the central square of a wide image: none of it may be seen.
    image = Image.new("RGB", (30, 10), (255, 0, 0))
    image.paste((0, 0, 255), (10, 0, 20, 10))
    image.save(images / "test" / "cat" / "1.png")
    found = load_folder(images, size=10).private.inputs[0]
    assert torch.equal(found, torch.tensor([0.0, 0.0, 1.0])[:, None, None].expand(3, 10, 10))


def test_folder_does_not_clip_16_bit_images(images: Path) -> None:
    Image.fromarray(np.full((16, 16), 32768, np.uint16)).save(images / "test" / "cat" / "1.png")
    try:
        found = load_folder(images)
    except DataError:
        return
    assert float(found.private.inputs[0].mean()) == pytest.approx(0.5, abs=0.01)


def remove(path: Path) -> None:
    if path.is_dir():
        for item in path.iterdir():
            remove(item)
        path.rmdir()
    else:
        path.unlink()


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("", r"Expected an image folder with train/ and test/ at .*images, found nothing there"),
        ("train", r"Expected the folder .*images/train with one folder per class, found none"),
        ("test", r"Expected the folder .*images/test with one folder per class, found none"),
        ("train/cat", r"images/test holds the class 'cat', which .*images/train lacks\. Public data must cover all classes"),
    ],
)
def test_folder_names_the_folder_that_lacks(images: Path, gone: str, message: str) -> None:
    remove(images / gone)
    with pytest.raises(DataError, match=message):
        load_folder(images)


def test_folder_without_classes_or_images(images: Path) -> None:
    for name in ("cat", "dog"):
        for file in (images / "test" / name).iterdir():
            file.unlink()
    with pytest.raises(DataError, match=r"images/test holds no image: expected files ending in \.png, \.jpg, \.jpeg in its class folders"):
        load_folder(images)
    for name in ("cat", "dog"):
        remove(images / "test" / name)
    picture(images / "test" / "loose.png")
    with pytest.raises(DataError, match=r"images/test holds no class folders: expected .*test/CLASS/\*\.png or \.jpg"):
        load_folder(images)


def test_folder_needs_a_public_image_of_every_class(images: Path) -> None:
    for file in (images / "train" / "cat").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="cat"):
        load_folder(images)


@pytest.mark.parametrize("damage", ["text", "empty", "cut", "folder"])
def test_folder_names_the_image_that_cannot_be_read(images: Path, damage: str) -> None:
    file = images / "train" / "dog" / "1.png"
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 256, (64, 64, 3)).astype(np.uint8)).save(file)
    content = file.read_bytes()
    file.unlink()
    if damage == "folder":
        file.mkdir()
    else:
        file.write_bytes({"text": b"no image", "empty": b"", "cut": content[: len(content) // 2]}[damage])
    with pytest.raises(DataError, match=rf"{re.escape(str(file))}: expected a readable PNG or JPEG image, got: .*Replace or delete it"):
        load_folder(images)


@pytest.mark.parametrize("options", ["size=0", "size=2000", "limit=0", "size='a'"])
def test_folder_refuses_bad_options(images: Path, options: str) -> None:
    with pytest.raises(SpecError, match="refuses its options"):
        load_dataset(f"folder(path={str(images)!r}, {options})")


# torchvision


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist", "svhn", "stl10"])
def test_torchvision_sets_are_never_downloaded_unasked(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Expected the folder of torchvision's \w+ at .*missing, found nothing there"):
        load_dataset(f"{name}(root={str(tmp_path / 'missing')!r})")
    with pytest.raises(DataError, match=rf"cannot be read from {tmp_path}: .*Check root, or allow the download with download=True"):
        load_dataset(f"{name}(root={str(tmp_path)!r})")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "source", "shape"),
    [
        ("cifar10", "CIFAR10", (5, 32, 32, 3)),
        ("cifar100", "CIFAR100", (5, 32, 32, 3)),
        ("mnist", "MNIST", (5, 28, 28)),
        ("fashion_mnist", "FashionMNIST", (5, 28, 28)),
        ("svhn", "SVHN", (5, 3, 32, 32)),
        ("stl10", "STL10", (5, 3, 96, 96)),
    ],
)
def test_torchvision_layouts(name: str, source: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    pixels = {which: random.integers(0, 256, shape).astype(np.uint8) for which in ("train", "test")}
    asked = []

    class Fake:
        """Holds what torchvision's class would hold, in the same layout."""

        def __init__(self, root: str, *, download: bool, split: str | None = None, train: bool | None = None) -> None:
            asked.append((root, download))
            which = split or ("train" if train else "test")
            found, labels = pixels[which], [0, 1, 2, 1, 0]
            if source in ("SVHN", "STL10"):
                self.data, self.labels = found, np.array(labels, dtype=np.uint8 if source == "STL10" else np.int64)
            elif "MNIST" in source:
                self.data, self.targets = torch.from_numpy(found), torch.tensor(labels)
            else:
                self.data, self.targets = found, labels

    monkeypatch.setattr(torchvision.datasets, source, Fake)
    data = load_dataset(f"{name}(root={str(tmp_path)!r})")
    check(data)
    assert data.classes == 3
    assert asked == [(str(tmp_path), False)] * 2
    planes = pixels["test"]
    if planes.shape[-1] == 3:
        planes = planes.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((data.private.inputs * 255).round().byte().numpy(), planes.reshape(data.private.inputs.shape))


# load_dataset


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("foto", r"Unknown dataset 'foto'\. Did you mean 'photos'"),
        ("cifar", r"Unknown dataset 'cifar'\. Did you mean 'cifar10'"),
        ("photos | npz", "Cannot read the dataset"),
        ("npz", "needs path"),
        ("npz(path='x', pulbic='y')", "Did you mean 'public'"),
    ],
)
def test_unknown_datasets_are_answered_with_the_nearest(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load_dataset(text)


class Given(Dataset):
    """A user's dataset that returns whatever it is told to."""

    data: Data

    def load(self) -> Data:
        return self.data


def with_private(
    inputs: Callable[[torch.Tensor], torch.Tensor] = lambda a: a, labels: Callable[[torch.Tensor], torch.Tensor] = lambda a: a
) -> Data:
    good = make_data(private=4, public=4)
    return Data(good.public, Split(inputs(good.private.inputs), labels(good.private.labels)), good.classes, "given")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_private(lambda a: a.double()), r"private split of Given.* float32 \(N, C, H, W\), N > 0, got torch.float64"),
        (with_private(lambda a: a[0]), r"got torch.float32 \(3, 8, 8\)"),
        (with_private(lambda a: a[:0], lambda a: a[:0]), r"N > 0, got torch.float32 \(0, 3, 8, 8\)"),
        (with_private(lambda a: a * 255), r"in \[0, 1\], got values in .*Divide by 255"),
        (with_private(lambda a: a - 1), r"in \[0, 1\], got values in \[-"),
        (with_private(lambda a: a * torch.nan), r"in \[0, 1\], got values in \[nan, nan\]"),
        (with_private(labels=lambda a: a[:3]), r"Expected int64 labels \(4,\) .* got torch.int64 \(3,\)"),
        (with_private(labels=lambda a: a.float()), r"Expected int64 labels \(4,\) .* got torch.float32 \(4,\)"),
        (with_private(labels=lambda a: a + 9), r"Expected labels 0\.\.3 in the private split"),
        (with_private(labels=lambda a: a - 9), r"Expected labels 0\.\.3 in the private split"),
        (with_private(lambda a: a[..., :4]), r"one shape, got \(3, 8, 8\) and \(3, 8, 4\)"),
        (None, "Given"),
    ],
)
def test_what_a_dataset_returns_is_checked(data: Data | None, message: str) -> None:
    dataset = Given()
    dataset.data = data  # as an argument it would be part of the name
    with pytest.raises(DataError, match=message):
        load_dataset(dataset)


def test_a_dataset_without_load_is_named() -> None:
    class Empty(Dataset):
        pass

    with pytest.raises(TypeError, match=r"The dataset Empty must define load\(self\)"):
        load_dataset(Empty())
