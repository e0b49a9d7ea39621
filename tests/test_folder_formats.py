"""Folders of images as people have them: other formats, turned photographs, transparency, and files that are no images."""

from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gitbench.clients.data import load_dataset
from gitbench.clients.datasets.folder import Folder
from gitbench.core.errors import DataError
from hostile import quickly


def picture(path: Path, image: Image.Image | None = None, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or Image.new("RGB", (8, 8), (10, 20, 30))).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "2.png")
    return tmp_path


def first(root: Path, *, size: int = 8) -> np.ndarray:
    """The first private image, ``(H, W, C)`` in 0..255."""
    found = load_dataset(Folder(path=str(root), size=size)).private.inputs[0]
    return (found * 255).round().byte().permute(1, 2, 0).numpy()


NOISE = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
LOSSLESS: dict[str, dict[str, object]] = {".webp": {"lossless": True, "exact": True}, ".jpg": {"quality": 100, "subsampling": 0}}


@pytest.mark.parametrize("suffix", [".webp", ".tif", ".tiff", ".bmp", ".WEBP", ".TIF", ".Bmp", ".PNG"])
def test_other_formats_are_read(root: Path, suffix: str) -> None:
    picture(root / "test" / "cat" / f"1{suffix}", Image.fromarray(NOISE), **LOSSLESS.get(suffix.lower(), {}))
    np.testing.assert_array_equal(first(root), NOISE)


def test_of_several_pages_the_first_is_read(root: Path) -> None:
    other = Image.new("RGB", (8, 8), "red")
    picture(root / "test" / "cat" / "1.tif", Image.fromarray(NOISE), save_all=True, append_images=[other])
    np.testing.assert_array_equal(first(root), NOISE)


# EXIF orientation


UPRIGHT = np.array([[(250, 0, 0), (0, 250, 0)], [(0, 0, 250), (250, 250, 250)]], np.uint8).repeat(16, 0).repeat(16, 1)
# What a camera stores. The standard names the sides of the scene that the first row and the first column show: of 6, right and top.
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: UPRIGHT.transpose(1, 0, 2)[::-1],
    7: UPRIGHT.transpose(1, 0, 2)[::-1, ::-1],
    8: UPRIGHT.transpose(1, 0, 2)[:, ::-1],
}


def turned(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return picture(path, Image.fromarray(np.ascontiguousarray(STORED[orientation])), exif=exif, **LOSSLESS.get(path.suffix, {}))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_turned_photograph_is_set_upright(root: Path, suffix: str, orientation: int) -> None:
    turned(root / "test" / "cat" / f"1{suffix}", orientation)
    np.testing.assert_allclose(first(root, size=32).astype(int), UPRIGHT, atol=20 if suffix == ".jpg" else 0)


def test_exif_data_that_cannot_be_read_say_nothing_of_the_pose(root: Path) -> None:
    file = turned(root / "test" / "cat" / "1.jpg", 1)
    content = file.read_bytes()
    at = content.index(b"Exif\0\0") + 6
    file.write_bytes(content[:at] + b"XXXX" + content[at + 4 :])
    np.testing.assert_allclose(first(root, size=32).astype(int), UPRIGHT, atol=20)


# Transparency


def half(mode: str) -> Image.Image:
    """Black, and the upper half transparent."""
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 255))
    image.paste((0, 0, 0, 0), (0, 0, 8, 4))
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "suffix"), [("RGBA", ".png"), ("LA", ".png"), ("RGBA", ".webp"), ("RGBA", ".tif"), ("LA", ".tif")])
def test_what_is_transparent_is_put_on_white(root: Path, mode: str, suffix: str) -> None:
    picture(root / "test" / "cat" / f"1{suffix}", half(mode), **LOSSLESS.get(suffix, {}))
    found = first(root)
    assert (found[:4] == 255).all()
    assert (found[4:] == 0).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_is_put_on_white(root: Path, mode: str) -> None:
    image = Image.new("1", (8, 8), 1)
    image.paste(0, (0, 0, 8, 4))
    image = image.convert("L").point(lambda value: 100 if value else 0).convert("P" if mode == "P" else "L")
    if mode in ("RGB", "1"):
        image = (
            image.convert(mode, dither=Image.Dither.NONE) if mode == "RGB" else image.point(lambda value: 255 * (value > 0)).convert("1")
        )
    seen = 255 if mode == "1" else 100
    picture(root / "test" / "cat" / "1.png", image, transparency=(0, 0, 0) if mode == "RGB" else image.getpixel((0, 0)))
    found = first(root)
    assert (found[:4] == 255).all()
    assert (found[4:] == seen).all()


def test_half_transparent_is_half_white(root: Path) -> None:
    picture(root / "test" / "cat" / "1.png", Image.new("RGBA", (8, 8), (0, 0, 0, 127)))
    assert (first(root) == 128).all()


# What is left out


def said(root: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_dataset(Folder(path=str(root)))
    return [str(one.message) for one in caught]


def test_what_is_left_out_is_counted_in_one_line(root: Path) -> None:
    assert said(root) == []
    for name in (".DS_Store", "._2.png"):  # hidden
        (root / "train" / "cat" / name).write_bytes(b"no image")
    (root / "train" / ".cache").mkdir()
    assert said(root) == []
    for name in ("train/cat/a.gif", "test/cat/b.GIF", "test/dog/c.gif", "test/dog/notes.txt", "test/dog/LICENSE", "test/loose.png"):
        (root / name).write_bytes(b"")
    (root / "train" / "dog" / "more").mkdir()
    (line,) = said(root)
    kinds = "3 .gif, 1 .png outside of class folders, 1 .txt, 1 folder, 1 without suffix"
    assert line == f"{root}: left out {kinds}. Read are .png, .jpg, .jpeg, .webp, .tif, .tiff, .bmp in class folders."


def test_many_kinds_that_are_left_out_stay_one_short_line(root: Path) -> None:
    for number in range(100):
        (root / "train" / "cat" / f"x.\n{number:02}").write_bytes(b"")
    (line,) = said(root)
    assert "1 .\\n07, 92 of other kinds" in line
    assert line.isprintable()


def test_a_folder_of_nothing_that_is_read_says_what_it_holds(root: Path) -> None:
    for name in ("cat", "dog"):
        (root / "test" / name / "2.png").unlink()
        for number in range(90):
            (root / "test" / name / f"{number}.heic").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"test holds no image: expected files ending in \.png, .*\.bmp in its class folders, found 180 \.heic"
    ):
        load_dataset(Folder(path=str(root)))


def test_a_class_of_nothing_that_is_read_says_what_it_holds(root: Path) -> None:
    (root / "train" / "dog" / "2.png").rename(root / "train" / "dog" / "2.gif")
    with pytest.raises(DataError, match=r"train/dog holds no image, only 1 \.gif\. Public data must cover all classes"):
        load_dataset(Folder(path=str(root)))


def test_one_class_folder_is_named(root: Path) -> None:
    for split in ("train", "test"):
        (root / split / "dog" / "2.png").unlink()
        (root / split / "dog").rmdir()
    with pytest.raises(DataError, match=r"train holds one class folder, 'cat': expected two classes or more, one folder .* CLASS/IMAGE"):
        load_dataset(Folder(path=str(root)))


# Bombs


def webp(width: int, height: int) -> bytes:
    def sized(kind: bytes, content: bytes) -> bytes:
        return kind + struct.pack("<I", len(content)) + content

    with io.BytesIO() as stream:
        Image.fromarray(NOISE).save(stream, "WEBP", lossless=True)
        still = stream.getvalue()[12:]
    canvas = b"\x02\0\0\0" + struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    frame = bytes(6) + b"\7\0\0\7\0\0" + bytes(4) + still
    return sized(b"RIFF", b"WEBP" + sized(b"VP8X", canvas) + sized(b"ANIM", bytes(6)) + sized(b"ANMF", frame))


def bmp(width: int, height: int) -> bytes:
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)


def tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height, 279: 9}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(200)


@pytest.mark.parametrize("made", [webp, bmp, tiff])
@pytest.mark.parametrize(("width", "height"), [(11_000, 11_000), (16_384, 16_384), (60_000, 60_000)])
def test_an_image_of_too_many_pixels_is_refused(root: Path, made, width: int, height: int) -> None:
    file = root / "test" / "cat" / f"1.{made.__name__}"
    file.with_suffix(".tif" if made is tiff else file.suffix).write_bytes(made(width, height))
    with quickly(10), pytest.raises(DataError, match=r"cat/1\.\w+: expected a readable PNG, JPEG, WEBP, TIFF or BMP image, got: .*pixels"):
        load_dataset(Folder(path=str(root)))


def test_formats_that_nobody_needs_are_refused_under_any_name(root: Path) -> None:
    file = root / "test" / "cat" / "1.png"
    Image.new("RGB", (8, 8)).save(file, "GIF")
    with pytest.raises(DataError, match=r"1\.png: expected a readable .*cannot identify image file"):
        load_dataset(Folder(path=str(root)))
