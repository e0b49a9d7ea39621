"""CENSOR: a random update at right angles to the gradient."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.differentiation import stacked_losses
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Batch, Update, per_victim
from gitbench.core.errors import DefenseError
from gitbench.core.random import randn_like

_ENTRIES = 2**21  # of the updates that are tried at once
_ROUNDING = 1e-4  # of a random tensor's length: what is left of it is nothing but rounding


class Censor(Defense):
    """Sends, tensor by tensor, a random direction orthogonal to the gradient, and as long (Zhang et al., NDSS 2025, arXiv 2501.15718).

    Each of ``trials`` candidates is standard normal noise less its projection on the gradient, rescaled; that with the lowest loss of
    the client's own batch after a step of length ``lr`` (the model in eval mode) is sent. As the authors' code does it, but for two
    faults of that code: its projection divides by the gradient's length in place of the squared length, so that the result is orthogonal
    for tensors of length 1 alone, and it sends the raw gradient where no candidate has a finite loss. Here the projection is exact, and
    the raw gradient is never sent. A tensor of a single entry has nothing orthogonal to it, and is sent as zero.

    What an attacker knows: the length of each tensor is that of the raw gradient, to which what is sent is at right angles. With a
    single image the lengths of a first linear layer's weight and bias give away how long the image is, for one. :meth:`expected` is
    the attacker's gradient seen through exactly that.

    What it costs: to first order a step along what is sent does not change the loss of that batch; where the flag ``destroys-utility``
    stands beside a cell, that is what it says.

    Args:
        trials: candidates, at least 1.
        lr: length of the step, in gradients; the authors' 1e-4.
    """

    name = "censor"
    needs_batch = True

    def __init__(self, *, trials: int = 10, lr: float = 1e-4) -> None:
        if not isinstance(trials, int) or trials < 1:
            raise ValueError(f"expected trials >= 1, got {trials!r}")
        if not 0 < lr < float("inf"):
            raise ValueError(f"expected lr > 0, got {lr}")
        self.trials = trials
        self.lr = lr

    def declared(self, *, batch_size: int) -> Declared:
        return Declared(hides=True)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        if update.batch is None:
            raise DefenseError(f"{self!r} needs the client's model and images, and got an update without its batch.")
        # A few victims at a time: each has weights of its own, trial by trial.
        size = sum(tensor[0].numel() for tensor in update.tensors.values())
        rows = torch.arange(len(update)).split(max(1, _ENTRIES // size))
        return Update.cat([self._best(update[some], generator) for some in rows])

    def _best(self, update: Update, generator: torch.Generator) -> Update:
        """Of the candidates that with the lowest loss."""
        assert update.batch is not None
        best: dict[str, torch.Tensor] = {}
        lowest = torch.full((len(update),), torch.inf, device=update.batch.inputs.device)
        for _ in range(self.trials):
            tried = {name: orthogonal(tensor, generator) for name, tensor in update.tensors.items()}
            losses = self.losses(update.batch, tried)
            better = losses < lowest
            lowest = torch.where(better, losses, lowest)
            for name, tensor in tried.items():
                best[name] = torch.where(per_victim(better, tensor), tensor, best.get(name, tensor))
        return Update(best)

    def losses(self, batch: Batch, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Of each victim's batch after a step along ``tensors``, ``(V,)``; infinite where it is not a number."""
        weights = trained_parameters(batch.model)
        moved = {name: weights[name].detach() - self.lr * tensor for name, tensor in tensors.items()}
        modes = [(module, module.training) for module in batch.model.modules()]
        batch.model.eval()
        try:
            return stacked_losses(batch.model, moved, batch.inputs, batch.labels).nan_to_num(torch.inf)
        finally:
            for module, mode in modes:
                module.training = mode

    def expected(self, update: Update, *, observed: Update) -> Update:
        # As long as the attacker's own tensor, along what was sent, and off it as far as the own tensor is not at right angles to it:
        # what was sent, where both are as for the raw gradient.
        def seen(name: str, tensor: torch.Tensor) -> torch.Tensor:
            own, sent = tensor.reshape(len(tensor), -1), observed.tensors[name].reshape(len(tensor), -1)
            along = sent / sent.norm(dim=1, keepdim=True).clamp_min(1e-30)
            dot = (own * along).sum(1, keepdim=True)
            across = own - dot * along
            across = across / across.norm(dim=1, keepdim=True).clamp_min(1e-30)
            found: torch.Tensor = own.norm(dim=1, keepdim=True) * along + dot * across
            return found.reshape(tensor.shape)

        return update.map(seen)


def orthogonal(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A random direction at right angles to each victim's tensor ``(V, ...)``, as long as that; zero where there is none."""
    own = tensor.detach().reshape(len(tensor), -1)
    drawn = randn_like(own, generator)
    length = own.norm(dim=1, keepdim=True)
    unit = own / length.clamp_min(torch.finfo(own.dtype).tiny)
    found = drawn - (drawn[:, None] @ unit[:, :, None])[:, 0] * unit
    left = found.norm(dim=1, keepdim=True)
    there = left > _ROUNDING * drawn.norm(dim=1, keepdim=True)
    sent: torch.Tensor = found * torch.where(there, length / left, 0.0)
    return sent.reshape(tensor.shape)
