"""FedAvg: a client trains for some steps and sends how its weights have changed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from gitbench.clients.differentiation import stacked_gradients
from gitbench.clients.procedure import Client
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Update
from gitbench.core.errors import DefenseError


class FedAvg(Client):
    """Sends its weights before minus after ``steps`` of plain SGD, which points as a gradient does.

    Of McMahan et al. 2017, Communication-Efficient Learning of Deep Networks. Weights are float32, so that a short step
    leaves few digits of the difference.

    Its images are shuffled and cut into mini-batches, the last of which may be smaller; when they are through, they are
    shuffled anew. BatchNorm's running statistics are not sent.

    Args:
        steps: of SGD.
        lr: its learning rate.
        batch_size: images a step; None takes all of the client's.
    """

    name = "fedavg"

    def __init__(self, *, steps: int = 5, lr: float = 0.01, batch_size: int | None = None) -> None:
        if not isinstance(steps, int) or steps < 1:
            raise ValueError(f"expected steps >= 1, got {steps!r}")
        if not isinstance(lr, int | float) or not 0 < lr < float("inf"):
            raise ValueError(f"expected lr > 0, got {lr!r}")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise ValueError(f"expected batch_size >= 1 or None, got {batch_size!r}")
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.unit = lr * steps

    def local_update(
        self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator, per_example: bool = False
    ) -> Update:
        if per_example:
            raise DefenseError(
                f"{self!r} sends one difference of weights, and the defense asks for each example's gradient. "
                "Use the client fedsgd, or protect the difference: clipping | gaussian_noise."
            )
        before = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
        weights = {name: tensor.expand(len(inputs), *tensor.shape) for name, tensor in before.items()}
        victims = torch.arange(len(inputs), device=inputs.device)[:, None]
        for rows in self._order(*labels.shape[:2], generator=generator):
            chosen = victims, rows.to(inputs.device)
            slopes = stacked_gradients(model, weights, inputs[chosen], labels[chosen], per_example=False, own_weights=True)
            weights = {name: tensor - self.lr * slopes[name] for name, tensor in weights.items()}
        return Update({name: (before[name] - tensor) / self.unit for name, tensor in weights.items()})

    def _order(self, victims: int, images: int, *, generator: torch.Generator) -> Iterator[torch.Tensor]:
        """The images of each step ``(V, b)``, drawn for each victim by itself."""
        left: list[torch.Tensor] = []
        for _ in range(self.steps):
            left = left or list(torch.rand((victims, images), generator=generator).argsort(1).split(self.batch_size or images, dim=1))
            yield left.pop(0)
