"""A cluster without Ray, and an attack that writes down what it learns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gitbench.core.errors import ClusterError
from gitbench.measure import remote
from gitbench.measure.task import Conditions, Reply, Task

ATTACKS = """
from pathlib import Path
import torch
import gitbench

class Learned(gitbench.Attack):
    # Learns a number, and writes down that it did: it is learned for all defenses at once.
    requires = frozenset({"architecture", "public"})
    fit_uses = frozenset({"architecture", "public"})

    def __init__(self, *, which: int = 0, fails: bool = False):
        self.which, self.fails = which, fails

    def fit(self, observation, *, generator, progress, checkpoint):
        found = checkpoint.load() or {"steps": torch.zeros(1)}
        with Path(__file__).with_name("learned.log").open("a") as log:
            log.write(f"{self.which} from {int(found['steps'])}\\n")
        if self.fails:
            raise ValueError("nothing to be learned")
        for step in range(int(found["steps"]), 10):
            checkpoint.save({"steps": torch.tensor([float(step + 1)])})
            progress("learning", step, 10)
        return {"bias": torch.rand(1, generator=generator)}

    def run(self, observation, state, *, generator, progress):
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        return (torch.rand(shape, generator=generator) + state["bias"]).clamp(0, 1)

class Guess(gitbench.Refiner):
    def refine(self, observation, start, *, generator, progress):
        shape = (observation.update.victims, observation.batch_size, *observation.input_shape)
        return torch.rand(shape, generator=generator) if start is None else start

class Broken(gitbench.Defense):
    def protect(self, update, *, generator):
        raise RuntimeError("my bad")
"""


class Here:
    """A cluster that does its tasks in this process, when somebody asks for one that is done.

    Args:
        timeout: of a case.
        slots: tasks that are taken at once.
        dies: whether the worker of a task dies.
        ends: which of several tasks ends first.
    """

    def __init__(
        self,
        *,
        timeout: float | None = None,
        slots: int = 3,
        dies: Callable[[Task], bool] = lambda task: False,
        ends: Callable[[Sequence[object]], object] = lambda tasks: tasks[0],
    ) -> None:
        self.conditions = Conditions(device="cpu", threads=1, timeout=timeout)
        self._evaluator = remote.RemoteEvaluator(self.conditions)
        self.tasks: list[Task] = []
        self.closed = False
        self._slots, self._dies, self._ends = slots, dies, ends
        self._states: dict[int, Sequence[bytes]] = {}

    def put(self, content: bytes) -> object:
        return content

    def start(self, task: Task, states: Sequence[object]) -> object:
        self.tasks.append(task)
        self._states[len(self.tasks) - 1] = [state for state in states if isinstance(state, bytes)]
        return len(self.tasks) - 1

    def finished(self, tasks: Sequence[object], *, seconds: float) -> Sequence[object]:
        return [self._ends(tasks)]

    def reply(self, task: object) -> Reply:
        assert isinstance(task, int)
        if self._dies(self.tasks[task]):
            raise ClusterError("the worker died")
        return self._evaluator.perform(self.tasks[task], self._states[task])

    def slots(self) -> int:
        return self._slots

    def close(self, tasks: Sequence[object]) -> None:
        self.closed = True
