"""What attacks share that search a generator of images: how it is had, and the search for its code."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from gitbench.attacker.attack import Attack, Fits, Fitted, State
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.decoder import Decoder
from gitbench.attacker.tools.generated import CodeSearch, GeneratedOptions, Matching, Whole
from gitbench.attacker.tools.label_mapping import classes_for
from gitbench.attacker.tools.labels import infer_labels
from gitbench.attacker.tools.matching import Objective
from gitbench.core.progress import Progress


@dataclass(frozen=True)
class Searched:
    """What a search for codes leaves to the search that follows.

    Args:
        whole: the generator.
        matching: losses of images.
        classes: what its first stage takes beside the codes, each ``(V, B, ...)``.
        codes: the search, which has ended.
    """

    whole: Whole
    matching: Matching
    classes: tuple[torch.Tensor, ...]
    codes: CodeSearch


class GeneratedAttack(Attack):
    """Base of attacks that search a generator: one is trained for all of them, or it is the user's own."""

    requires = frozenset({"architecture", "parameters", "public"})
    uses = frozenset({"defense"})
    fit_uses = frozenset({"public"})
    options: GeneratedOptions

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        return self.decoder.fit(observation, generator=generator, progress=progress, checkpoint=checkpoint)

    def _fitted(self, observation: Observation, *, generator: torch.Generator, progress: Progress, fits: Fits | None) -> Fitted:
        return self.decoder._fitted(observation, generator=generator, progress=progress, fits=fits)

    @functools.cached_property
    def decoder(self) -> Decoder:
        """What trains the generator, or takes the user's own."""
        return Decoder.of(self.options)

    def search_codes(
        self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress, more: int = 0
    ) -> Searched:
        """The first search, over the generator's code.

        Args:
            observation: with its update.
            state: of :meth:`fit`.
            generator: draws the codes.
            progress: told after each step.
            more: steps of each restart, beyond the options'.
        """
        options, whole = self.options, Whole(self.decoder.network(observation, state))
        labels = infer_labels(observation)
        matching = functools.partial(Objective(observation, distance=options.distance), labels=labels)
        classes = classes_for(observation, whole.network, labels, mapped=options.mapping)
        # Victims come first, so that one victim's codes are the same however many others there are.
        shape = (observation.victims, options.restarts, observation.batch_size, whole.latent)
        starts = torch.randn(shape, generator=generator).to(observation.device)
        codes = CodeSearch(matching, options, whole.network, starts, progress, classes=classes, what=self.name)
        codes.iterations += more
        codes.run()
        return Searched(whole, matching, classes, codes)
