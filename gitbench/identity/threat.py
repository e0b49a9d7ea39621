"""Threat models: what the attacker is granted besides the update."""

from __future__ import annotations

from typing import Literal, get_args

from gitbench.core.errors import ConfigError, nearest

Knowledge = Literal["architecture", "parameters", "labels", "public", "batchnorm_statistics", "defense"]
KNOWLEDGE: frozenset[Knowledge] = frozenset(get_args(Knowledge))

_SERVER: frozenset[Knowledge] = frozenset({"architecture", "parameters", "public", "defense"})
THREATS: dict[str, frozenset[Knowledge]] = {
    # An honest-but-curious server: it sends the parameters out itself.
    "server": _SERVER,
    # GIT's setting: pairs of public inputs and their updates, but no parameters.
    "eavesdropper": _SERVER - {"parameters"},
    # What no real attacker has, to bound what any attacker could do.
    "upper-bound": KNOWLEDGE,
}


def knowledge_of(threat: str) -> frozenset[Knowledge]:
    """What the threat model named ``threat`` grants.

    Raises:
        ConfigError: no such threat model.
    """
    if threat not in THREATS:
        raise ConfigError(f"Unknown threat model {threat!r}.{nearest(threat, THREATS)}")
    return THREATS[threat]
