"""Recursion: R-GAP with an image prior. With the parameters known, the input follows layer by layer."""

from __future__ import annotations

import math

import torch

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.attacks.recursion.estimate import estimate
from gitbench.attacker.attacks.recursion.learn import learn
from gitbench.attacker.attacks.recursion.options import RecursionOptions
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.priors import DENSE
from gitbench.core.progress import Progress


class Recursion(Attack):
    """R-GAP (arXiv 2010.07733) as a MAP estimate, layer by layer; then all layers at once, where that left something to find.

    The last layer's input is exact. With the parameters known, each layer's pre-activation and ``δ`` follow from its output, and two
    linear systems speak of its input: the forward one and that of its gradient. Each is weighed by the variance of its error, which
    the layer above hands down, and by a Gaussian prior of public images. Chains of linear layers and convolutions are walked.
    A batch behind a first linear layer with a ReLU is told apart by the units that each example switches off, as in SPEAR.

    Where the image found so far does not reproduce the observed update (noise, pruning, a residual network, a batch), the
    negative logarithm of the posterior of the image given all layers' gradients is minimised, from the better of the walk and a linear
    map of the last layer's input. Public images that play victims decide how much of it to believe.
    """

    name = "recursion"
    requires = frozenset({"architecture", "parameters"})
    uses = frozenset({"public", "defense"})
    profiles = {"quick": {"limit": 2048, "iterations": 60, "rehearsal": 8, "prior": "spectrum", "samples": 2**13}}

    Options = RecursionOptions
    options: RecursionOptions

    def memory(self, observation: Observation) -> int:
        """Bytes: six dense matrices of the image's size, sixty images and ten updates of each victim."""
        pixels = math.prod(observation.input_shape)
        dense = 48 * pixels**2 if pixels <= DENSE else 0
        return dense + observation.victims * (240 * observation.batch_size * pixels + 40 * observation.entries)

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        return learn(observation, options=self.options, generator=generator, progress=progress)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        found = estimate(observation, state, options=self.options, generator=generator, progress=progress)
        return found.believed(state).clamp(0, 1)
