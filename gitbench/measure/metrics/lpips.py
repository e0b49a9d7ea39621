"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) with AlexNet, offline."""

from __future__ import annotations

import functools
import warnings
from importlib import resources
from typing import TYPE_CHECKING, Any

from gitbench.core.metric import Metric

if TYPE_CHECKING:
    import torch

SMALLEST = 32  # pixels; AlexNet's pooling leaves nothing of smaller images


class Lpips(Metric):
    """Perceptual distance of images of one or three channels.

    Grey images count as three equal channels; images smaller than 32 pixels are enlarged to 32.
    """

    name, heading = "lpips", "LPIPS"
    higher_leaks = False
    low = 0.0
    tolerance = 0.02
    summary = "perceptual distance (Zhang et al. 2018), AlexNet"

    def score(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        import torch

        network = _network(found.device)
        with torch.no_grad():
            distances = [
                network(_prepared(a), _prepared(b), normalize=True).flatten() for a, b in zip(found.split(64), truth.split(64), strict=True)
            ]
        return torch.cat(distances).double().clamp_min(0)


def _prepared(images: torch.Tensor) -> torch.Tensor:
    from torch.nn import functional

    images = images.float()
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    height, width = images.shape[2:]
    if min(height, width) < SMALLEST:
        scale = SMALLEST / min(height, width)
        size = (round(height * scale), round(width * scale))
        images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False)
    return images


@functools.cache
def _network(device: torch.device) -> Any:
    """The published linear weights from the lpips package, on ImageNet features shipped here as float16."""
    import torch
    from lpips import LPIPS
    from safetensors.torch import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecations inside the package
        # On no device: its classifier, which no distance needs, has 58 of AlexNet's 61 million random weights.
        with torch.device("meta"):
            network = LPIPS(net="alex", pnet_rand=True, pretrained=False, verbose=False)
    with resources.files("lpips").joinpath("weights/v0.1/alex.pth").open("rb") as file:
        linear = torch.load(file, map_location="cpu", weights_only=True)
    weights = resources.files("gitbench.measure.metrics").joinpath("lpips_alexnet_features.safetensors").read_bytes()
    features = {key.removeprefix("features."): value.float() for key, value in load(weights).items()}
    # lpips keeps torchvision's layer numbers inside its slices: slice2.3.weight is features.3.weight.
    network.net.load_state_dict({key: features[key.partition(".")[2]] for key in network.net.state_dict()}, assign=True)
    network.load_state_dict(linear, strict=False, assign=True)
    return network.to(device).eval().requires_grad_(False)
