"""Candidates of one image laid over each other, and what they agree on."""

from __future__ import annotations

import numpy as np
import torch

REGISTRATIONS = ("phase", "none")
_FINE = 10  # steps of a pixel
_FARTHEST = 0.25  # of a side: a larger shift is no registration


def consensus(candidates: torch.Tensor, *, registration: str) -> torch.Tensor:
    """The mean ``(C, H, W)`` of candidates ``(G, C, H, W)``, each laid over their plain mean first.

    Args:
        candidates: in [0, 1].
        registration: ``phase``: each is shifted to where it correlates with the mean best (scikit-image's ``phase_cross_correlation``,
            to a tenth of a pixel); ``none`` takes the plain mean.
    """
    mean = candidates.mean(0)
    if registration == "none" or len(candidates) == 1:
        return mean
    target = mean.cpu().double().numpy()
    moved = [_shifted(one.cpu().double().numpy(), target) for one in candidates]
    return torch.from_numpy(np.stack(moved).mean(0)).to(mean)


def _shifted(image: np.ndarray, target: np.ndarray) -> np.ndarray:
    from scipy import ndimage
    from skimage.registration import phase_cross_correlation

    grey, aim = (one.mean(0) - one.mean() for one in (image, target))
    if not grey.any() or not aim.any():
        return image
    shift, _, _ = phase_cross_correlation(aim, grey, upsample_factor=_FINE, normalization=None)  # type: ignore[no-untyped-call]
    if not np.isfinite(shift).all() or (np.abs(shift) > _FARTHEST * np.array(grey.shape)).any():
        return image
    found: np.ndarray = ndimage.shift(image, (0, *shift), order=1, mode="nearest")
    return found
