"""A metric of a few lines."""

from __future__ import annotations

import gitbench


class Close(gitbench.Metric):
    """Share of the pixels that are within 0.1 of the truth."""

    name = "close"
    unit = "%"
    higher_leaks = True
    low, high = 0.0, 100.0
    tolerance = 2.0
    summary = "share of the pixels within 0.1 of the truth"

    def score(self, found, truth):
        return 100 * ((found - truth).abs() < 0.1).double().flatten(1).mean(1)
