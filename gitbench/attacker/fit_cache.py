"""What attacks learned, and what other trainings found, kept beside the results: each is done once, and a killed one goes on."""

from __future__ import annotations

import contextlib
import hashlib
import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors

from gitbench.attacker.attack import Attack, Fit, Fitted, State, settings
from gitbench.attacker.learning import Checkpoint, NoCheckpoint
from gitbench.attacker.observation import Observation
from gitbench.core.errors import StoreError
from gitbench.core.memory import give_back_freed_memory
from gitbench.core.random import make_generator
from gitbench.core.spec import canonical_json
from gitbench.identity.case import Case
from gitbench.identity.sources import part_digest
from gitbench.store.folder import Store, write_atomic

Tensors = dict[str, torch.Tensor]

_MUCH = 2**30  # bytes that may stay free for the next fit


class FitCache:
    """States of attacks in a results folder, or in memory where there is none.

    A state is ``models/<key>.safetensors``; a training under way keeps ``models/<key>.checkpoint.safetensors``.
    Processes that need the same state wait for the one that trains it.

    Args:
        store: the results folder; None keeps states in memory.
        fresh_since: take nothing whose training began before this time (seconds since 1970).
    """

    def __init__(self, store: Store | None, *, fresh_since: float | None = None) -> None:
        self.store = store
        self.fresh_since = fresh_since
        self.memory: dict[str, Fitted] = {}
        self.own: set[str] = set()  # learned here: fresh, whatever the clock says

    def kept(self, made_from: str, learn: Callable[[Checkpoint], State], *, device: torch.device) -> Fitted:
        """What was learned from the same before, or else is learned now.

        Args:
            made_from: everything that shapes it: equal texts, equal states.
            learn: learns it, and keeps how far it is in a checkpoint.
            device: where the state goes.

        Raises:
            StoreError: the results folder cannot be used.
        """
        key = hashlib.sha256(made_from.encode()).hexdigest()[:20]
        if self.store is None:
            if key not in self.memory:
                start = time.perf_counter()
                self.memory[key] = Fitted(_placed(learn(NoCheckpoint()), device), time.perf_counter() - start)
            return self.memory[key]
        since, path = None if key in self.own else self.fresh_since, self.store.models / f"{key}.safetensors"
        with self.store.lock(key):
            found = _taken(path, since)
            if found is not None:
                return Fitted(_placed(found[0], device), float(found[1]["seconds"]))
            checkpoint = FileCheckpoint(self.store.models / f"{key}.checkpoint.safetensors", fresh_since=since)
            state = _placed(learn(checkpoint), device)
            seconds = checkpoint.seconds
            self.own.add(key)
            _write(path, state, {"began": repr(checkpoint.began), "seconds": repr(seconds), "made_from": made_from})
            checkpoint.delete()
        return Fitted(state, seconds)

    def of(self, case: Case) -> CaseFits:
        """The view of one case: what :class:`~gitbench.attacker.attack.Attack` asks."""
        return CaseFits(self, case)


class CaseFits:
    """The :class:`~gitbench.attacker.attack.Fits` of one case."""

    def __init__(self, cache: FitCache, case: Case) -> None:
        self._cache = cache
        self._case = case

    def get(self, attack: Attack, observation: Observation, fit: Fit) -> Fitted:
        """See :class:`~gitbench.attacker.attack.Fits`. The generator depends on the seed and the attack alone.

        Raises:
            StoreError: the results folder cannot be used.
        """
        return self._cache.kept(
            identity(self._case, attack, observation),
            lambda checkpoint: self._learned(attack, fit, checkpoint),
            device=observation.device,
        )

    def _learned(self, attack: Attack, fit: Fit, checkpoint: Checkpoint) -> State:
        try:
            return fit(self._generator(attack), checkpoint)
        finally:
            give_back_freed_memory(beyond=_MUCH)  # a fit takes more than what comes after it

    def _generator(self, attack: Attack) -> torch.Generator:
        return make_generator(self._case.seed, "fit", repr(attack))


def identity(case: Case, attack: Attack, observation: Observation) -> str:
    """Everything that shapes what an attack learns, as canonical JSON: equal texts, equal states."""
    granted = observation.granted
    # An option that prints its address is the same option in the next process.
    options = {name: re.sub(r" at 0x[0-9a-f]+", "", value) for name, value in settings(attack).items()}
    modelled, defended = "architecture" in granted, "defense" in granted
    # A fit that is not granted the defense sees of it only what it made of the model.
    defense = case.defense if defended else f"model {observation.model_digest}" if modelled else None
    unseen = {"metrics", *(() if defended else ("defense",)), *(() if modelled else ("model",))}
    code = {kind: digest for kind, digest in case.code.items() if kind not in unseen}
    return canonical_json(
        {
            "dataset": case.dataset,
            "public": len(observation.public) if "public" in granted else 0,
            "model": case.model if modelled else _labels_of(observation),
            "defense": defense,
            "attack": repr(attack),
            "settings": options,
            "client": repr(observation.client),
            "batch_size": observation.batch_size,
            **({} if observation.repeats == 1 else {"rounds": observation.repeats}),
            "seed": case.seed,
            "knowledge": sorted(granted),
            "device": observation.device.type,
            # A hybrid's own digest names its refiner too, which has no part in this.
            "code": {**code, "attack": part_digest("attack", attack._part)},
        }
    )


def _labels_of(observation: Observation) -> str:
    """Names the public labels, which is what a model that is not seen may still have changed: some make targets of their own."""
    if "public" not in observation.granted:
        return "not seen"
    labels = observation.public.labels.cpu().contiguous()
    return f"labels {hashlib.sha256(labels.numpy().tobytes()).hexdigest()[:20]}"


class FileCheckpoint:
    """A :class:`~gitbench.attacker.learning.Checkpoint` in a file, which also counts the seconds of all attempts.

    Args:
        path: the file; one that is damaged is deleted, with a warning.
        fresh_since: delete one that was begun before this time (seconds since 1970).
    """

    def __init__(self, path: Path, *, fresh_since: float | None = None) -> None:
        self._path = path
        self._start = time.perf_counter()
        self._before = 0.0
        self.began = time.time()
        found = _metadata(path)
        if found is not None and (fresh_since is None or fresh_since <= float(found["began"]) <= time.time()):
            self.began, self._before = float(found["began"]), float(found["seconds"])
        else:
            self.delete()

    @property
    def seconds(self) -> float:
        """Spent on this training so far; what a killed process did after its last save is not known."""
        return self._before + time.perf_counter() - self._start

    def load(self) -> Tensors | None:
        found = _read(self._path)
        return None if found is None else found[0]

    def save(self, tensors: Mapping[str, torch.Tensor]) -> None:
        _write(self._path, tensors, {"began": repr(self.began), "seconds": repr(self.seconds)})

    def delete(self) -> None:
        """Remove the file, if there is one."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)


def _taken(path: Path, fresh_since: float | None) -> tuple[Tensors, dict[str, str]] | None:
    found = _read(path)
    old = found is not None and fresh_since is not None and not fresh_since <= float(found[1]["began"]) <= time.time()
    return None if old else found


def _metadata(path: Path) -> dict[str, str] | None:
    found = _read(path, tensors=False)
    return None if found is None else found[1]


def _read(path: Path, *, tensors: bool = True) -> tuple[Tensors, dict[str, str]] | None:
    """Tensors (if asked for) and metadata of a file; None when there is none that can be used.

    Raises:
        StoreError: the system does not let us read it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            float(metadata["began"]), float(metadata["seconds"])
            # Copied: a mapped file lies in memory at odd addresses, and sums may round differently there.
            return {name: file.get_tensor(name).clone() for name in file.keys()} if tensors else {}, metadata  # noqa: SIM118
    except FileNotFoundError:
        return None
    except (SafetensorError, KeyError, ValueError) as error:
        warnings.warn(f"{path} is damaged ({type(error).__name__}: {error}): it is trained again.", stacklevel=2)
        return None
    except OSError as error:
        raise StoreError(f"Cannot read {path}: {error}. Delete it, or choose another folder with --gitbench-results.") from error


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    write_atomic(path, save_tensors(_own(tensors), metadata))


def _placed(state: Mapping[str, torch.Tensor], device: torch.device) -> Tensors:
    """A state as it would come from a file, so that taking it and learning it give the same bits."""
    return {name: tensor.to(device) for name, tensor in sorted(_own(state).items())}


def _own(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """The same tensors, contiguous and each in memory of its own, as safetensors wants them."""
    found: Tensors = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().contiguous()
        storage = own.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != own.nbytes:
            own = own.clone()
        seen.add(own.untyped_storage().data_ptr())
        found[name] = own
    return found
