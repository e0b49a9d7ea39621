"""gitbench measures defenses against gradient inversion.

Importing it is cheap: torch is imported when something that needs it is first used. What is named here is public,
and so is what the documentation names; everything else may move.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from gitbench._version import __version__ as __version__
from gitbench.core.former import FormerNames

if TYPE_CHECKING:
    from gitbench.attacker.attack import Attack as Attack
    from gitbench.attacker.attack import Refiner as Refiner
    from gitbench.attacker.attack import load_attack as load_attack
    from gitbench.attacker.observation import Observation as Observation
    from gitbench.attacker.reconstruction import Candidates as Candidates
    from gitbench.attacker.reconstruction import Reconstruction as Reconstruction
    from gitbench.clients.client import client_update as client_update
    from gitbench.clients.data import Data as Data
    from gitbench.clients.data import Dataset as Dataset
    from gitbench.clients.data import Split as Split
    from gitbench.clients.data import draw_victims as draw_victims
    from gitbench.clients.data import load_dataset as load_dataset
    from gitbench.clients.defense import Declared as Declared
    from gitbench.clients.defense import Defense as Defense
    from gitbench.clients.defense import load_defense as load_defense
    from gitbench.clients.model import ModelFactory as ModelFactory
    from gitbench.clients.model import load_model as load_model
    from gitbench.clients.procedure import Client as Client
    from gitbench.clients.procedure import load_client as load_client
    from gitbench.clients.rounds import client_rounds as client_rounds
    from gitbench.clients.update import Update as Update
    from gitbench.core.errors import GitbenchError as GitbenchError
    from gitbench.core.metric import Metric as Metric
    from gitbench.core.modality import Modality as Modality
    from gitbench.core.random import make_generator as make_generator
    from gitbench.core.random import randn_like as randn_like
    from gitbench.measure.scoring import score as score
    from gitbench.run.bench import evaluate as evaluate
    from gitbench.run.matrix import make_cell as make_cell
    from gitbench.store.result import Result as Result

_WHERE = {
    "Attack": "attacker.attack",
    "Candidates": "attacker.reconstruction",
    "Client": "clients.procedure",
    "Data": "clients.data",
    "Dataset": "clients.data",
    "Declared": "clients.defense",
    "Defense": "clients.defense",
    "GitbenchError": "core.errors",
    "Metric": "core.metric",
    "Modality": "core.modality",
    "ModelFactory": "clients.model",
    "Observation": "attacker.observation",
    "Reconstruction": "attacker.reconstruction",
    "Refiner": "attacker.attack",
    "Result": "store.result",
    "Split": "clients.data",
    "Update": "clients.update",
    "client_rounds": "clients.rounds",
    "client_update": "clients.client",
    "draw_victims": "clients.data",
    "evaluate": "run.bench",
    "load_attack": "attacker.attack",
    "load_client": "clients.procedure",
    "load_dataset": "clients.data",
    "load_defense": "clients.defense",
    "load_model": "clients.model",
    "make_cell": "run.matrix",
    "make_generator": "core.random",
    "randn_like": "core.random",
    "score": "measure.scoring",
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


sys.meta_path.insert(0, FormerNames())
