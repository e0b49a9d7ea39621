"""Averages of a private image and public ones, taken apart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.labels import read_softmax
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.data import Split

# Chosen on held-out public images, where there was a choice (benchmarks/images_behind.py).
_PARTS = 3  # that are taken out of an average, at most
_ALIKE = 0.2  # cosine with a public image from which on it is a part: in these coordinates two photographs have less
_CHANCE = 5.0  # deviations of the cosine of two random directions, which small images exceed by chance
_AGREE = 0.1  # of a part's weight by the image and by the label
_LEAST = 0.01  # weight of the private image
_AT_ONCE = 2**26  # pixels of public images


def mixed_labels(observation: Observation) -> torch.Tensor | None:
    """Probabilities ``(V, 1, classes)``, where the last layer tells: the bias's gradient is softmax minus label."""
    read = read_softmax(observation, observation.update)
    if read is None:
        return None
    softmax, delta = read
    found = (softmax - delta).nan_to_num(0.0).clamp(1e-9, 1)
    return (found / found.sum(1, keepdim=True)).float()[:, None]


@dataclass(frozen=True)
class Parts:
    """Public images that are in averages of ``V`` victims.

    Args:
        rows: which, of each victim.
        weights: theirs, of each victim.
        likeness: cosine of each average with the public image that it resembles most, ``(V,)``.
    """

    rows: list[list[int]]
    weights: list[torch.Tensor]
    likeness: torch.Tensor

    def weighted(self, images: torch.Tensor) -> torch.Tensor:
        """Of each victim the weighted sum of its parts, ``(V, 1, C, H, W)``, of public images ``(N, C, H, W)``."""
        sums = [torch.einsum("k,kchw->chw", own, images[rows].to(own)) for rows, own in zip(self.rows, self.weights, strict=True)]
        return torch.stack(sums)[:, None]

    def without(self, averages: torch.Tensor, public: Split, labels: torch.Tensor | None) -> torch.Tensor:
        """The averages ``(V, 1, C, H, W)`` less their parts, as images in [0, 1].

        A single part has the weight that the label tells, if they agree.

        Args:
            averages: they may leave [0, 1].
            public: what the parts are from.
            labels: mixed, ``(V, 1, classes)``; None where they cannot be read.
        """
        weights = list(self.weights)
        for victim, rows in enumerate(self.rows):
            if labels is not None and len(rows) == 1:
                told = labels[victim, 0, public.labels[rows[0]]]
                weights[victim] = torch.where((told - weights[victim]).abs() < _AGREE, told, weights[victim])
        private = torch.stack([1 - own.sum() for own in weights]).clamp_min(_LEAST)
        others = Parts(self.rows, weights, self.likeness).weighted(public.inputs)
        return ((averages - others) / private.reshape(-1, 1, 1, 1, 1)).nan_to_num(0.5).clamp(0, 1)


def unmixed(averages: torch.Tensor, observation: Observation, prior: Gaussian) -> torch.Tensor:
    """Images that were averaged with public ones, without these: ``(V, 1, C, H, W)`` in [0, 1].

    Args:
        averages: ``(V, 1, C, H, W)``.
        observation: with the update, and the public images.
        prior: of one image.
    """
    public = observation.without_update().public  # those that play victims are not in it
    return parts_of_averages(averages, public.inputs, Whitened(prior)).without(averages, public, mixed_labels(observation))


def parts_of_averages(averages: torch.Tensor, public: torch.Tensor, prior: Whitened, *, alike: float = _ALIKE, error: float = 0.0) -> Parts:
    """Find the public images in averages, one after the other.

    Photographs in the coordinates of their prior hardly resemble each other: a public image that resembles the average is a part of it
    (a matched filter). The weights are those of least squares.

    Args:
        averages: ``(V, 1, C, H, W)``.
        public: ``(N, C, H, W)``.
        prior: of one image.
        alike: cosine from which on an image is a part.
        error: of the averages, in each pixel: coordinates that vary less than it count less.
    """
    heard = 1 - prior.inverse_curvature(error)
    mixtures = prior.coordinates(averages) * heard
    least = max(alike, _CHANCE / math.sqrt(mixtures.shape[1]))
    rows: list[list[int]] = [[] for _ in mixtures]
    weights = [mixtures.new_zeros(0) for _ in mixtures]
    left, first = mixtures.clone(), mixtures.new_zeros(len(mixtures))
    for turn in range(_PARTS):
        likeness, best = _most_alike(left, public, prior, heard)
        first = likeness if turn == 0 else first
        found = [one for one in range(len(mixtures)) if float(likeness[one]) >= least and int(best[one]) not in rows[one]]
        for victim in found:
            rows[victim].append(int(best[victim]))
            taken = prior.coordinates(public[rows[victim], None].to(averages)) * heard
            weights[victim] = torch.linalg.lstsq(taken.T, mixtures[victim, :, None]).solution[:, 0]
            left[victim] = mixtures[victim] - weights[victim] @ taken
        if not found:
            break
    return Parts(rows, weights, first)


def _most_alike(left: torch.Tensor, public: torch.Tensor, prior: Whitened, heard: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest cosine of each row ``(V, n)`` with a public image, in the prior's coordinates, and which image that is."""
    left = torch.nn.functional.normalize(left, dim=1)
    cosines = [
        left @ torch.nn.functional.normalize(prior.coordinates(some[:, None].to(left)) * heard, dim=1).T
        for some in public.split(max(1, _AT_ONCE // left.shape[1]))
    ]
    largest, which = torch.cat(cosines, dim=1).max(1)
    return largest, which
