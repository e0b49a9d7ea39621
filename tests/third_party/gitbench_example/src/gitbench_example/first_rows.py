"""An attack of a few lines."""

from __future__ import annotations

import torch

import gitbench


class FirstRows(gitbench.Attack):
    """The input of a first linear layer, from its own gradients: ``W_k = b_k x``. Exact for one example."""

    name = "first_rows"
    requires = frozenset({"architecture"})

    def run(self, observation, state, *, generator, progress) -> torch.Tensor:
        weight, bias = list(observation.update.tensors.values())[:2]  # (V, K, D) and (V, K)
        inputs = (bias[:, None] @ weight)[:, 0] / bias.square().sum(1, keepdim=True).clamp_min(1e-12)
        images = inputs.reshape(-1, 1, *observation.input_shape).clamp(0, 1)
        return images.expand(-1, observation.batch_size, -1, -1, -1)
