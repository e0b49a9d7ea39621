"""Auto on data whose inputs are no images: closed forms first, then searches, and of each victim what explains its update best."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

import torch

from gitbench.attacker.attack import Attack, load_attack
from gitbench.attacker.attacks.dager import Dager
from gitbench.attacker.attacks.dlg import DLG
from gitbench.attacker.attacks.embeddings import Embeddings
from gitbench.attacker.attacks.lamp import LAMP
from gitbench.attacker.observation import Observation
from gitbench.attacker.reconstruction import Candidates
from gitbench.attacker.tools.labels import infer_labels
from gitbench.clients.client import expected_update
from gitbench.clients.task import own_targets, targets_for
from gitbench.core.errors import AttackError, ModelError, NotGrantedError
from gitbench.core.progress import Progress, TimeUp

PARTS: Mapping[str, tuple[type[Attack], ...]] = {"text": (Embeddings, Dager, LAMP, DLG)}
"""By the modality, cheapest first."""

_EXPLAINED = 1e-6  # of the squared update: nothing is left to search for


def parts_on(modality: str, *, profile: str) -> list[Attack]:
    """The attacks that ``auto`` is made of on data of a modality; none where it has its own way (images)."""
    return [load_attack(kind.name, profile=profile) for kind in PARTS.get(modality, ())]


def best_explained(parts: Sequence[Attack], observation: Observation, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
    """Of each victim the reconstruction ``(V, B, *shape)`` whose own update is nearest to the observed one.

    A search is left out where the parts before it explain every victim. Without parameters nothing can be compared, and the first part
    that runs is all.

    Raises:
        NotGrantedError: none of the parts can run.
    """
    best, apart = None, torch.full((observation.victims,), torch.inf, device=observation.device)
    with contextlib.suppress(TimeUp):  # what was found by then is returned
        for part in parts:
            if not part.requires <= observation.granted or bool((apart < _EXPLAINED).all()):
                continue
            with contextlib.suppress(AttackError, ModelError):  # one that cannot be had of this model is none
                run = part.run(part.seen_of(observation), {}, generator=generator, progress=progress)
                found = run.inputs if isinstance(run, Candidates) else run
                if "parameters" not in observation.granted:
                    return found
                misfit = _misfit(observation, found)
                closer = (misfit < apart).reshape(-1, *(1,) * (found.ndim - 1))
                best, apart = found if best is None else torch.where(closer, found, best), torch.minimum(misfit, apart)
    if best is None:
        raise NotGrantedError(f"The attack auto runs {', '.join(map(repr, parts))} here, and none of them could.")
    return best


def _misfit(observation: Observation, found: torch.Tensor) -> torch.Tensor:
    """How far the update of a reconstruction is from the observed one, as a share of its square, ``(V,)``: the mean over tensors."""
    follow = own_targets(observation.model) is not None
    labels = targets_for(observation.model, found) if follow else infer_labels(observation)
    with torch.no_grad():
        own = expected_update(
            observation.model, found, labels, expectation=observation.expectation, observed=observation.update, client=observation.client
        )
    shares = [
        (own.tensors[name] - tensor).flatten(1).square().sum(1) / tensor.flatten(1).square().sum(1).clamp_min(1e-12)
        for name, tensor in observation.update.tensors.items()
    ]
    return torch.stack(shares).mean(0)
