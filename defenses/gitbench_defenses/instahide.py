"""InstaHide: mixed images under a mask of random signs."""

from __future__ import annotations

from typing import Literal

import torch

from gitbench.clients.data import Split
from gitbench.clients.defense import Defense
from gitbench.clients.mixing import check_source, draw_partners, mixed
from gitbench.clients.update import Batch

_TRIES = 10_000


class InstaHide(Defense):
    """Differentiates averages of ``k`` images and labels whose pixels have random signs (Huang et al., ICML 2020, arXiv 2010.02772).

    The "inside" variant: all ``k`` images are the client's, and all their labels count. As in the authors' code (``train_inside.py``) the
    weights are the absolute values of standard normal numbers over their sum, drawn again while one exceeds ``largest``, and every value
    of every pixel is mirrored with probability 1/2. They mirror at zero what is normalised, so that here it is done at each channel's
    mean over the public images (1/2 where there are none): ``mean ± (average - mean)``, which may leave [0, 1]. Weights, partners and
    signs are drawn for each image and each update anew.

    Partners are drawn from the client's other data, for which the public split stands in (``partners='public'``), or the batch is
    permuted (``partners='batch'``), where an image may be its own partner: a batch of one has signs, and no mixing. The truth of a
    measurement are the private images.

    What an attacker knows: the public images, where values are mirrored, and how weights and signs are drawn; not which were. Matching
    attacks get the signed average at best, and search in [0, 1] alone. Known breaks: many encodings of the same images were decoded
    (Carlini et al., IEEE S&P 2021, arXiv 2011.05315). The attack ``auto`` finds the signs of one: an average of photographs is smooth.

    Args:
        k: images in each average, at least 1; the authors' 4.
        largest: weight that no image exceeds, above ``1 / k``; the authors' 0.65. With ``k=1`` it does not count.
        partners: ``public`` or ``batch``.
    """

    name = "instahide"
    modalities = ("image",)

    def __init__(self, *, k: int = 4, largest: float = 0.65, partners: Literal["public", "batch"] = "public") -> None:
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"expected k >= 1, got {k!r}")
        if k > 1 and not 1 / k < largest <= 1:
            raise ValueError(f"expected largest above 1 / k = {1 / k:.3g} and at most 1, got {largest}")
        check_source(partners)
        self.k = k
        self.largest = largest
        self.partners = partners

    def prepare_batch(self, batch: Batch, *, public: Split | None, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        weights = self.weights(batch.inputs.shape[:2], generator)
        partners = draw_partners(batch, self.k - 1, source=self.partners, public=public, generator=generator)
        inputs, labels = mixed(batch, weights, partners)
        middle = self.mirrored_at(public).to(inputs)
        signs = torch.randint(2, inputs.shape, generator=generator).to(inputs) * 2 - 1
        return middle + signs * (inputs - middle), labels

    def mirrored_at(self, public: Split | None) -> torch.Tensor:
        """The middle of each channel, ``(C, 1, 1)`` or one number for all: it is no secret."""
        return torch.tensor(0.5) if public is None else public.inputs.mean((0, 2, 3))[:, None, None]

    def weights(self, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
        """``(V, B, k)``.

        Raises:
            ValueError: ``largest`` is so near to ``1 / k`` that none are found.
        """
        found = _normal_weights((*shape, self.k), generator)
        for _ in range(_TRIES):
            above = (found.amax(2) > self.largest) & torch.tensor(self.k > 1)
            if not above.any():
                return found
            found = torch.where(above[..., None], _normal_weights(found.shape, generator), found)
        raise ValueError(f"{_TRIES:,} draws found no {self.k} weights of at most {self.largest}: raise largest")


def _normal_weights(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    drawn = torch.randn(shape, generator=generator).abs()
    return drawn / drawn.sum(-1, keepdim=True)
