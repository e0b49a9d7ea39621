"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) with AlexNet, offline."""

from __future__ import annotations

import functools
import warnings
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load
from torch.nn import functional

SMALLEST = 32  # pixels; AlexNet's pooling leaves nothing of smaller images


def lpips(images: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Perceptual distance of pixels in [0, 1]: ``(N, 1 or 3, H, W)`` twice to ``(N,)``.

    Grey images count as three equal channels; images smaller than 32 pixels are enlarged to 32.
    """
    network = _network(images.device)
    with torch.no_grad():
        distances = [
            network(_prepared(a), _prepared(b), normalize=True).flatten() for a, b in zip(images.split(64), truth.split(64), strict=True)
        ]
    return torch.cat(distances).double().clamp_min(0)


def _prepared(images: torch.Tensor) -> torch.Tensor:
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
    from lpips import LPIPS

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision deprecations inside the package
        with torch.random.fork_rng(devices=[]):
            network = LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = resources.files("gitbench.measure.metrics").joinpath("lpips_alexnet_features.safetensors").read_bytes()
    features = {key.removeprefix("features."): value.float() for key, value in load(weights).items()}
    # lpips keeps torchvision's layer numbers inside its slices: slice2.3.weight is features.3.weight.
    state = network.net.state_dict()
    for key in state:
        state[key] = features[key.partition(".")[2]]
    network.net.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False)
