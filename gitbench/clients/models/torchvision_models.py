"""torchvision's classifiers by name, with fresh parameters."""

from __future__ import annotations

from torch import nn
from torchvision import models

from gitbench.clients.data import Data
from gitbench.clients.model import ModelFactory
from gitbench.clients.normalize import Normalize
from gitbench.core.errors import nearest


class Torchvision(ModelFactory):
    """Any torchvision classifier, for example ``torchvision(name='resnet18')``.

    Normalises with the public mean and standard deviation. No weights are downloaded. GoogLeNet and Inception v3 come without
    their auxiliary outputs, vision transformers with positions for the data's size, where patches divide it.

    Args:
        name: as in ``torchvision.models``.
    """

    name = "torchvision"

    def __init__(self, *, name: str) -> None:
        classifiers = models.list_models(module=models)
        if name not in classifiers:
            raise ValueError(f"torchvision has no classifier {name!r}.{nearest(name, classifiers)}")
        self.architecture = name

    def build(self, data: Data) -> nn.Module:
        options: dict[str, object] = {}
        if self.architecture in ("googlenet", "inception_v3"):
            options = {"init_weights": True, "aux_logits": False}
        _, height, width = data.input_shape
        if self.architecture.startswith("vit_") and height == width and not height % int(self.architecture.split("_")[-1]):
            options["image_size"] = height
        network = models.get_model(self.architecture, weights=None, num_classes=data.classes, **options)
        # ReLU in place would overwrite what a second differentiation needs.
        for module in network.modules():
            if hasattr(module, "inplace"):
                module.inplace = False
        return nn.Sequential(Normalize.of(data), network)
