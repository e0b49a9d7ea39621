"""DP-SGD as Opacus does it."""

from __future__ import annotations

import warnings

import torch

from gitbench.clients.defense import Declared, Defense
from gitbench.clients.update import Update, mean_of_clipped
from gitbench.core.errors import DefenseError
from gitbench.core.random import randn_like


class DpSgd(Defense):
    """Clips every example's gradient and adds Gaussian noise to their sum (Abadi et al., arXiv 1607.00133).

    The arithmetic is that of Opacus: each example is scaled by ``min(1, max_grad_norm / (norm + 1e-6))``,
    noise of standard deviation ``noise_multiplier * max_grad_norm`` is added to the sum, and the sum is
    divided by the batch size.

    Args:
        noise_multiplier: noise over clipping norm.
        max_grad_norm: largest L2 norm of one example's gradient.
    """

    name = "dp_sgd"
    needs_per_example = True

    def __init__(self, *, noise_multiplier: float, max_grad_norm: float = 1.0) -> None:
        if not (noise_multiplier >= 0 and max_grad_norm > 0):
            raise ValueError(f"expected noise_multiplier >= 0 and max_grad_norm > 0, got {noise_multiplier} and {max_grad_norm}")
        self.noise_multiplier = noise_multiplier
        self.max_grad_norm = max_grad_norm

    def declared(self, *, batch_size: int) -> Declared:
        std = self.noise_multiplier * self.max_grad_norm / batch_size
        return Declared(noise_std=std, hides=std > 0, max_norm=self.max_grad_norm if std == 0 else None)

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        clipped = self.expected(update, observed=update)
        if update.per_example is None or self.noise_multiplier == 0:
            return clipped
        batch = next(iter(update.per_example.values())).shape[1]
        std = self.noise_multiplier * self.max_grad_norm / batch
        return clipped.map(lambda _, tensor: tensor + std * randn_like(tensor, generator))

    def expected(self, update: Update, *, observed: Update) -> Update:
        if update.per_example is None:
            raise DefenseError(
                "dp_sgd needs every example's gradient, but a defense to its left has changed their average. Put dp_sgd first."
            )
        return mean_of_clipped(update.per_example, self.max_grad_norm)

    def privacy_spent(self, *, sample_rate: float, steps: int, delta: float) -> float:
        return self.epsilon(sample_rate=sample_rate, steps=steps, delta=delta)

    def epsilon(self, *, sample_rate: float, steps: int, delta: float, accountant: str = "rdp") -> float:
        """Privacy spent by a training run with these settings, from Opacus's accountant.

        Args:
            sample_rate: batch size over dataset size.
            steps: optimizer steps of the run.
            delta: the δ at which ε is reported.
            accountant: ``rdp``, ``gdp`` or ``prv``.

        Raises:
            ValueError: a number that cannot be.
        """
        if not (0 < sample_rate <= 1 and steps >= 1 and 0 < delta < 1):
            raise ValueError(
                f"expected sample_rate in (0, 1], steps >= 1 and delta in (0, 1), got {sample_rate!r}, {steps!r} and {delta!r}"
            )
        from opacus.accountants import create_accountant

        spent = create_accountant(accountant)
        spent.history = [(self.noise_multiplier, sample_rate, steps)]
        with warnings.catch_warnings():
            # At the end of its range of orders the bound is looser than it could be, and a bound all the same.
            warnings.filterwarnings("ignore", "Optimal order is the (smallest|largest) alpha", UserWarning)
            return float(spent.get_epsilon(delta=delta))
