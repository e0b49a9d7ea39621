"""What several attacks on text share: the token table, and batches of tokens put together."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.attacker.observation import Observation
from gitbench.clients.modalities.text import TextData
from gitbench.core.errors import AttackError


def text_of(observation: Observation) -> TextData:
    """The modality of an observation of text.

    Raises:
        AttackError: it is none.
    """
    if not isinstance(observation.modality, TextData):
        raise AttackError(f"Expected tokens, got {observation.modality.name} data.")
    return observation.modality


def token_gradient(observation: Observation) -> torch.Tensor | None:
    """The gradient of the token embedding ``(V, vocabulary, d)``; None where it is not sent."""
    name, _ = text_of(observation).table(observation.architecture)
    return observation.update.tensors.get(f"{name}.weight")


def query_layers(model: nn.Module) -> list[str]:
    """Names of the layers that make queries, first block first: linear ones that are called as the common models call them."""
    called = ("query", "q_proj", "q_lin", "q")
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.rpartition(".")[2] in called]


def layer_inputs(model: nn.Module, names: list[str], tokens: torch.Tensor) -> list[torch.Tensor]:
    """What some linear layers read of sequences ``(N, L)``, each ``(N, positions, d)``."""
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_pre_hook(lambda _module, arguments: seen.update({name: arguments[0].detach()}))

    handles = [watch(name) for name in names]
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return [seen[name] for name in names]
