"""Ridge: the closed-form baseline that every learned attack must beat."""

from __future__ import annotations

import torch

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.options import PublicOptions
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.linear_image import fit_linear_image, linear_image
from gitbench.attacker.tools.public_pairs import public_batches
from gitbench.core.progress import Progress


class Ridge(Attack):
    """The last linear layer's input in closed form, and a ridge regression from it to pixels.

    With the last layer's weight gradient ``W_k = b_k a`` and bias gradient ``b_k``, its input is
    ``a = sum_k b_k W_k / sum_k b_k²``, exact for one example. A ridge regression fitted on public pairs
    (passed through the defense) maps it to the image. The penalty is chosen on held-out public pairs.
    For a batch, each example's input is solved with the layer's own weights, where they are known and the
    defense leaves that layer's gradient as it is (:mod:`gitbench.attacker.tools.last_layer`); else the row
    of each example's class is read: ``W_y / b_y``. After a sigmoid or tanh the
    regression may start from the activation's input instead, which is closer to linear in the pixels;
    the held-out pairs decide that too.
    """

    name = "ridge"
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"defense", "parameters"})  # parameters for the labels and inputs of batches alone
    profiles = {"quick": {"limit": 2048}}

    Options = PublicOptions
    options: PublicOptions

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        batches = public_batches(observation, self.options.limit, generator=generator)
        return fit_linear_image(
            observation, batches, holdout=self.options.holdout, thorough=True, generator=generator, progress=progress, what="ridge"
        )

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        return linear_image(observation, infer_labels(observation), state, progress=progress)
