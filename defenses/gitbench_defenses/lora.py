"""LoRA: clients train low-rank adapters beside frozen layers, and send nothing else."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn

from gitbench.clients.defense import Defense
from gitbench.clients.model import last_layer
from gitbench.clients.task import own_targets
from gitbench.core.random import make_generator


class LoraLinear(nn.Module):
    """``W x + b + B A x``, with ``W`` and ``b`` frozen; its parts are called as peft calls them.

    Args:
        layer: the frozen one.
        rank: of what is added.
        generator: draws ``A``.
    """

    def __init__(self, layer: nn.Linear, *, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        device, dtype = layer.weight.device, layer.weight.dtype
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.base_layer = layer
        self.lora_A = nn.Linear(layer.in_features, rank, bias=False, device=device, dtype=dtype)
        self.lora_B = nn.Linear(rank, layer.out_features, bias=False, device=device, dtype=dtype)
        bound = 1 / math.sqrt(layer.in_features)
        drawn = torch.rand(self.lora_A.weight.shape, generator=generator)
        with torch.no_grad():
            self.lora_A.weight.copy_(bound * (2 * drawn - 1))
            self.lora_B.weight.zero_()
        self.train(layer.training)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.base_layer(inputs) + self.lora_B(self.lora_A(inputs))
        return found


class Lora(Defense):
    """Adapters of low rank beside every linear layer but the last, and nothing else trains (Hu et al., arXiv 2106.09685).

    As in the first round of a fine-tuning: ``A`` is drawn at random, which everybody knows, and ``B`` is zero, so that the gradient of
    ``A`` is zero and that of ``B`` has the layer's gradient times ``A``. The last layer trains where it is the classifier, which a task
    brings along; that of a model with targets of its own (the next token) is frozen, as peft does it. Convolutions are frozen.

    Args:
        rank: of the adapters.
    """

    name = "lora"

    def __init__(self, *, rank: int = 4) -> None:
        if type(rank) is not int or rank < 1:
            raise ValueError(f"expected rank to be a whole number >= 1, got {rank!r}")
        self.rank = rank

    def modify_model(self, model: nn.Module) -> nn.Module:
        adapted = copy.deepcopy(model)
        last, generator = last_layer(adapted)[0], make_generator(0, "lora")
        own = {id(parameter) for parameter in adapted.get_submodule(last).parameters() if parameter.requires_grad}
        adapted.requires_grad_(False)
        for name, module in list(adapted.named_modules()):
            if type(module) is nn.Linear and name != last:
                owner, _, called = name.rpartition(".")
                setattr(adapted.get_submodule(owner), called, LoraLinear(module, rank=self.rank, generator=generator))
        if own_targets(adapted) is None:
            for parameter in adapted.get_submodule(last).parameters():
                parameter.requires_grad_(id(parameter) in own)
        return adapted
