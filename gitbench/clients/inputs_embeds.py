"""Models as the library transformers builds them: they are given tokens as ``input_ids`` and vectors as ``inputs_embeds``."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn

from gitbench.clients.token_embedding import next_tokens


def takes_embeddings(network: nn.Module) -> bool:
    """Whether a network has both names in its forward pass."""
    return {"input_ids", "inputs_embeds"} <= set(inspect.signature(network.forward).parameters)


def adapt_inputs(network: nn.Module, table: nn.Embedding, *, end: int) -> None:
    """Let a network that :func:`takes_embeddings` take either of them as its one argument, and learn the next token if it is made for that.

    Args:
        network: changed by a hook and by attributes: its modules and their names stay as they are.
        table: its token embedding.
        end: the token that follows the last.
    """
    for key in [key for key, hook in network._forward_pre_hooks.items() if isinstance(hook, _Named)]:
        del network._forward_pre_hooks[key]  # of a factory that returns the same network again
    cached = "use_cache" in inspect.signature(network.forward).parameters
    network.register_forward_pre_hook(_Named(cached=cached), with_kwargs=True)
    generates = getattr(network, "can_generate", None)
    if generates is not None and generates() and not hasattr(network, "targets"):
        vars(network).update(targets=_NextTokens(table, end), target_classes=table.num_embeddings)


class _Named:
    """A hook that gives the only argument its name. What a model keeps for the tokens to come is not asked for."""

    def __init__(self, *, cached: bool) -> None:
        self._more = {"use_cache": False} if cached else {}

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if len(inputs) != 1 or named:
            return inputs, named
        (given,) = inputs
        return (), {"inputs_embeds" if given.is_floating_point() else "input_ids": given, **self._more}


class _NextTokens:
    """Targets of a language model without a start vector, which says nothing of the first token.

    Args:
        table: the token embedding, which is copied with the model.
        end: the token that follows the last.
    """

    def __init__(self, table: nn.Embedding, end: int) -> None:
        self._table, self._end = table, end

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        found = next_tokens(inputs, self._table.weight.detach(), end=self._end)
        return found[..., 1:, :] if inputs.is_floating_point() else found[..., 1:]
