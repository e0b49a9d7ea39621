"""What attackers learned of public data, for the next case of the same setting in this process."""

from __future__ import annotations

from gitbench.attacker.observation import Observation
from gitbench.clients.defense import Defense
from gitbench.identity.case import Case
from gitbench.identity.threat import Knowledge

Setting = tuple[str, str, str, int, int, int, str]
"""All that a defense is told apart by, whatever attacks it."""

_SETTINGS = 4  # that are remembered: the cases of one follow each other


def setting_of(case: Case, defense: Defense) -> Setting:
    """Data, model, client, seed, batch size, rounds and defense of a case."""
    return case.dataset, case.model, case.client, case.seed, case.batch_size, case.rounds, f"{defense!r} {case.code['defense']}"


class Remembered:
    """Of the latest settings, and of each set of knowledge in them, what was learned."""

    def __init__(self) -> None:
        self._learned: dict[tuple[Setting, frozenset[Knowledge], int], dict[str, object]] = {}

    def by(self, observation: Observation, setting: Setting) -> Observation:
        """The observation of a case, which takes what cases before it :meth:`~gitbench.attacker.observation.Observation.learned`."""
        granted = observation.granted - {"labels", "batchnorm_statistics"}  # of the victims: they teach nothing that is kept
        key = setting, granted, observation.repeats
        if key not in self._learned and len(self._learned) == _SETTINGS:
            del self._learned[next(iter(self._learned))]
        return observation.remembering(self._learned.setdefault(key, {}))
