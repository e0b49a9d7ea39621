"""Folders of images: every kind is read, and every damaged one is named."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gitbench.clients.data import Data, load_dataset
from gitbench.clients.datasets.folder import Folder
from gitbench.core.errors import DataError, SpecError
from helpers import check_data


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
    data = load_dataset(f"folder(path={str(images)!r}, size=16)")
    check_data(data)
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
    check_data(again)
    if mode not in ("1", "P"):  # these have colours of their own
        assert torch.equal(again.private.inputs, data.private.inputs)


def test_folder_reads_cmyk_jpeg(images: Path) -> None:
    picture(images / "test" / "cat" / "2.jpg", mode="CMYK")
    check_data(load_folder(images))


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
    with pytest.raises(DataError, match=r"images/test holds no image: expected files ending in .* in its class folders, found none"):
        load_folder(images)
    for name in ("cat", "dog"):
        remove(images / "test" / name)
    picture(images / "test" / "loose.png")
    with pytest.raises(
        DataError, match=r"images/test holds no class folders: expected .*CLASS/IMAGE, found 1 \.png outside of class folders"
    ):
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
    with pytest.raises(
        DataError, match=rf"{re.escape(str(file))}: expected a readable PNG, JPEG, WEBP, TIFF or BMP image, got: .*Replace or delete it"
    ):
        load_folder(images)


@pytest.mark.parametrize("options", ["size=0", "size=2000", "limit=0", "size='a'"])
def test_folder_refuses_bad_options(images: Path, options: str) -> None:
    with pytest.raises(SpecError, match="refuses its options"):
        load_dataset(f"folder(path={str(images)!r}, {options})")
