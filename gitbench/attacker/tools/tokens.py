"""What several attacks on text share: the token table, and batches of tokens put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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


# As the common models call the layers of attention: of the query those of the key and the value, which read the same.
_CALLED = {"query": ("key", "value"), "q_proj": ("k_proj", "v_proj"), "q_lin": ("k_lin", "v_lin"), "q": ("k", "v")}


def query_layers(model: nn.Module) -> list[str]:
    """Names of the layers that make queries, first block first: linear ones that are called as the common models call them.

    Of one with an adapter beside it (LoRA) the adapter's last factor, which trains and reads what the first makes of the layer's input.
    """
    found = list[str]()
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in _CALLED:
            linear = [f"{name}.{own}".rstrip(".") for own, part in module.named_modules() if isinstance(part, nn.Linear)]
            found += [name] if linear == [name] else linear[-1:]
    return found


def beside(query: str) -> tuple[str, ...]:
    """How the layers of keys and of values beside a query layer are called, in a model that has them; of an adapter none reads the same."""
    owner, _, called = query.rpartition(".")
    return tuple(f"{owner}.{other}".lstrip(".") for other in _CALLED.get(called, ()))


def attention_gradient(update: Mapping[str, torch.Tensor], query: str) -> torch.Tensor | None:
    """The gradients of the layers of queries, keys and values one below the other ``(..., outputs, d)``, as far as they are sent.

    A query that sees one key alone, as the first of a causal model does, has no slope: the values have. Of any other layer its own.
    """
    sent = [update[f"{name}.weight"] for name in (query, *beside(query)) if f"{name}.weight" in update]
    alike = [tensor for tensor in sent if tensor.shape[-1] == sent[0].shape[-1]]
    return torch.cat(alike, dim=-2) if alike else None


def layers_between(model: nn.Module, queries: Sequence[str], tokens: torch.Tensor) -> list[str]:
    """Names of the linear layers that read positions, after the first query layer and up to the second, or to the end where there is none.

    Those that read what the first query layer reads are left out.

    Args:
        model: passed once, over some ``tokens (N, L)``.
        queries: names of query layers, first block first.
    """
    called = _read(model, [name for name, module in model.named_modules() if isinstance(module, nn.Linear)], tokens)
    names = [name for name, read in called.items() if read.ndim == 3]
    last = names.index(queries[1]) if len(queries) > 1 else len(names) - 1
    return [name for name in names[names.index(queries[0]) : last + 1] if called[name] is not called[queries[0]]]


def layer_inputs(model: nn.Module, names: list[str], tokens: torch.Tensor) -> list[torch.Tensor]:
    """What some linear layers read of sequences ``(N, L)``, each ``(N, positions, d)``."""
    read = _read(model, names, tokens)
    return [read[name] for name in names]


def _read(model: nn.Module, names: Sequence[str], tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same of all of them by name, in the order in which they are called."""
    found: dict[str, torch.Tensor] = {}

    def watch(name: str) -> torch.utils.hooks.RemovableHandle:
        return model.get_submodule(name).register_forward_pre_hook(lambda _module, arguments: found.update({name: arguments[0]}))

    handles = [watch(name) for name in names]
    try:
        with torch.no_grad():
            model(tokens)
    finally:
        for handle in handles:
            handle.remove()
    return found
