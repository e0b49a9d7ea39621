"""What an attack returns."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Candidates:
    """What :meth:`gitbench.Attack.run` may return in place of the tensor alone.

    Args:
        inputs: ``(V, B, *shape)``; of images ``(V, B, C, H, W)`` in [0, 1].
        still_improving: the attack's own objective was still falling when its budget ended.
        flags: names in :data:`gitbench.judge.flags.FLAGS` that the attack raises itself.
    """

    inputs: torch.Tensor
    still_improving: bool = False
    flags: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Reconstruction:
    """What an attack makes of an observation.

    Args:
        inputs: ``(V, B, *shape)``; the order within a batch means nothing.
        fit_seconds: spent on the attack's own training.
        attack_seconds: spent on the victims.
        still_improving: the attack's own objective was still falling when its budget ended.
        flags: names in :data:`gitbench.judge.flags.FLAGS` that the attack raises itself.
    """

    inputs: torch.Tensor
    fit_seconds: float
    attack_seconds: float
    still_improving: bool = False
    flags: frozenset[str] = frozenset()
