"""Scoring of whole batches: who is compared with whom, bounds, and how bad images are met."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from gitbench.clients.modalities.image import ImageData
from gitbench.core.errors import AttackError
from gitbench.identity.known_metrics import known_metrics
from gitbench.measure.pixel_error import PSNR_CAP
from gitbench.measure.scoring import assign, score
from helpers import pair, smooth


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
    assert set(scores) == {name for name, metric in known_metrics().items() if metric.modality == "image"}
    for name, values in scores.items():
        low, high = known_metrics()[name].low, known_metrics()[name].high
        assert low is None or float(values.min()) >= low, name
        assert high is None or float(values.max()) <= high, name


def test_psnr_gain_is_measured_above_the_blind_guess() -> None:
    found, truth = pair((3, 16, 16), count=5)
    blind = truth.mean(0)
    gain = score(found[:, None], truth[:, None], blind=blind)["psnr_gain"][:, 0]
    torch.testing.assert_close(
        gain, score(found[:, None], truth[:, None])["psnr"][:, 0] - score(blind.expand_as(truth)[:, None], truth[:, None])["psnr"][:, 0]
    )
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
    order = assign(found, truth, ImageData())
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
