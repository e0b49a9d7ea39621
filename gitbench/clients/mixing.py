"""Batches whose images and labels are mixed with others: what the defenses that do so share."""

from __future__ import annotations

import torch
from torch.nn import functional

from gitbench.clients.data import Split
from gitbench.clients.model import classes_of
from gitbench.clients.update import Batch
from gitbench.core.errors import DefenseError

SOURCES = ("public", "batch")
"""Where partners come from: the stand-in for the client's other data, or the batch itself."""


def mixed(batch: Batch, weights: torch.Tensor, partners: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Each image and its label, as probabilities, averaged with those of its partners.

    Args:
        batch: of ``V`` victims.
        weights: ``(V, B, k)``, each image's own first; they add up to 1.
        partners: images ``(V, B, k - 1, C, H, W)`` and probabilities ``(V, B, k - 1, classes)``.
    """
    weights = weights.to(batch.inputs)
    inputs = torch.cat([batch.inputs[:, :, None], partners[0]], dim=2)
    labels = torch.cat([probabilities(batch)[:, :, None], partners[1]], dim=2)
    return torch.einsum("vbk,vbkchw->vbchw", weights, inputs), torch.einsum("vbk,vbkc->vbc", weights, labels)


def draw_partners(
    batch: Batch, count: int, *, source: str, public: Split | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """So many partners of each image, for :func:`mixed`.

    Args:
        batch: of ``V`` victims.
        count: of partners, ``k - 1``.
        source: one of :data:`SOURCES`. Of the batch, each column of partners is a permutation of it, in which an image may stay in
            its place; of the public split, each partner is any of its images.
        public: the split.
        generator: draws for each victim.

    Raises:
        DefenseError: there are no public images.
    """
    victims, size = batch.inputs.shape[:2]
    if source == "batch":
        order = torch.rand((victims, count, size), generator=generator).argsort(2).transpose(1, 2).to(batch.inputs.device)
        rows = torch.arange(victims, device=order.device)[:, None, None]
        return batch.inputs[rows, order], probabilities(batch)[rows, order]
    if public is None or not len(public):
        raise DefenseError(
            "Images are mixed with public ones, which stand in for the client's other data, and there are none. Pass public=."
        )
    order = torch.randint(len(public), (victims, size, count), generator=generator).to(public.inputs.device)
    labels = functional.one_hot(public.labels[order], classes_of(batch.model)).to(batch.inputs)
    return public.inputs[order].to(batch.inputs), labels


def probabilities(batch: Batch) -> torch.Tensor:
    """The labels as ``(V, B, classes)``."""
    if batch.labels.is_floating_point():
        return batch.labels
    return functional.one_hot(batch.labels, classes_of(batch.model)).to(batch.inputs)


def check_source(partners: str) -> None:
    """Check where partners come from.

    Raises:
        ValueError: it is none of :data:`SOURCES`.
    """
    if partners not in SOURCES:
        raise ValueError(f"expected partners 'public' or 'batch', got {partners!r}")
