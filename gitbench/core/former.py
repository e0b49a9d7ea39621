"""Where modules stood in 0.1: what imports them by that name, a third party's plugin say, gets the module that they are now."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

FORMER = {
    "activation": "clients.activation",
    "attack": "attacker.attack",
    "attacks": "attacker.attacks",
    "attacks.dlg": "attacker.attacks.dlg",
    "attacks.gias": "attacker.attacks.gias",
    "attacks.git": "attacker.attacks.git.attack",
    "attacks.ig": "attacker.attacks.ig",
    "attacks.lti": "attacker.attacks.lti",
    "attacks.recursion": "attacker.attacks.recursion.attack",
    "attacks.ridge": "attacker.attacks.ridge",
    "auto": "attacker.attacks.auto.attack",
    "baseline": "publish.baseline",
    "bench": "run.bench",
    "case": "identity.case",
    "claim": "publish.manifest",
    "client": "clients.client",
    "comment": "publish.comment",
    "comparison": "publish.comparison",
    "component": "core.component",
    "config": "run.config",
    "conformance": "measure.conformance",
    "counts": "attacker.tools.label_counts",
    "criterion": "attacker.attacks.auto.criterion",
    "data": "clients.data",
    "datasets": "clients.datasets",
    "deadline": "core.deadline",
    "defense": "clients.defense",
    "entries": "publish.entries",
    "errors": "core.errors",
    "evaluation": "measure.evaluator",
    "features": "attacker.tools.features",
    "files": "identity.files",
    "fingerprint": "measure.fingerprint",
    "fits": "attacker.fit_cache",
    "fitting": "attacker.learning",
    "flags": "judge.flags",
    "inspection": "publish.inspection",
    "labels": "attacker.tools.labels",
    "lbfgs": "attacker.tools.lbfgs",
    "leaderboard": "publish.leaderboard",
    "libraries": "identity.libraries",
    "matching": "attacker.tools.matching",
    "memory": "core.memory",
    "metric": "core.metric",
    "metrics": "measure.metrics",
    "model": "clients.model",
    "models": "clients.models",
    "observation": "attacker.observation",
    "pairs": "attacker.tools.public_pairs",
    "pictures": "store.pictures",
    "progress": "core.progress",
    "random": "core.random",
    "recursion": "attacker.attacks.recursion",
    "recursion.estimate": "attacker.attacks.recursion.estimate",
    "recursion.layer": "attacker.attacks.recursion.step",
    "recursion.layers": "attacker.attacks.recursion.supported",
    "recursion.noise": "attacker.attacks.recursion.departure",
    "recursion.posterior": "attacker.attacks.recursion.posterior",
    "recursion.prior": "attacker.tools.priors",
    "recursion.sparse": "attacker.attacks.recursion.sparse",
    "recursion.start": "attacker.attacks.recursion.start",
    "recursion.walk": "attacker.attacks.recursion.walk",
    "registry": "identity.registry",
    "regression": "attacker.tools.regression",
    "rehearsal": "attacker.tools.rehearsal",
    "result": "store.result",
    "scaffold": "publish.scaffold",
    "scoring": "measure.scoring",
    "sequential": "judge.sequential",
    "spec": "core.spec",
    "statistics": "judge.statistics",
    "submission": "publish.submission",
    "text": "core.text",
    "threat": "identity.threat",
    "training": "clients.training",
    "transcript": "attacker.attacks.git",
    "transcript.chain": "attacker.layers.chain",
    "transcript.coarse": "attacker.attacks.git.coarse",
    "transcript.coarse_chain": "attacker.attacks.git.coarse_chain",
    "transcript.coarse_inputs": "attacker.attacks.git.coarse_inputs",
    "transcript.coarse_reader": "attacker.attacks.git.coarse_reader",
    "transcript.coarse_sketch": "attacker.attacks.git.coarse_sketch",
    "transcript.coarse_start": "attacker.attacks.git.coarse_start",
    "transcript.exact": "attacker.attacks.git.exact",
    "transcript.graph": "attacker.layers.graph",
    "transcript.operators": "attacker.layers.operators",
    "transcript.polish": "attacker.attacks.git.polish",
    "transcript.recursion": "attacker.attacks.git.trained",
    "transcript.walk": "attacker.attacks.git.walk",
    "transcript.weights": "attacker.attacks.git.weights",
    "update": "clients.update",
    "utility": "measure.utility",
    "verdict": "judge.verdict",
    "worst": "judge.worst_case",
}


def present(module: str) -> str:
    """The dotted name that a module of gitbench has now."""
    package, _, name = module.partition(".")
    return f"gitbench.{FORMER[name]}" if package == "gitbench" and name in FORMER else module


class _FormerModule(importlib.abc.Loader):
    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = importlib.import_module(present(module.__name__))


class FormerNames(importlib.abc.MetaPathFinder):
    """Finds modules by the names of :data:`FORMER`; the first of the finders, since a package that moved would find a second copy."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return None if present(fullname) == fullname else importlib.machinery.ModuleSpec(fullname, _FormerModule())
