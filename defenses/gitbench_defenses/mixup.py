"""MixUp: convex combinations of images, and of their labels."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from gitbench.clients.data import Split
from gitbench.clients.defense import Defense
from gitbench.clients.mixing import check_source, draw_partners, mixed
from gitbench.clients.update import Batch


class Mixup(Defense):
    """Differentiates averages of ``k`` images, with the same averages of their labels (Zhang et al., ICLR 2018, arXiv 1710.09412).

    The weights of an image and its ``k - 1`` partners are Dirichlet(alpha, ..., alpha): with ``k=2`` that is the paper's Beta(alpha,
    alpha). Partners are drawn for each image anew, from the client's other data, for which the public split stands in
    (``partners='public'``); the paper's code permutes the batch (``partners='batch'``), where an image may be its own partner, so that a
    batch of one is not mixed at all. The truth of a measurement are the private images, not the averages.

    What an attacker knows: how weights are drawn, and the public images; not which were taken. Known breaks: mixing alone was found
    insecure by the authors of InstaHide (arXiv 2010.02772), and mixed labels can be read off the last layer's gradient of a single image
    (Wang et al., ICLR 2024, arXiv 2402.03124). With the label the average is reconstructed, and a partner that the attacker has too is
    taken out of it (``auto``, docs/breaks.md); what is left of partners that are nobody's but the client's is the average.

    Args:
        k: images in each average, at least 1, which mixes nothing.
        alpha: of the Dirichlet distribution: small ones leave most of the weight to one image, which need not be the private one.
        partners: ``public`` or ``batch``.
    """

    name = "mixup"
    modalities = ("image",)

    def __init__(self, *, k: int = 2, alpha: float = 1.0, partners: Literal["public", "batch"] = "public") -> None:
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"expected k >= 1, got {k!r}")
        if not 0 < alpha < float("inf"):
            raise ValueError(f"expected alpha > 0, got {alpha}")
        check_source(partners)
        self.k = k
        self.alpha = alpha
        self.partners = partners

    def prepare_batch(self, batch: Batch, *, public: Split | None, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        # torch's own Dirichlet takes no generator.
        drawn = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        weights = torch.from_numpy(drawn.dirichlet([self.alpha] * self.k, size=tuple(batch.inputs.shape[:2])))
        return mixed(batch, weights, draw_partners(batch, self.k - 1, source=self.partners, public=public, generator=generator))
