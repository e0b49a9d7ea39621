"""Datasets: torchvision's, a user's own, and names that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from gitbench.clients.data import Data, Dataset, Split, from_uint8, load_dataset
from gitbench.core.errors import DataError, SpecError
from helpers import check_data, make_data

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
    check_data(data)
    assert data.classes == 3
    assert asked == [(str(tmp_path), False)] * 2
    planes = pixels["test"]
    if planes.shape[-1] == 3:
        planes = planes.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal((data.private.inputs * 255).round().byte().numpy(), planes.reshape(data.private.inputs.shape))


# One channel to three


@pytest.mark.parametrize("form", [(), (1,)])
def test_grey_images_become_three_equal_channels(tmp_path: Path, form: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    for split in ("train", "test"):
        arrays |= {f"{split}_images": random.integers(0, 256, (4, 8, 8, *form)).astype(np.uint8), f"{split}_labels": np.arange(4)}
    np.savez(tmp_path / "grey.npz", **arrays)
    path = str(tmp_path / "grey.npz")
    plain, repeated = (load_dataset(text) for text in (f"npz(path={path!r})", f"npz(path={path!r}, channels=3)"))
    assert (plain.input_shape, repeated.input_shape) == ((1, 8, 8), (3, 8, 8))
    check_data(repeated)
    assert torch.equal(repeated.private.inputs, plain.private.inputs.expand(-1, 3, -1, -1))
    assert torch.equal(load_dataset(f"npz(path={path!r}, channels=1)").public.inputs, plain.public.inputs)
    for wrong in ("2", "'3'", "10**9"):
        with pytest.raises((DataError, SpecError)):
            load_dataset(f"npz(path={path!r}, channels={wrong})")
    with pytest.raises(DataError, match=r"Expected channels=3 for images of one channel, which is repeated, got 1 for 3"):
        from_uint8(torch.zeros(2, 8, 8, 3, dtype=torch.uint8), channels=1)


def test_torchvision_sets_repeat_one_channel_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        data, targets = torch.arange(4, dtype=torch.uint8)[:, None, None].expand(4, 28, 28), torch.arange(4)

        def __init__(self, root: str, **options: object) -> None: ...

    monkeypatch.setattr(torchvision.datasets, "MNIST", Fake)
    assert load_dataset(f"mnist(root={str(tmp_path)!r}, channels=3)").input_shape == (3, 28, 28)


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
