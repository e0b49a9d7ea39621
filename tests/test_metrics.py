"""Leakage metrics against independent implementations, and how they meet bad images."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn import functional

from gitbench.core.errors import AttackError
from gitbench.core.metric import METRICS, PSNR_CAP
from gitbench.measure.metrics.identification import identification
from gitbench.measure.metrics.perceptual import lpips
from gitbench.measure.metrics.pixel import mse, psnr
from gitbench.measure.metrics.ssim import ssim
from gitbench.measure.scoring import assign, score
from helpers import SHARED

WEIGHTS = SHARED / "weights" / "lpips_alexnet_features.safetensors"
SHAPES = [(3, 32, 32), (1, 28, 28), (3, 17, 40), (1, 11, 11), (3, 12, 64)]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """On a busy machine the threads of such small convolutions only wait for one another: 0.5 s instead of 1 ms each."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def smooth(count: int, shape: tuple[int, int, int], seed: int = 0) -> torch.Tensor:
    """Images with structure at several scales, so that the metrics have something to see."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.zeros(count, *shape)
    for size in (2, 4, 7):
        grid = torch.rand(count, shape[0], size, size, generator=generator)
        found += functional.interpolate(grid, size=shape[1:], mode="bilinear") / 3
    return found


def pair(shape: tuple[int, int, int], count: int = 4, noise: float = 0.2, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    truth = smooth(count, shape, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    return (truth + noise * torch.randn(truth.shape, generator=generator)).clamp(0, 1), truth


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


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 8, 8), (1, 8, 8)])
def test_identical_images(shape: tuple[int, int, int]) -> None:
    truth = smooth(4, shape)[:, None]
    found = score(truth, truth, private=truth[:, 0])
    expected = {"mse": 0.0, "psnr": 100.0, "ssim": 1.0, "lpips": 0.0, "identification": 1.0}
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], torch.full((4, 1), value, dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("reconstruction", "truth"), list(itertools.product([0.0, 0.5, 1.0], repeat=2)))
def test_constant_images_have_finite_scores(channels: int, reconstruction: float, truth: float) -> None:
    shape = (1, 1, channels, 16, 16)
    found = score(torch.full(shape, reconstruction), torch.full(shape, truth), blind=torch.full(shape[2:], 0.5))
    assert all(bool(torch.isfinite(values).all()) for values in found.values())
    squared = (reconstruction - truth) ** 2
    assert found["mse"].item() == pytest.approx(squared)
    assert found["psnr"].item() == pytest.approx(-10 * math.log10(squared) if squared else PSNR_CAP)
    # Without structure only the luminance term is left.
    assert found["ssim"].item() == pytest.approx((2 * reconstruction * truth + 1e-4) / (reconstruction**2 + truth**2 + 1e-4))


def test_black_against_white_is_the_worst() -> None:
    found = score(torch.zeros(1, 1, 3, 32, 32), torch.ones(1, 1, 3, 32, 32))
    assert found["mse"].item() == 1
    assert found["psnr"].item() == pytest.approx(0, abs=1e-9)
    assert abs(found["ssim"].item()) < 1e-3
    assert found["lpips"].item() > 0.1


def test_scores_stay_within_their_declared_bounds() -> None:
    found, truth = pair((3, 16, 16), count=6)
    scores = score(found[:, None], truth[:, None], blind=truth.mean(0), private=truth)
    assert set(scores) == set(METRICS)
    for name, values in scores.items():
        low, high = METRICS[name].low, METRICS[name].high
        assert low is None or float(values.min()) >= low, name
        assert high is None or float(values.max()) <= high, name


def test_psnr_gain_is_measured_above_the_blind_guess() -> None:
    found, truth = pair((3, 16, 16), count=5)
    blind = truth.mean(0)
    gain = score(found[:, None], truth[:, None], blind=blind)["psnr_gain"][:, 0]
    torch.testing.assert_close(gain, psnr(found, truth) - psnr(blind.expand_as(truth), truth))
    guess = score(blind.expand(5, 1, 3, 16, 16), truth[:, None], blind=blind)["psnr_gain"]
    assert torch.equal(guess, torch.zeros(5, 1, dtype=torch.float64))
    # Half the squared error is 3 dB: the default gate.
    half = truth + (blind - truth) * math.sqrt(0.5)
    torch.testing.assert_close(
        score(half[:, None], truth[:, None], blind=blind)["psnr_gain"],
        torch.full((5, 1), 10 * math.log10(2), dtype=torch.float64),
        atol=1e-4,
        rtol=0,
    )


def test_one_perfect_image_does_not_hide_the_others() -> None:
    found, truth = pair((3, 8, 8), count=4)
    alone = score(found[None], truth[None])
    found[2] = truth[2]
    scores = score(found[None], truth[None], blind=truth.mean(0))
    assert all(bool(torch.isfinite(values).all()) for values in scores.values())
    assert scores["psnr"][0, 2] == PSNR_CAP
    others = torch.tensor([0, 1, 3])
    torch.testing.assert_close(scores["psnr"][0, others], alone["psnr"][0, others])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("batch", [1, 3])
def test_non_finite_images_are_nan_and_leave_the_others(bad: float, batch: int) -> None:
    found, truth = (values.reshape(-1, batch, 3, 8, 8) for values in pair((3, 8, 8), count=6, noise=0.05))
    options = {"blind": truth.mean((0, 1)), "private": truth.flatten(0, 1)}
    clean = score(found, truth, **options)
    spoilt = found.clone()
    spoilt[1, 0, 2, 3, 4] = bad  # one pixel is enough
    kept = spoilt.clone()
    scores = score(spoilt, truth, **options)
    hit = torch.zeros(truth.shape[:2], dtype=torch.bool)
    hit[1, 0] = True
    for name, values in scores.items():
        assert torch.equal(torch.isnan(values), hit), name
        assert torch.isfinite(values[~hit]).all(), name
        torch.testing.assert_close(values[~hit], clean[name][~hit], msg=name, atol=1e-6, rtol=0)
    assert torch.equal(spoilt.nan_to_num(7), kept.nan_to_num(7))  # the argument is not written to


def test_a_non_finite_image_does_not_take_anothers_truth() -> None:
    truth = torch.stack([torch.full((3, 8, 8), 1.0), torch.full((3, 8, 8), 0.5)])[None]
    found = truth.clone()
    found[0, 0] = torch.nan
    assert score(found, truth)["mse"][0, 1] == 0


def test_all_images_non_finite() -> None:
    truth = smooth(4, (1, 8, 8)).reshape(2, 2, 1, 8, 8)
    scores = score(torch.full_like(truth, torch.nan), truth, blind=truth[0, 0], private=truth.flatten(0, 1))
    assert all(bool(torch.isnan(values).all()) for values in scores.values())


@pytest.mark.parametrize("batch", [2, 3, 4])
def test_assignment_is_the_best_permutation(batch: int) -> None:
    truth = smooth(3 * batch, (1, 6, 6)).reshape(3, batch, 1, 6, 6)
    found = smooth(3 * batch, (1, 6, 6), seed=9).reshape(truth.shape)
    order = assign(found, truth)
    for victim in range(3):
        costs = {
            chosen: sum(
                float((found[victim, place].double() - truth[victim, index].double()).square().sum()) for index, place in enumerate(chosen)
            )
            for chosen in itertools.permutations(range(batch))
        }
        assert costs[tuple(order[victim].tolist())] == pytest.approx(min(costs.values()), rel=1e-9)
    torch.testing.assert_close(
        score(found, truth)["mse"],
        (found.gather(1, order[..., None, None, None].expand_as(found)).double() - truth).square().flatten(2).mean(2),
    )


def test_the_order_within_a_batch_means_nothing() -> None:
    found, truth = (values.reshape(2, 4, 3, 8, 8) for values in pair((3, 8, 8), count=8))
    options = {"blind": truth.mean((0, 1)), "private": truth.flatten(0, 1)}
    expected = score(found, truth, **options)
    scores = score(found[:, torch.tensor([2, 0, 3, 1])], truth, **options)
    for name, values in scores.items():
        torch.testing.assert_close(values, expected[name], msg=name, atol=1e-5, rtol=0)
    # Victims are not exchanged: each has its own update.
    assert not torch.allclose(score(found.flip(0), truth)["mse"], expected["mse"])


def test_exact_copies_are_recognised_and_the_mean_is_not() -> None:
    truth = smooth(12, (3, 8, 8))
    assert identification(truth, truth, truth).tolist() == [1.0] * 12
    blind = truth.mean(0).expand_as(truth)
    # At most the one image closest to the mean can be taken for it.
    assert identification(blind, truth, truth).sum() <= 1
    assert identification(truth.roll(1, 0), truth, truth).tolist() == [0.0] * 12


def test_copies_of_the_truth_are_no_rivals_but_ties_are() -> None:
    truth = smooth(3, (1, 8, 8))
    doubled = torch.cat([truth, truth, truth[:1]])
    assert identification(truth, truth, doubled).tolist() == [1.0] * 3
    black, white = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    both = torch.cat([black, white])
    assert identification(torch.full((1, 1, 4, 4), 0.5), white, both).tolist() == [0.0]
    assert identification(torch.full((1, 1, 4, 4), 0.51), white, both).tolist() == [1.0]
    assert identification(torch.full((1, 1, 4, 4), 0.51), black, both).tolist() == [0.0]
    assert identification(torch.full((1, 1, 4, 4), 0.4), white, white).tolist() == [1.0]  # nothing to take it for


@pytest.mark.parametrize(
    ("reconstruction", "truth"),
    [((2, 1, 3, 8, 8), (2, 1, 1, 8, 8)), ((2, 1, 3, 8, 8), (2, 3, 8, 8)), ((2, 3, 8, 8), (2, 3, 8, 8)), ((1, 1, 3, 8, 8), (2, 1, 3, 8, 8))],
)
def test_shapes_that_differ_are_refused(reconstruction: tuple[int, ...], truth: tuple[int, ...]) -> None:
    # Broadcasting would make nonsense pass.
    with pytest.raises(AttackError, match=r"Expected two stacks \(V, B, C, H, W\), got"):
        score(torch.zeros(reconstruction), torch.zeros(truth))


def test_scoring_leaves_the_global_random_state_alone() -> None:
    found, truth = pair((3, 8, 8), count=2)
    before = torch.random.get_rng_state()
    first = score(found[:, None], truth[:, None])
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, values in score(found[:, None], truth[:, None]).items():
        assert torch.equal(values, first[name])
        assert not values.requires_grad


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
