"""What several attacks on text share: the token table, and batches of tokens put together."""

from __future__ import annotations

from collections.abc import Sequence

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


_CALLED = {"query": "key", "q_proj": "k_proj", "q_lin": "k_lin", "q": "k"}  # as the common models call the layers of attention


def query_layers(model: nn.Module) -> list[str]:
    """Names of the layers that make queries, first block first: linear ones that are called as the common models call them."""
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name.rpartition(".")[2] in _CALLED]


def key_layer(query: str) -> str:
    """How the layer that makes the keys for a query layer is called, in whatever model has one."""
    owner, _, called = query.rpartition(".")
    return f"{owner}.{_CALLED[called]}" if owner else _CALLED[called]


def layers_between(model: nn.Module, queries: Sequence[str], tokens: torch.Tensor) -> list[str]:
    """Names of the linear layers that read positions, after the first query layer and up to the second, or to the end where there is none.

    Those that read what the first query layer reads are left out.

    Args:
        model: passed once, over some ``tokens (N, L)``.
        queries: names of query layers, first block first.
    """
    called: dict[str, torch.Tensor] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        return module.register_forward_pre_hook(lambda _module, arguments: called.update({name: arguments[0]}))

    handles = [watch(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    names = [name for name, read in called.items() if read.ndim == 3]
    last = names.index(queries[1]) if len(queries) > 1 else len(names) - 1
    return [name for name in names[names.index(queries[0]) : last + 1] if called[name] is not called[queries[0]]]


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
