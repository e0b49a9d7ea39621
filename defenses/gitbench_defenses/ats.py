"""ATS: every image is transformed by a searched policy before its gradient is taken."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from gitbench.clients.defense import Defense

Operation = Callable[[torch.Tensor, float], torch.Tensor]

# Operation and step of its magnitude, in ten steps: the library of 50 from which policies are searched, by number from 0, as published in
# the authors' code (gaow0007/ATSPrivacy, policy.py). The probabilities there are not used by it: what a policy names is always applied.
LIBRARY: tuple[tuple[str, int], ...] = (
    *(("invert", 7), ("contrast", 6), ("rotate", 2), ("translate_x", 9), ("sharpness", 1)),
    *(("sharpness", 3), ("shear_y", 2), ("translate_y", 2), ("autocontrast", 5), ("equalize", 2)),
    *(("shear_y", 5), ("posterize", 5), ("color", 3), ("brightness", 5), ("sharpness", 9)),
    *(("brightness", 9), ("equalize", 5), ("equalize", 1), ("contrast", 7), ("sharpness", 5)),
    *(("color", 5), ("translate_x", 5), ("equalize", 7), ("autocontrast", 8), ("translate_y", 3)),
    *(("sharpness", 6), ("brightness", 6), ("color", 8), ("solarize", 0), ("invert", 0)),
    *(("equalize", 0), ("autocontrast", 0), ("equalize", 8), ("equalize", 4), ("color", 5)),
    *(("equalize", 5), ("autocontrast", 4), ("solarize", 4), ("brightness", 3), ("color", 0)),
    *(("solarize", 1), ("autocontrast", 0), ("translate_y", 3), ("translate_y", 3), ("autocontrast", 1)),
    *(("solarize", 1), ("equalize", 5), ("invert", 0), ("translate_y", 3), ("autocontrast", 1)),
)
_GREY = 128 / 255  # what a rotation leaves empty; a translation and shear leave black
_ENDS = {"translate_x": 150 / 331, "translate_y": 150 / 331, "shear_y": 0.3, "rotate": 30.0}
"""Largest magnitude of what moves pixels: shares of a side, slope, degrees. The smallest is 0."""
_SIGNED = {*_ENDS, "color", "contrast", "sharpness", "brightness"}  # applied with a random sign


class Ats(Defense):
    """Transforms each image before its gradient is taken, by a policy that was searched (Gao et al., CVPR 2021, arXiv 2011.12505).

    A policy is one or several lists of transformations, ``3-1-7+43-18-18``: of each image one list is drawn, and its transformations are
    applied in order; those that have a direction, in a random one. The default is the hybrid policy of the authors' benchmark for CIFAR-100
    and ResNet20. The library of 50 transformations is that of their code; the operations are torchvision's on float images, where
    theirs are PIL's on 8 bits. The random crops and flips that their training adds are left out. Labels stay.

    The truth of a measurement are the private images, not the transformed ones: what is shifted out of an image is lost to the
    attacker, and what is merely darker is a worse picture of it by squared error, though not to the eye.

    What an attacker knows: the policy; what it drew it does not. Known breaks: transformed images are reconstructed in early training all
    the same (Balunović et al., ICLR 2022, arXiv 2111.04706); and a policy has few outcomes, so that they can be tried one by one, and the
    image behind be searched (``auto``, docs/breaks.md).

    Args:
        policy: numbers from 0 to 49, joined by ``-``; lists of them, joined by ``+``.
    """

    name = "ats"
    modalities = ("image",)

    def __init__(self, *, policy: str = "3-1-7+43-18-18") -> None:
        self.policy = policy
        self.lists = _parsed(policy)

    def prepare(self, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images = inputs.flatten(0, 1).clone()
        which = torch.randint(len(self.lists), (len(images),), generator=generator)
        steps = max(len(numbers) for numbers in self.lists)
        signs = torch.randint(2, (len(images), steps), generator=generator) * 2 - 1
        for number, numbers in enumerate(self.lists):
            for step, transformation in enumerate(numbers):
                for sign in (-1, 1):
                    rows = ((which == number) & (signs[:, step] == sign)).nonzero()[:, 0].to(images.device)
                    if len(rows):
                        images[rows] = transformed(images[rows], *LIBRARY[transformation], sign=sign)
        return images.unflatten(0, inputs.shape[:2]), labels


def transformed(images: torch.Tensor, operation: str, step: int, *, sign: int = 1) -> torch.Tensor:
    """Images ``(N, C, H, W)`` in [0, 1] through one operation.

    Args:
        images: to transform.
        operation: its name.
        step: of its magnitude, 0 to 9.
        sign: of its direction, where it has one.
    """
    part = step / 9 * (sign if operation in _SIGNED else 1)
    height, width = images.shape[-2:]
    if operation in ("translate_x", "translate_y"):
        shift = part * _ENDS[operation]
        return _moved(images, translate=[shift * width, 0.0] if operation == "translate_x" else [0.0, shift * height])
    found: torch.Tensor
    match operation:
        case "shear_y":
            found = _moved(images, shear=[0.0, math.degrees(math.atan(part * _ENDS[operation]))])
        case "rotate":
            found = functional.rotate(images, part * _ENDS[operation], fill=[_GREY])
        case "color":
            found = functional.adjust_saturation(images, 1 + 0.5 * part)
        case "contrast":
            found = functional.adjust_contrast(images, 1 + 0.5 * part)
        case "sharpness":
            found = functional.adjust_sharpness(images, 1 + 0.5 * part)
        case "brightness":
            found = functional.adjust_brightness(images, 1 + 0.5 * part)
        case "posterize":
            found = functional.posterize(images, bits=round(8 - 4 * part))
        case "solarize":
            # Of 8 bits the threshold is 256 at step 0, above all values.
            found = functional.solarize(images, 256 * (1 - part) / 255) if step else images
        case "autocontrast":
            found = functional.autocontrast(images)
        case "equalize":
            found = functional.equalize(images)
        case "invert":
            found = functional.invert(images)
        case _:
            raise ValueError(f"expected an operation of the library, got {operation!r}")
    return found.clamp(0, 1)


def _moved(images: torch.Tensor, *, translate: list[float] | None = None, shear: list[float] | None = None) -> torch.Tensor:
    """By the nearest pixel, with black where nothing comes from; sheared about the upper left corner, as PIL's affine maps are."""
    found: torch.Tensor = functional.affine(
        images,
        angle=0.0,
        translate=translate or [0.0, 0.0],
        scale=1.0,
        shear=shear or [0.0, 0.0],
        interpolation=v2.InterpolationMode.NEAREST,
        fill=[0.0],
        center=[0.0, 0.0] if shear else None,
    )
    return found


def _parsed(policy: object) -> tuple[tuple[int, ...], ...]:
    """Lists of numbers.

    Raises:
        ValueError: it is no policy.
    """
    lists = [part.split("-") for part in policy.split("+")] if isinstance(policy, str) else [[""]]
    numbers = [number for part in lists for number in part]
    if not all(number.isascii() and number.isdigit() and int(number) < len(LIBRARY) for number in numbers):
        raise ValueError(f"expected a policy of numbers from 0 to {len(LIBRARY) - 1} such as '3-1-7+43-18-18', got {policy!r}")
    return tuple(tuple(map(int, part)) for part in lists)
