"""Inputs and labels: what the attacker may train on (public) and what leaks (private)."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from gitbench.clients.modalities.image import ImageData
from gitbench.core.component import Component
from gitbench.core.errors import DataError
from gitbench.core.modality import Modality
from gitbench.core.random import make_generator
from gitbench.identity.loading import build_part, checked_spec


@dataclass(frozen=True)
class Split:
    """Inputs ``(N, *shape)`` and labels ``(N,)`` int64. Of images the inputs are ``(N, C, H, W)``, float32 in [0, 1]."""

    inputs: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return self.inputs.shape[0]

    def to(self, device: torch.device | str) -> Split:
        return Split(self.inputs.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Data:
    """A loaded dataset. Public is its train split, private its test split; ``modality`` says what an input is."""

    public: Split
    private: Split
    classes: int
    name: str
    modality: Modality = field(default_factory=ImageData)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.public.inputs.shape[1:])


class Dataset(Component):
    """Base of the datasets: arguments in the constructor, reading in :meth:`load`."""

    modality: ClassVar[str] = "image"
    """Name of the kind of data (:class:`gitbench.Modality`): it chooses the matrix and the gate of a run, before anything is loaded."""

    def load(self) -> Data:
        """Read the inputs.

        Raises:
            DataError: missing, damaged or malformed files.
        """
        raise TypeError(f"The dataset {self!r} must define load(self) -> gitbench.Data.")


def load_dataset(dataset: str | Dataset) -> Data:
    """Load a dataset from its SPEC, and check what it returns.

    Raises:
        SpecError: unknown dataset or option.
        DataError: the files cannot be used.
    """
    if isinstance(dataset, str):
        built: Dataset = build_part("dataset", checked_spec("dataset", dataset).parts[0], Dataset)
    else:
        built = dataset
    data = built.load()
    if not isinstance(data, Data):
        raise DataError(f"Expected load() of {built!r} to return a gitbench.Data, got {type(data).__name__}.")
    if data.classes < 2:
        raise DataError(
            f"Expected at least two classes in {built!r}, got {data.classes}: with one there is nothing to tell apart, so that the loss "
            f"and its gradient are zero whatever the {data.modality.noun}. Add {data.modality.noun}s of another class."
        )
    if built.modality != data.modality.name:
        raise DataError(
            f"The class of the dataset {built!r} says that its modality is {built.modality!r}, and its data are {data.modality.name!r}. "
            "Set the attribute modality of the class, which is read before anything is loaded."
        )
    for which, split in (("public", data.public), ("private", data.private)):
        _check(f"{which} split of {built!r}", split, data)
    if data.public.inputs.shape[1:] != data.private.inputs.shape[1:]:
        raise DataError(
            f"Expected public and private {data.modality.noun}s of {built!r} of one shape, got "
            f"{tuple(data.public.inputs.shape[1:])} and {tuple(data.private.inputs.shape[1:])}."
        )
    return data


def draw_victims(private: Split, *, victims: int, batch_size: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Private batches without repetition: inputs ``(V, B, *shape)`` and labels ``(V, B)``.

    Raises:
        DataError: the private split is too small.
    """
    needed = victims * batch_size
    if needed > len(private):
        raise DataError(
            f"{victims} victims of {batch_size} need {needed} private images, the dataset has {len(private)}. "
            "Lower --gitbench-victims or --gitbench-batch-size."
        )
    chosen = torch.randperm(len(private), generator=make_generator(seed, "victims"))[:needed].reshape(victims, batch_size)
    return private.inputs[chosen], private.labels[chosen]


def from_uint8(images: torch.Tensor, *, channels: int | None = None) -> torch.Tensor:
    """Turn uint8 ``(N, H, W, C)`` into float32 ``(N, C, H, W)`` in [0, 1].

    Args:
        images: all of one size.
        channels: 3 repeats the one channel of grey images; None leaves them as they are.

    Raises:
        DataError: the images cannot have so many channels.
    """
    found = images.permute(0, 3, 1, 2).contiguous().float().div_(255)
    if channels is None or channels == found.shape[1]:
        return found
    if channels != 3 or found.shape[1] != 1:
        raise DataError(f"Expected channels=3 for images of one channel, which is repeated, got {channels!r} for {found.shape[1]}.")
    return found.repeat(1, 3, 1, 1)


def need_path(path: str, what: str) -> Path:
    """The path, if it exists.

    Raises:
        DataError: it does not.
    """
    if not isinstance(path, str | os.PathLike):
        raise DataError(f"Expected the path of {what}, got {path!r}.")
    try:
        found = Path(path).expanduser()
        exists = found.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, a home that is none
        raise DataError(f"Expected {what} at {path}, but there can be none: {error}.") from error
    if not exists:
        raise DataError(f"Expected {what} at {found}, found nothing there. Check the path; it is relative to {Path.cwd()}.")
    return found


def _check(what: str, split: Split, data: Data) -> None:
    inputs, labels, modality, classes = split.inputs, split.labels, data.modality, data.classes
    if inputs.ndim != 2 + modality.axes.count(",") or str(inputs.dtype) != f"torch.{modality.dtype}" or not len(inputs):
        raise DataError(
            f"Expected the {what} to be {modality.dtype} (N, {modality.axes}), N > 0, got {inputs.dtype} {tuple(inputs.shape)}."
        )
    if labels.shape != inputs.shape[:1] or labels.dtype != torch.int64:
        raise DataError(f"Expected int64 labels ({len(inputs)},) for the {what}, got {labels.dtype} {tuple(labels.shape)}.")
    problem = modality.problem(inputs)
    if problem:
        raise DataError(f"The {what} cannot be used: {problem}.")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise DataError(f"Expected labels 0..{classes - 1} in the {what}, got {int(labels.min())}..{int(labels.max())}.")
