"""The ``gitbench_evaluate`` fixture: a defense's report inside any test suite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from gitbench.bench import Bench, case_of
from gitbench.errors import ConfigError, nearest
from gitbench.result import Result, Verdict
from gitbench.store import Store
from pytest_gitbench.options import read_config

if TYPE_CHECKING:
    from gitbench.defense import Defense

# Keywords of the marker: the axes in the plural, and sizes spelled as in [tool.gitbench].
_AXES = {"attacks": "attack", "models": "model", "datasets": "dataset", "dataset": "dataset"}
_SIZES = ("profile", "seeds", "victims", "batch_size", "device", "threat", "threshold", "results")


@dataclass(frozen=True)
class Report:
    """A defense against a small matrix. ``str(report)`` is the table and the reasons."""

    verdict: Verdict
    results: tuple[Result, ...]
    pictures: str

    def __repr__(self) -> str:
        lines = [f"verdict: {self.verdict}"]
        for result in self.results:
            lines.append(f"  {result.case.cell} seed {result.case.seed}: {result.verdict}: {result.verdict_reason}")
            lines.append(f"    picture: {self.pictures}/{result.case_id}.png")
        return "\n".join(lines)


class Measurer:
    """Called with a defense, returns its :class:`Report`."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def __call__(self, defense: Defense | str, **options: Any) -> Report:
        """Measure ``defense``; ``options`` add to the marker's and win over them.

        Raises:
            ConfigError: an unknown option.
        """
        marker = self._request.node.get_closest_marker("gitbench")
        given = {**(marker.kwargs if marker else {}), **options}
        config = read_config(self._request.config, defense=["none"], **_options(given))
        store = Store(config.results)
        bench = Bench(store=store, device=config.device, gate=config.threshold)
        results = [
            bench.measure(
                case_of(
                    attack=attack, defense=defense, model=model, dataset=dataset, threat=config.threat, profile=config.profile,
                    victims=config.looks[-1], batch_size=config.batch_size, seed=seed,
                ),
                defense=None if isinstance(defense, str) else defense,
            )
            for dataset in config.dataset for model in config.model for attack in config.attack for seed in range(config.seeds)
        ]  # fmt: skip
        return Report(overall(results), tuple(results), str(config.results / "pictures"))


def overall(results: Sequence[Result]) -> Verdict:
    """The verdict on a defense: it leaks where any cell does, and holds only where every model has proof.

    Cells whose control failed say nothing; a model of which nothing is left is inconclusive.
    """
    if any(result.verdict == "leaks" for result in results):
        return "leaks"
    telling = [result for result in results if result.status == "error" or "control-failed" not in result.flags]
    every = {(result.case.dataset, result.case.model) for result in results}
    proven = {(result.case.dataset, result.case.model) for result in telling}
    if every == proven and telling and all(result.verdict == "holds" for result in telling):
        return "holds"
    return "inconclusive"


def _options(given: dict[str, Any]) -> dict[str, Any]:
    options = {}
    for key, value in given.items():
        if key not in _AXES and key not in _SIZES:
            raise ConfigError(f"The gitbench marker has no option {key!r}.{nearest(key, (*_AXES, *_SIZES))}")
        options[_AXES.get(key, key)] = value
    return options
