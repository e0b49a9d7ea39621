"""GIT: the gradient inversion transcript (arXiv 2505.20026)."""

from __future__ import annotations

import functools

import torch

from gitbench.attacker.attack import Attack, Fits, Fitted, State
from gitbench.attacker.attacks.git.coarse import fit_coarse, run_coarse
from gitbench.attacker.attacks.git.exact import exact_memory, fit_exact, run_exact
from gitbench.attacker.attacks.git.options import GitOptions
from gitbench.attacker.attacks.git.public_weights import PublicWeights
from gitbench.attacker.layers.chain import read_chain
from gitbench.attacker.learning import Checkpoint, NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.public_pairs import KEPT, pairs_memory
from gitbench.core.errors import AttackError
from gitbench.core.progress import Progress

VARIANTS = ("auto", "exact", "coarse", "module")


class Git(Attack):
    """Walks from the logits back to the input, layer by layer, on what public pairs teach.

    Layer ``i``'s gradient is ``G_i = δ_i a_{i-1}ᵀ`` and back-propagation gives
    ``δ_i = (Wᵀ δ_{i+1}) ⊙ σ'(z_i)``, so that ``a_{i-1} = δ_i⁺ G_i``. Neither labels nor parameters are read.

    - ``exact``: this recursion, for chains of linear layers and convolutions and one example per victim.
      Its weights are solved from undefended public pairs, or trained on the input's squared error as
      published; each step weighs the gradient against what the layers above tell, by the noise that
      the defense is seen to make; a linear map in closed form and a network that learns its rest read the image.
    - ``coarse``: a shallow network for each layer of any model of supported layers.
    - ``module``: a shallow network for each block of any model.
    - ``auto``: exact where the weights can be solved, coarse elsewhere.

    The paper leaves widths and rates open; docs/attacks.md says how these were chosen.
    """

    name = "git"
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"defense"})
    profiles = {
        "quick": {"limit": 1536, "epochs": 3, "width": 256, "draws": 1, "polish": 0},
        "paper": {"limit": 50_000, "epochs": 60, "width": 2048, "draws": 4, "polish": 20},
    }

    Options = GitOptions
    options: GitOptions

    @property
    def _walks(self) -> bool:
        """Whether the exact variant is tried."""
        return self.options.variant in ("auto", "exact")

    @functools.cached_property
    def _weights(self) -> PublicWeights:
        return PublicWeights.of(self.options)

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        """Weights are learned before, and kept: they are the same for all defenses of a model."""
        if not self._walks:
            return super()._fitted(observation, generator=generator, progress=progress, fits=fits)
        known = self._weights._fitted(observation, generator=generator, progress=progress, fits=fits)

        def fit(generator: torch.Generator, checkpoint: Checkpoint) -> State:
            return self._learned(observation, known.state, generator, progress, checkpoint)

        found = self._kept(observation, fit, generator=generator, fits=fits)
        return Fitted(found.state, known.seconds + found.seconds)

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        known: State = {}
        if self._walks:  # solving has no checkpoint: the one at hand is the network's
            known = self._weights.fit(observation.undefended(), generator=generator, progress=progress, checkpoint=NoCheckpoint())
        return self._learned(observation, known, generator, progress, checkpoint)

    def _learned(
        self, observation: Observation, known: State, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint
    ) -> State:
        if self._walks:
            found = fit_exact(observation, known, options=self.options, generator=generator, progress=progress, checkpoint=checkpoint)
            if not isinstance(found, str):
                return {**found, "exact": torch.tensor(1)}
            if self.options.variant == "exact":
                raise AttackError(f"git(variant='exact') cannot be had here: {found}. Use variant='coarse' or 'module'.")
        learned = fit_coarse(
            observation,
            module=self.options.variant == "module",
            options=self.options,
            generator=generator,
            progress=progress,
            checkpoint=checkpoint,
        )
        return {**learned, "exact": torch.tensor(0)}

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        if bool(state["exact"]):
            return run_exact(observation, state, polish=self.options.polish, progress=progress)
        return run_coarse(observation, dict(state), module=self.options.variant == "module", options=self.options, progress=progress)

    def memory(self, observation: Observation) -> int:
        """Bytes: three copies of ``limit`` public gradients (exact), or up to twice 3 GiB of them (coarse)."""
        if self._walks and observation.batch_size == 1:
            chain = read_chain(observation.architecture, observation.input_shape)
            if chain is not None:
                return exact_memory(observation, self.options)
        return 2 * min(KEPT, pairs_memory(observation, min(self.options.limit, len(observation.public))))
