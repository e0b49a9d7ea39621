"""Profiles: the sizes of a run, and the matrix that is built in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gitbench.core.modality import Modality
from gitbench.identity.case import PLAIN_CLIENT
from gitbench.judge.verdict import DEFAULT_GATE


@dataclass(frozen=True)
class Profile:
    """Sizes of a run. Those that are built in have images; what is another for data of another kind, its modality says.

    Args:
        known_leaks: patterns over cell ids (``dataset/model/defense/attack``).
        most_victims: where ``--gitbench-victims auto`` ends.
        batch_size: of a run that chooses none of its axes but the defenses; others have single images unless they say more.
        batch_attack: the attacks on its batches of several images: those whose controls leak there.
        rounds: how many updates of the same victims the attacker sees.
    """

    dataset: tuple[str, ...]
    model: tuple[str, ...]
    defense: tuple[str, ...]
    attack: tuple[str, ...]
    known_leaks: tuple[str, ...]
    victims: int
    most_victims: int
    client: tuple[str, ...] = (PLAIN_CLIENT,)
    batch_size: tuple[int, ...] = (1, 4)
    batch_attack: tuple[str, ...] = ("recursion", "ridge")
    rounds: tuple[int, ...] = (1,)
    seeds: int = 1
    threshold: Mapping[str, float] = field(default_factory=lambda: dict(DEFAULT_GATE))
    timeout: float | None = None


_WEAK = ("pruning(rate=0.5)", "parameter_drift(epochs=1, samples=64)")
_KNOWN = tuple(f"*/{defense}/*" for defense in _WEAK)
_ATTACKS = ("auto", "git", "lti", "gias", "ridge", "ig", "dlg")
_LONGER = ("gifd", "gradinversion")  # that take too long for the profile quick
_HYBRIDS = ("git+ig", "lti+ig", "gias+ig", "ridge+ig")
_STRONGER = ("gaussian_noise(std=0.01)", "gaussian_noise(std=0.1)", "clipping(max_norm=1.0)", "pruning(rate=0.9)", "pruning(rate=0.99)")

PROFILES: dict[str, Profile] = {
    "quick": Profile(
        dataset=("photos",),
        model=("lenet", "mlp"),
        defense=("none", "dp_sgd(noise_multiplier=1.0)", *_WEAK),
        attack=_ATTACKS,
        known_leaks=_KNOWN,
        victims=16,
        timeout=900.0,  # its slowest cell takes seconds: only what hangs gets there
        most_victims=64,
    ),
    "standard": Profile(
        dataset=("photos",),
        model=("lenet", "mlp", "resnet"),
        defense=("none", "dp_sgd(noise_multiplier=1.0)", *_WEAK, *_STRONGER),
        attack=(*_ATTACKS, *_LONGER, "recursion", "git+ig"),
        known_leaks=(*_KNOWN, *(f"*/{defense}/*" for defense in _STRONGER)),
        victims=32,
        most_victims=128,
    ),
    "paper": Profile(
        dataset=("photos",),
        model=("lenet", "mlp", "resnet", "vit"),
        defense=("none", "dp_sgd(noise_multiplier=1.0)", *_WEAK, *_STRONGER),
        attack=(*_ATTACKS, *_LONGER, "recursion", *_HYBRIDS),
        known_leaks=(*_KNOWN, *(f"*/{defense}/*" for defense in _STRONGER)),
        victims=100,
        most_victims=256,
        seeds=3,
    ),
}


def profile_for(name: str, modality: type[Modality]) -> Profile:
    """A profile with what data of a modality change in it: the built-in matrix, and the gate."""
    return replace(PROFILES[name], **{"threshold": modality.gate, **modality.profiles.get(name, {})})
