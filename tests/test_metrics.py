"""Leakage metrics against independent implementations."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional

from gitbench.identity.known_metrics import known_metrics
from helpers import SHARED, pair, smooth

WEIGHTS = SHARED / "weights" / "lpips_alexnet_features.safetensors"
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 40), (1, 11, 11), (3, 12, 64)]
mse, psnr, ssim, lpips, identification = (known_metrics()[name].score for name in ("mse", "psnr", "ssim", "lpips", "identification"))


def images(values: torch.Tensor) -> list[np.ndarray]:
    return list(values.double().numpy())


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_and_psnr_agree_with_numpy_and_skimage(shape: tuple[int, int, int]) -> None:
    found, truth = pair(shape)
    squared = [float(np.mean((a - b) ** 2)) for a, b in zip(images(found), images(truth), strict=True)]
    np.testing.assert_allclose(mse(found, truth).numpy(), squared, rtol=1e-12)
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(images(found), images(truth), strict=True)]
    np.testing.assert_allclose(psnr(found, truth).numpy(), expected, rtol=1e-9)
    assert mse(found, truth).shape == psnr(found, truth).shape == (4,)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.02, 0.5])
def test_ssim_agrees_with_skimage(shape: tuple[int, int, int], noise: float) -> None:
    found, truth = pair(shape, noise=noise)
    expected = [
        structural_similarity(a, b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=0)
        for a, b in zip(images(found), images(truth), strict=True)
    ]
    np.testing.assert_allclose(ssim(found, truth).numpy(), expected, atol=1e-6)


def test_ssim_agrees_with_torchmetrics_where_the_window_fits() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it imports is not ours to mend
        image = pytest.importorskip("torchmetrics.functional.image")
    found, truth = (values.double() for values in pair((3, 20, 24)))
    _, full = image.structural_similarity_index_measure(found, truth, sigma=1.5, data_range=1.0, reduction="none", return_full_image=True)
    # torchmetrics mirrors the border and averages over it; Wang et al. and skimage leave it out.
    torch.testing.assert_close(ssim(found, truth), full[..., 5:-5, 5:-5].flatten(1).mean(1), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shape", "window"), [((3, 8, 8), 7), ((1, 9, 12), 9), ((1, 2, 5), 1), ((1, 1, 1), 1)])
def test_ssim_of_small_images_takes_the_largest_odd_window(shape: tuple[int, int, int], window: int) -> None:
    found, truth = pair(shape, count=2)
    offsets = np.arange(window) - window // 2
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    for value, a, b in zip(ssim(found, truth).tolist(), images(found), images(truth), strict=True):
        places = []
        for channel, top, left in itertools.product(range(shape[0]), range(shape[1] - window + 1), range(shape[2] - window + 1)):
            x, y = (image[channel, top : top + window, left : left + window] for image in (a, b))
            mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
            var_x, var_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
            cov = (weights * (x - mean_x) * (y - mean_y)).sum()
            places.append((2 * mean_x * mean_y + 1e-4) * (2 * cov + 9e-4) / ((mean_x**2 + mean_y**2 + 1e-4) * (var_x + var_y + 9e-4)))
        assert value == pytest.approx(np.mean(places), abs=1e-9)


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    """The lpips package itself on the float32 weights that ours were rounded from."""
    if not WEIGHTS.exists():
        pytest.skip(f"{WEIGHTS} is not here")
    import lpips as package
    from safetensors.torch import load_file

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        network = package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = load_file(WEIGHTS)
    layers = {number: layer for slice_ in network.net.children() for number, layer in slice_.named_children()}
    for number in ("0", "3", "6", "8", "10"):
        layers[number].weight.data = weights[f"features.{number}.weight"]
        layers[number].bias.data = weights[f"features.{number}.bias"]
    return network.eval()


@pytest.mark.parametrize("shape", [(3, 32, 32), (3, 64, 48), (1, 32, 32)])
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_lpips_agrees_with_the_package(reference: torch.nn.Module, shape: tuple[int, int, int], noise: float) -> None:
    found, truth = pair(shape, noise=noise)
    with torch.no_grad():
        # The package wants [-1, 1] and three channels.
        expected = [reference(*(2 * image.expand(3, -1, -1)[None] - 1 for image in both)).item() for both in zip(found, truth, strict=True)]
    np.testing.assert_allclose(lpips(found, truth).numpy(), expected, atol=2e-4)
    assert min(expected) > 0.01


def test_lpips_enlarges_small_images() -> None:
    found, truth = pair((3, 8, 8))
    grown = (functional.interpolate(values, size=(32, 32), mode="bilinear", align_corners=False) for values in (found, truth))
    torch.testing.assert_close(lpips(found, truth), lpips(*grown), atol=1e-6, rtol=0)
    grey = pair((1, 28, 28))
    torch.testing.assert_close(lpips(*grey), lpips(*(values.expand(-1, 3, -1, -1) for values in grey)), atol=1e-6, rtol=0)


def test_lpips_of_many_images_is_that_of_each() -> None:
    # 64 images are measured at a time.
    found, truth = pair((1, 8, 8), count=67)
    whole = lpips(found, truth)
    assert whole.shape == (67,)
    assert whole.dtype == torch.float64
    torch.testing.assert_close(whole[60:], torch.cat([lpips(found[i : i + 1], truth[i : i + 1]) for i in range(60, 67)]), atol=1e-5, rtol=0)


def test_exact_copies_are_recognised_and_the_mean_is_not() -> None:
    truth = smooth(12, (3, 8, 8))
    assert identification(truth, truth, private=truth).tolist() == [1.0] * 12
    blind = truth.mean(0).expand_as(truth)
    # At most the one image closest to the mean can be taken for it.
    assert identification(blind, truth, private=truth).sum() <= 1
    assert identification(truth.roll(1, 0), truth, private=truth).tolist() == [0.0] * 12


def test_copies_of_the_truth_are_no_rivals_but_ties_are() -> None:
    truth = smooth(3, (1, 8, 8))
    doubled = torch.cat([truth, truth, truth[:1]])
    assert identification(truth, truth, private=doubled).tolist() == [1.0] * 3
    black, white = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    both = torch.cat([black, white])
    assert identification(torch.full((1, 1, 4, 4), 0.5), white, private=both).tolist() == [0.0]
    assert identification(torch.full((1, 1, 4, 4), 0.51), white, private=both).tolist() == [1.0]
    assert identification(torch.full((1, 1, 4, 4), 0.51), black, private=both).tolist() == [0.0]
    assert identification(torch.full((1, 1, 4, 4), 0.4), white, private=white).tolist() == [1.0]  # nothing to take it for


@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.05, 0.5])
def test_identification_is_what_comparing_every_pair_finds(noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    private = torch.rand(40, 3, 4, 4, generator=generator)
    private[30:] = private[3]  # eleven copies of one image
    truth = private[:6]
    found = (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    expected = []
    for own, guess in zip(truth.double(), found.double(), strict=True):
        rivals = [float((guess - other).square().sum()) for other in private.double() if not torch.equal(own, other)]
        expected.append(float(float((guess - own).square().sum()) < min(rivals)))
    assert identification(found, truth, private=private).tolist() == expected


@given(seed=st.integers(0, 999), low=st.floats(0.01, 0.9), step=st.floats(1.05, 10))
def test_psnr_falls_as_noise_grows(seed: int, low: float, step: float) -> None:
    truth = smooth(2, (3, 8, 8), seed).double()
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    less, more = psnr(truth + low * noise, truth), psnr(truth + low * step * noise, truth)
    assert bool((more < less).all())
    torch.testing.assert_close(less - more, torch.full_like(less, 20 * math.log10(step)))


@pytest.mark.parametrize("metric", [mse, psnr, ssim])
@given(seed=st.integers(0, 999), size=st.integers(1, 14), channels=st.sampled_from([1, 3]))
def test_pixel_metrics_are_symmetric(
    metric: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], seed: int, size: int, channels: int
) -> None:
    found, truth = pair((channels, size, size), count=2, seed=seed)
    torch.testing.assert_close(metric(found, truth), metric(truth, found))
    assert bool((mse(found, truth) >= 0).all())


@settings(max_examples=60)
@given(
    kind=st.sampled_from(["noise", "smooth", "inverse", "binary", "constant"]),
    seed=st.integers(0, 999),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_ssim_lies_between_minus_one_and_one(kind: str, seed: int, height: int, width: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(2, 3, height, width, generator=generator)
    truth = {"binary": truth.round(), "smooth": smooth(2, (3, height, width), seed)}.get(kind, truth)
    found = {"inverse": 1 - truth, "binary": 1 - truth, "constant": torch.full_like(truth, seed / 999)}.get(kind)
    if found is None:
        found = torch.rand(truth.shape, generator=generator)
    values = ssim(found, truth)
    assert bool((values.abs() <= 1 + 1e-9).all())
    assert bool((ssim(truth, truth) - 1).abs().max() < 1e-9)
