"""gitbench measures defenses against gradient inversion.

Importing it is cheap: torch is imported when something that needs it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gitbench._version import __version__ as __version__

if TYPE_CHECKING:
    from gitbench.attack import Attack as Attack
    from gitbench.attack import Reconstruction as Reconstruction
    from gitbench.attack import Refiner as Refiner
    from gitbench.attack import load_attack as load_attack
    from gitbench.bench import evaluate as evaluate
    from gitbench.client import client_update as client_update
    from gitbench.data import Data as Data
    from gitbench.data import Dataset as Dataset
    from gitbench.data import Split as Split
    from gitbench.data import load_dataset as load_dataset
    from gitbench.defense import Defense as Defense
    from gitbench.defense import load_defense as load_defense
    from gitbench.errors import GitbenchError as GitbenchError
    from gitbench.model import ModelFactory as ModelFactory
    from gitbench.model import load_model as load_model
    from gitbench.observation import Observation as Observation
    from gitbench.random import randn_like as randn_like
    from gitbench.result import Result as Result
    from gitbench.scoring import score as score
    from gitbench.update import Update as Update

_WHERE = {
    "Attack": "attack",
    "Data": "data",
    "Dataset": "data",
    "Defense": "defense",
    "GitbenchError": "errors",
    "ModelFactory": "model",
    "Observation": "observation",
    "Reconstruction": "attack",
    "Refiner": "attack",
    "Result": "result",
    "Split": "data",
    "Update": "update",
    "client_update": "client",
    "evaluate": "bench",
    "load_attack": "attack",
    "load_dataset": "data",
    "load_defense": "defense",
    "load_model": "model",
    "randn_like": "random",
    "score": "scoring",
}

__all__ = [*sorted(_WHERE), "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'gitbench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"gitbench.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
