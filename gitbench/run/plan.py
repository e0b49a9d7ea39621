"""Which cases the cells of a run need: known before anybody waits for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from gitbench.identity.case import Case
from gitbench.judge.sequential import decide_cell
from gitbench.store.result import Result


class Plan:
    """Which cases cells need, as far as that is known yet."""

    def __init__(
        self,
        cells: Sequence[Sequence[Case]],
        planned: Sequence[int],
        gate: Mapping[str, float],
        *,
        known: Callable[[Case], Result | None],
    ) -> None:
        self._cells = cells
        self._planned = planned
        self._gate = gate
        self._known = known
        self._waiting: dict[str, set[int]] = {}  # by case id, where more may follow

    def wanted(self, cell: int) -> list[Case]:
        """The cases that a cell lacks, controls first: where the verdict decides on their number, those of its next look."""
        victims = self._planned[0] if len(self._planned) == 1 else self._next_look(cell)
        found = [] if victims is None else [case for case in self._look(cell, victims) if self._known(case) is None]
        if len(self._planned) > 1:
            for case in found:
                self._waiting.setdefault(case.case_id, set()).add(cell)
        return found

    def lacking_cost(self, cell: int) -> list[Case]:
        """The cases of a cell that are known, but not what their defense costs."""
        found = [(case, self._known(case)) for case in self._look(cell, self._planned[0])]
        return [case for case, result in found if result is not None and result.status == "done" and result.training is None]

    def concerned(self, case: Case) -> Sequence[int]:
        """The cells that may want more, now that a case is known."""
        return sorted(self._waiting.pop(case.case_id, ()))

    def _look(self, cell: int, victims: int) -> list[Case]:
        sized = [case.model_copy(update={"victims": victims}) for case in self._cells[cell]]
        return sized if sized[0].is_control else [*(case.control() for case in sized), *sized]

    def _next_look(self, cell: int) -> int | None:
        def measure(case: Case) -> Result:
            found = self._known(case)
            if found is None:
                raise _NotKnownYet(case)
            return found

        try:
            decide_cell(measure, self._cells[cell], planned=self._planned, gate=self._gate)
        except _NotKnownYet as unknown:
            return unknown.case.victims
        return None


class _NotKnownYet(Exception):  # noqa: N818 - no error, but a question that cannot be answered
    def __init__(self, case: Case) -> None:
        super().__init__(case.case_id)
        self.case = case
