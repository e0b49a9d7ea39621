"""The data that a suite is run on, looked at before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping

from gitbench.core.errors import DataError, GitbenchError
from gitbench.run.suite import DataNeed, Suite
from gitbench.run.suite_plan import how_to_give


def public_images(suite: Suite, data: Mapping[str, str]) -> dict[str, int]:
    """How many public images each data set has.

    Raises:
        DataError: one is missing, or is not what the table was made with.
    """
    return {name: _public(suite.need(name), spec) for name, spec in data.items()}


def _public(need: DataNeed, spec: str) -> int:
    from gitbench.clients.data import load_dataset

    try:
        found = load_dataset(spec)
    except GitbenchError as error:
        raise DataError(f"{error}\nThe suite needs {how_to_give(need)}") from None
    shape, classes = tuple(found.input_shape), found.classes
    if (need.shape is not None and shape != need.shape) or (need.classes is not None and classes != need.classes):
        got = f"{'x'.join(map(str, shape))} and {classes} classes"
        raise DataError(f"{spec} has images of {got}, and is another data set. The suite needs {how_to_give(need)}")
    return len(found.public)
