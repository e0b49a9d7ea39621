"""A model called with other parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch
from torch import nn
from torch.func import functional_call


def called_with(model: nn.Module, values: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    """What a model returns with other parameters and buffers in place of its own; it is left as it was.

    ``torch.func.functional_call`` would leave a layer that stands in two places of a model with the other ones (PyTorch issue 164759).

    Args:
        model: any.
        values: by their names; the model's own stand in for those that are not there.
        inputs: what it is called with.
    """
    places = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    own = [(module, {**module._parameters}, {**module._buffers}) for module, count in places.items() if count > 1]
    try:
        found: torch.Tensor = functional_call(model, dict(values), (inputs,))
    finally:
        for module, parameters, buffers in own:
            module._parameters.update(parameters)
            module._buffers.update(buffers)
    return found
