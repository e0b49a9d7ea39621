"""The names, units and directions of the leakage metrics. Their computation is in :mod:`gitbench.measure.metrics`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MetricInfo:
    """How to read one metric.

    Args:
        name: the name in results, options and tables.
        unit: its unit, or an empty string.
        higher_leaks: True when a larger value means more leakage.
        low: smallest possible value (None: unbounded).
        high: largest possible value (None: unbounded).
        tolerance: how much more of it a later run may leak before it counts as worse.
        summary: one line for people.
    """

    name: str
    unit: str
    higher_leaks: bool
    low: float | None
    high: float | None
    tolerance: float
    summary: str

    @property
    def arrow(self) -> str:
        """The direction of a *successful attack*."""
        return "↑" if self.higher_leaks else "↓"


PSNR_CAP = 100.0  # dB; a squared error below 1e-10 is an exact copy, and infinity is not a number in JSON

METRICS: dict[str, MetricInfo] = {
    info.name: info
    for info in (
        MetricInfo("mse", "", False, 0.0, 1.0, 0.001, "mean squared error of the pixels in [0, 1]"),
        MetricInfo("psnr", "dB", True, 0.0, PSNR_CAP, 0.5, "peak signal-to-noise ratio, capped at 100 dB"),
        MetricInfo("psnr_gain", "dB", True, None, PSNR_CAP, 0.5, "PSNR above the blind guess, the public mean image"),
        MetricInfo("ssim", "", True, -1.0, 1.0, 0.02, "structural similarity (Wang et al. 2004), Gaussian window of 11"),
        MetricInfo("lpips", "", False, 0.0, None, 0.02, "perceptual distance (Zhang et al. 2018), AlexNet"),
        MetricInfo("identification", "", True, 0.0, 1.0, 0.05, "share recognised: nearest private image is the true one"),
    )
}
