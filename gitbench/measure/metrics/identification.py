"""Can the reconstruction be recognised among all private images?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gitbench.core.metric import Metric

if TYPE_CHECKING:
    import torch

_ROUNDING = 1e-9  # of squares: more than float64 leaves of the distance between copies
_NEAREST = 8  # private images that may be a reconstruction's rivals


class Identification(Metric):
    """1 where no private image is closer (in squared error) to the reconstruction than its truth, else 0.

    A reconstruction equally close to several images identifies none, unless they are copies of the truth.
    """

    name = "identification"
    higher_leaks = True
    low, high = 0.0, 1.0
    tolerance = 0.05
    summary = "share recognised: nearest private image is the true one"

    def score(self, found: torch.Tensor, truth: torch.Tensor, *, private: torch.Tensor) -> torch.Tensor:
        import torch

        found, own, others = (images.flatten(1).double() for images in (found, truth, private))
        distance = (found - own).square().sum(1)
        # Products of matrices tell which few come into question, and these are compared entry by entry.
        squares = others.square().sum(1)
        to_own = squares + own.square().sum(1, keepdim=True) - 2 * own @ others.T
        copies = to_own <= _ROUNDING * (1 + squares)
        rows, columns = copies.nonzero(as_tuple=True)
        copies[rows, columns] = (own[rows] == others[columns]).all(1)
        to_others = (squares - 2 * found @ others.T).masked_fill(copies, torch.inf)
        nearest = to_others.topk(min(_NEAREST, len(others)), dim=1, largest=False)
        rivals = (found[:, None] - others[nearest.indices]).square().sum(2).masked_fill(nearest.values.isinf(), torch.inf)
        return (distance < rivals.min(dim=1).values * (1 - 1e-9)).double()
