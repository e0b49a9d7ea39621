"""PRECODE: a variational bottleneck before the classifier."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional

from gitbench.clients.defense import Defense
from gitbench.clients.model import digest_of_values, last_linear
from gitbench.clients.output import rename_classifier
from gitbench.clients.stochastic import Stochastic
from gitbench.clients.update import Update
from gitbench.core.errors import DefenseError
from gitbench.core.random import make_generator, seeded

_PLACE = "precode"  # of the bottleneck, beside the classifier


class VariationalBottleneck(Stochastic):
    """Mean and deviation of a latent, a sample of it, and a layer back to the width that came in.

    Args:
        features: that come in and go out.
        width: of the latent.
        beta: weight of the penalty.
    """

    def __init__(self, features: int, *, width: int, beta: float) -> None:
        super().__init__()
        self.encoder = nn.Linear(features, 2 * width)
        self.decoder = nn.Linear(width, features)
        self.beta = beta

    def statistics(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latent."""
        mean, raw = self.encoder(inputs).chunk(2, dim=-1)
        return mean, functional.softplus(raw)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        mean, std = self.statistics(inputs)
        found: torch.Tensor = self.decoder(mean + std * self.noise(mean))
        return found

    def penalty(self, inputs: torch.Tensor) -> torch.Tensor:
        """``beta`` times the Kullback-Leibler divergence from N(0, 1), in bits, summed over the latent and averaged over the batch."""
        mean, std = self.statistics(inputs)
        divergence = 0.5 * (mean.square() + std.square() - 1) - std.log()
        return self.beta / math.log(2) * divergence.sum(-1).mean()


class Precode(Defense):
    """Puts a variational bottleneck before the last linear layer (Scheliga et al., WACV 2022, arXiv 2108.04725).

    As the authors' code (``VariationalBottleneck.py``): a linear layer gives means and, by softplus, standard deviations of a latent; a
    sample of it goes through a second linear layer back to the classifier's width. The loss that the client differentiates has ``beta``
    times the divergence of the latent from N(0, 1), in bits, added.

    Server and clients share the larger model, whose new layers are drawn from a generator that the model's values seed. They are not
    trained: with ``trained_epochs`` the network in front of them is, and the classifier behind them knows other features than it gets.
    The sample is drawn for every image and every update anew, from the client's generator. An attacker has the model without the draws:
    it computes with the latent's mean.

    What an attacker knows: the gradients of the bottleneck and of the classifier depend on the sample, and :meth:`expected` leaves them
    out of the match, after Scheliga et al., arXiv 2208.04767, who broke it so. Balunović et al. (ICLR 2022, arXiv 2111.04706) read the
    input off a first linear layer's gradient, which does not depend on the sample at all. And the bottleneck's own first layer tells the
    slope of the loss by what goes in: the attack ``auto`` needs no more to reconstruct single images as if nothing was there.

    Args:
        width: of the latent; the authors' 256.
        beta: weight of the divergence in the loss; the authors' 1e-3.
    """

    name = "precode"

    def __init__(self, *, width: int = 256, beta: float = 1e-3) -> None:
        if not isinstance(width, int) or width < 1:
            raise ValueError(f"expected width >= 1, got {width!r}")
        if not 0 <= beta < float("inf"):
            raise ValueError(f"expected beta >= 0, got {beta}")
        self.width = width
        self.beta = beta

    def modify_model(self, model: nn.Module) -> nn.Module:
        extended = copy.deepcopy(model)
        name, classifier = last_linear(extended)
        if not name:
            raise DefenseError(f"{self!r} puts a layer before the classifier, and the model is nothing but one. Wrap it in a Sequential.")
        with seeded(make_generator(0, self.name, digest_of_values(model))):
            bottleneck = VariationalBottleneck(classifier.in_features, width=self.width, beta=self.beta)
        bottleneck.to(device=classifier.weight.device, dtype=classifier.weight.dtype).train(classifier.training)
        parent, _, place = name.rpartition(".")
        setattr(extended.get_submodule(parent), place, nn.Sequential(OrderedDict([(_PLACE, bottleneck), ("classifier", classifier)])))
        rename_classifier(extended, f"{name}.classifier")
        return extended

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        self._stochastic(update)
        return update

    def expected(self, update: Update, *, observed: Update) -> Update:
        stochastic = self._stochastic(update)
        return update.map(lambda name, tensor: observed.tensors[name] if name.startswith(stochastic) else tensor)

    def _stochastic(self, update: Update) -> str:
        """What the names begin with of tensors that depend on the sample: the bottleneck's and those behind it."""
        for name in update.tensors:
            before, found, _ = name.partition(f".{_PLACE}.")
            if found:
                return f"{before}."
        raise DefenseError(f"{self!r} changes the model, and got the update of one without a bottleneck. Use {self!r}.modify_model(model).")
