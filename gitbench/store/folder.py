"""Results on disk: one JSON file per case, written so that a killed run loses only the case in flight."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from filelock import FileLock
from pydantic import ValidationError

from gitbench.core.errors import StoreError
from gitbench.core.text import shown
from gitbench.store.result import SCHEMA, Result

LARGEST = 2**28
"""Bytes of a file of results: one of a million victims has half."""


class Store:
    """A results folder: ``cases/`` (JSON), ``pictures/`` (PNG), ``models/`` (safetensors), ``locks/``.

    Several processes may share one folder: a case is measured under its lock.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def models(self) -> Path:
        return self.root / "models"

    def case_path(self, case_id: str) -> Path:
        return self.root / "cases" / f"{case_id}.json"

    def picture_path(self, case_id: str) -> Path:
        return self.root / "pictures" / f"{case_id}.png"

    def load(self, case_id: str) -> Result | None:
        """The stored result, or None when there is none that can be used.

        A damaged file is set aside as ``<name>.damaged``, so that the case is measured again.

        Raises:
            StoreError: the file comes from a newer gitbench.
        """
        path = self.case_path(case_id)
        try:
            found = read_result(path)
        except FileNotFoundError:
            return None
        except ValidationError:
            found = None
        if found is not None and found.case_id == case_id:
            return found
        aside = path.with_suffix(".damaged")
        try:
            os.replace(path, aside)
        except FileNotFoundError:  # another run of this folder has done so already
            return None
        except OSError as error:
            raise StoreError(f"{path} is damaged and cannot be moved to {aside.name}: {error}. Delete it.") from error
        warnings.warn(f"{path} was damaged: it is kept as {aside.name} and the case is measured again.", stacklevel=2)
        return None

    def save(self, result: Result) -> None:
        """Write one result: temporary file in the same folder, fsync, rename."""
        write_atomic(self.case_path(result.case_id), result.to_json().encode())

    def save_picture(self, case_id: str, png: bytes) -> None:
        write_atomic(self.picture_path(case_id), png)

    @contextlib.contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold ``name`` among all processes that share this folder. The system frees it if we are killed."""
        folder = self.root / "locks"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"Cannot write to the results folder {self.root}: {error}. Choose another with --gitbench-results.") from error
        held = FileLock(folder / f"{name}.lock")
        try:
            held.acquire()
        except OSError as error:
            raise StoreError(f"Cannot lock {held.lock_file}: {error}. Choose another folder with --gitbench-results.") from error
        try:
            yield
        finally:
            held.release()

    def results(self) -> Iterator[Result]:
        """Every readable result, in the order of their case ids."""
        for path in sorted((self.root / "cases").glob("*.json"), key=str):
            with contextlib.suppress(ValidationError):
                yield read_result(path)


def read_result(path: Path) -> Result:
    """Read one result file.

    Raises:
        FileNotFoundError: no such file.
        pydantic.ValidationError: truncated, edited by hand, or no result at all.
        StoreError: written by a newer gitbench, or unreadable.
    """
    text = read_file(path, most=LARGEST)
    try:
        found = Result.model_validate_json(text)
    except ValidationError:
        _check_schema(path, _schema_of(text))
        raise
    _check_schema(path, found.schema_version)
    return found


def _check_schema(path: Path, schema: int | None) -> None:
    if schema is not None and schema > SCHEMA:
        raise StoreError(
            f"{path} has schema {shown(schema, limit=20)}; this gitbench reads up to {SCHEMA}. "
            "Upgrade gitbench, or choose another folder with --gitbench-results."
        )


def read_file(path: Path, *, most: int) -> bytes:
    """A file that may be anybody's: nothing is opened that would block, and no more read than ``most`` bytes.

    Raises:
        FileNotFoundError: no such file.
        StoreError: no regular file, too large, or unreadable.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise StoreError(f"Cannot read {path}: expected a file, found something else. Move it away.")
        if found.st_size > most:
            raise StoreError(f"Cannot read {path}: it has {found.st_size} bytes, expected at most {most}. Move it away.")
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error}.") from error


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` with ``content`` so that a reader sees the old file or the new one, never half.

    Ctrl-C waits until the file is written.

    Raises:
        StoreError: the disk is full, read-only, or the path is not writable.
    """
    try:
        with _interrupt_waits():
            _write(path, content)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error}. Free the disk or choose another folder.") from error


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def _interrupt_waits() -> Iterator[None]:
    """The first Ctrl-C comes through after the block, a second one at once."""
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    waiting: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        if waiting:
            previous(number, frame)
        waiting.append(frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if waiting:
            previous(signal.SIGINT, waiting[0])


def _schema_of(text: bytes) -> int | None:
    import json

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    schema = value.get("schema") if isinstance(value, dict) else None
    return schema if isinstance(schema, int) else None
