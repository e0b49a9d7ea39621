"""Which run of a suite a results folder holds: what its table is made of besides the results."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from gitbench.core.errors import StoreError
from gitbench.run.suite_plan import SuiteRun
from gitbench.store.folder import Store, read_file, write_atomic

_LARGEST = 2**20  # bytes


def save_run(store: Store, run: SuiteRun) -> None:
    """Keep it; the run of the same suite before it is forgotten, its results are not."""
    write_atomic(_path(store, run.suite), (run.model_dump_json(indent=1) + "\n").encode())


def load_run(store: Store, name: str) -> SuiteRun | None:
    """The last run of a suite; None where there is none.

    Raises:
        StoreError: the file is damaged.
    """
    path: Path = _path(store, name)
    try:
        return SuiteRun.model_validate_json(read_file(path, most=_LARGEST))
    except FileNotFoundError:
        return None
    except ValidationError:
        raise StoreError(f"Expected the record of a suite's run in {path}, found something else. Delete it, and run it again.") from None


def _path(store: Store, name: str) -> Path:
    return store.root / "suites" / f"{name}.json"
