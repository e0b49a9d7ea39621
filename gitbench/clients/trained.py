"""Which parameters train: an update has exactly those, and a client sends nothing of the others."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from torch import nn

from gitbench.core.errors import ModelError, SpecError, nearest


def trained_parameters(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The parameters that train (``requires_grad``) by name, in the model's order.

    Raises:
        ModelError: there are none.
    """
    found = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not found:
        raise ModelError(
            f"Expected a model with parameters that train, found none in {type(model).__name__}: a client would send nothing. "
            "Call requires_grad_(True) on what the client trains."
        )
    return found


def sent_share(model: nn.Module) -> float:
    """The entries of an update as a share of all entries of the model's parameters."""
    sent = sum(parameter.numel() for parameter in trained_parameters(model).values())
    return sent / sum(parameter.numel() for parameter in model.parameters())


def freeze(network: nn.Module, frozen: object, *, model: str) -> None:
    """Freeze the parameters that an option ``frozen`` names.

    Args:
        network: changed in place.
        frozen: names of modules or parameters; ``*`` stands for any text. A single name may stand alone.
        model: the SPEC, for messages.

    Raises:
        SpecError: no names, or one that matches nothing.
    """
    patterns = [frozen] if isinstance(frozen, str) else frozen
    if not isinstance(patterns, list | tuple) or not all(isinstance(pattern, str) for pattern in patterns):
        raise SpecError(f"Expected frozen of {model!r} to be names of modules or parameters, such as ('conv1', '*.bias'), got {frozen!r}.")
    parameters = dict(network.named_parameters())
    for pattern in patterns:
        matched = [name for name in parameters if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")]
        if not matched:
            modules = {name.rpartition(".")[0] or name for name in parameters}
            raise SpecError(f"The model {model!r} has no module or parameter {pattern!r} to freeze.{nearest(pattern, modules)}")
        for name in matched:
            parameters[name].requires_grad_(False)
