"""Ray as the cluster. It is imported here alone, and only when a run asks for it."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import socket
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gitbench.core.errors import ClusterError, ConfigError
from gitbench.core.progress import Progress
from gitbench.core.spec import KINDS, Kind, Part, parse_spec
from gitbench.identity.libraries import holds_libraries
from gitbench.identity.names import locate
from gitbench.measure.task import Conditions, Reply, Task
from gitbench.run.config import Config
from gitbench.run.executor import ClusterExecutor
from gitbench.run.matrix import Cell
from gitbench.store.folder import Store

RETRIES = 3
"""How often Ray does a task again whose worker died."""
GIB = 2**30
# Of the folder that pytest was started in, what no worker needs.
_LEFT_BEHIND = (".git", ".gitbench", "**/__pycache__", "**/.*_cache", "**/.tox", "**/.venv*", "**/venv", "**/*.egg-info", "**/node_modules")
_SECONDS = 1.0  # for which the size of the cluster is believed
_PATIENCE = 10.0  # seconds until a machine that does not answer is none
_ADVICE = "'ray status' tells whether it is up; docs/cluster.md how to start one."


def require_ray() -> None:
    """Check that Ray is installed, without importing it.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("ray._raylet") is None:
        raise ConfigError("--gitbench-executor ray needs Ray, which is not installed: pip install 'gitbench[ray]'")


def ray_executor(
    config: Config, cells: Iterable[Cell], *, store: Store, registered: Sequence[tuple[str, str, str]], progress: Progress
) -> ClusterExecutor:
    """Measures the cells of a run on Ray, which is first called when one of them is not stored.

    Args:
        config: options of the run.
        cells: of the run.
        store: where everything is kept.
        registered: kind, name and target of components that were registered for this run.
        progress: told how many cases are through.
    """
    return ClusterExecutor(
        lambda: RayCluster(config, cells, registered=registered),
        store,
        fresh=config.fresh,
        cost=config.cost or config.accuracy_drop_limit is not None,
        progress=progress,
    )


class RayCluster:
    """Tasks of one run as tasks of Ray.

    Args:
        config: options of the run.
        cells: of which the tasks will be: what they name must be there on the workers.
        registered: kind, name and target of components that were registered for this run.

    Raises:
        ConfigError: no Ray, no cluster at the address, or no node that could hold a single task.
    """

    def __init__(self, config: Config, cells: Iterable[Cell], *, registered: Sequence[tuple[str, str, str]] = ()) -> None:
        require_ray()
        import ray

        self._ray: Any = ray  # typed in part, and not there where these types are checked without it
        self._ours = not ray.is_initialized()
        if self._ours:
            self._connect(config, runtime_env(config, cells))
        nodes = self._nodes()
        device = config.device
        if device == "auto":
            device = "cuda" if any(node.get("GPU", 0) > 0 for node in nodes) else "cpu"
        self._needs = needs_of(config, device=device)
        self._slots, self._counted = 0, float("-inf")
        if not self.slots():
            self.close(())
            raise ConfigError(_too_small(self._needs, nodes))
        options: dict[str, Any] = {**self._needs, "max_retries": RETRIES}
        # A process that has used one GPU cannot turn to another: Ray ends it, unless there is no other.
        options["max_calls"] = 0 if all(node.get("GPU", 0) <= 1 for node in nodes) else 1
        self._perform = ray.remote(**options)(_perform)
        self._conditions = Conditions(device=device, threads=config.threads, timeout=config.timeout, registered=tuple(registered))

    def put(self, content: bytes) -> object:
        return self._ray.put(content)

    def start(self, task: Task, states: Sequence[object]) -> object:
        return self._perform.remote(self._conditions, task, *states)

    def finished(self, tasks: Sequence[object], *, seconds: float) -> Sequence[object]:
        found, _ = self._ray.wait(list(tasks), num_returns=1, timeout=seconds)
        if found:  # and whatever else is there
            found, _ = self._ray.wait(list(tasks), num_returns=len(tasks), timeout=0)
        return list(found)

    def reply(self, task: object) -> Reply:
        """See :class:`~gitbench.run.executor.Cluster`."""
        errors = self._ray.exceptions
        try:
            found: Reply = self._ray.get(task)
        except errors.RayTaskError as error:
            raised = repr(error.cause) if error.cause is not None else str(error).strip().splitlines()[-1]
            raise ClusterError(f"its worker raised {raised}. docs/cluster.md says what all nodes need.") from None
        except errors.RayError as error:
            raise ClusterError(
                f"given up: Ray had {RETRIES + 1} tries at most, and the last ended with {type(error).__name__}: {_first_line(error)} "
                "(docs/cluster.md: what happens on failure)"
            ) from None
        return found

    def slots(self) -> int:
        """Tasks that can run at once on the nodes that are alive."""
        if time.monotonic() - self._counted > _SECONDS:
            self._slots = sum(_fitting(self._needs, node) for node in self._nodes())
            self._counted = time.monotonic()
        return self._slots

    def close(self, tasks: Sequence[object]) -> None:
        """Cancel tasks; leave the cluster, or end it where it was started for this run."""
        for task in tasks:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.cancel(task, force=True)
        if self._ours:
            self._ray.shutdown()

    def _connect(self, config: Config, environment: Mapping[str, Any]) -> None:
        address = address_of(config.executor)
        unreachable = None if address is None else _unreachable(address)
        if unreachable is not None:  # Ray would ask again and again for minutes, and then end this process
            raise ConfigError(f"Cannot use the Ray cluster at {address}: {unreachable}. {_ADVICE}")
        options: dict[str, Any] = {"runtime_env": environment, "log_to_driver": False, "logging_level": logging.ERROR}
        if address is None and not os.environ.get("RAY_ADDRESS"):
            options["include_dashboard"] = False  # of a cluster on this machine, for this run alone
        with _quiet():
            try:
                self._ray.init(address=address, **options)
            except Exception as error:  # noqa: BLE001 - of many kinds, and all mean the same to whoever named the address
                self._ray.shutdown()
                where = f"the Ray cluster at {address}" if address else "Ray on this machine"
                raise ConfigError(f"Cannot use {where}: {type(error).__name__}: {_first_line(error)}. {_ADVICE}") from None

    def _nodes(self) -> list[Mapping[str, float]]:
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]


def _perform(conditions: Conditions, task: Task, *states: bytes) -> Reply:
    from gitbench.measure.remote import perform  # on the worker: the process that reports needs none of it

    return perform(conditions, task, *states)


def address_of(executor: str) -> str | None:
    """Of the option. None leaves it to Ray: ``RAY_ADDRESS``, or the cluster that runs on this machine, or one that it starts."""
    return executor.partition("=")[2] or None


def _unreachable(address: str) -> str | None:
    """Why nobody can be there; None where somebody listens, or only Ray knows."""
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdecimal():
        return None
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except (OSError, OverflowError) as error:
        return f"{host}, port {port}: {error}"
    return None


def needs_of(config: Config, *, device: str) -> dict[str, float]:
    """What a task is given by Ray's scheduler: its threads' CPUs, its memory and, on a GPU, that."""
    needs: dict[str, float] = {"num_cpus": config.threads, "memory": round(config.memory * GIB)}
    return {**needs, "num_gpus": config.gpus} if device == "cuda" else needs


def runtime_env(config: Config, cells: Iterable[Cell]) -> dict[str, Any]:
    """What Ray copies to the nodes: the folder that pytest was started in, if a cell names code or files in it."""
    if not _names_files_here(cells):
        return {}
    here = Path.cwd()
    written = [path for path in (config.results, config.leaderboard, config.report) if path is not None]
    inside = [path.resolve().relative_to(here) for path in written if path.resolve().is_relative_to(here) and path.resolve() != here]
    return {"working_dir": str(here), "excludes": [*_LEFT_BEHIND, *(f"/{path.as_posix()}" for path in inside)]}


def _names_files_here(cells: Iterable[Cell]) -> bool:
    specs = {(kind, getattr(cell.cases[0], kind)) for cell in cells for kind in KINDS}
    return any(_is_here(kind, part) for kind, text in specs for part in parse_spec(kind, text).parts)


def _is_here(kind: Kind, part: Part) -> bool:
    """Whether a part of a SPEC leads into the folder that pytest was started in: its code, or a file that an option names."""
    if any(isinstance(value, str) and _is_relative(value) for _, value in part.arguments):
        return True
    target = locate(kind, part)
    if target.path is None or target.module.partition(".")[0] in ("gitbench", "gitbench_defenses"):
        return False
    if target.is_file:
        return not target.path.is_absolute()
    return not holds_libraries(target.path.parents[target.module.count(".") + (target.path.name == "__init__.py")])


def _is_relative(text: str) -> bool:
    try:
        path = Path(text).expanduser()
        return not path.is_absolute() and path.exists()
    except (OSError, RuntimeError, ValueError):  # no path at all
        return False


def _fitting(needs: Mapping[str, float], node: Mapping[str, float]) -> int:
    """How many tasks a node can do at once."""
    names = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}
    return int(min(node.get(names[name], 0) / amount for name, amount in needs.items() if amount))


def _too_small(needs: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> str:
    def told(cpus: float, memory: float, gpus: float) -> str:
        return f"{cpus:g} CPU, {memory / GIB:.1f} GiB" + (f", {gpus:g} GPU" if gpus else "")

    wanted = told(needs["num_cpus"], needs["memory"], needs.get("num_gpus", 0))
    found = "; ".join(told(node.get("CPU", 0), node.get("memory", 0), node.get("GPU", 0)) for node in nodes)
    return (
        f"Expected a node with {wanted} for a single cell, the cluster has: {found or 'none'}. "
        "Lower --gitbench-memory, --gitbench-threads or --gitbench-gpus, or start another node."
    )


def _first_line(error: object) -> str:
    """What an error of Ray says first; the rest is advice of a page."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300].rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Ray warns of its own plans at a start, and pytest may have been told that warnings are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
