"""The photographs: crops of regions that share no pixel, the same every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gitbench.clients.data import Data, load_dataset
from gitbench.clients.datasets import photos
from gitbench.core.errors import DataError, SpecError
from helpers import check_data


@pytest.fixture(scope="module")
def few() -> Data:
    return load_dataset("photos(public=6, private=4, size=16, seed=3)")


def test_photos_have_the_promised_shapes(few: Data) -> None:
    check_data(few)
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
