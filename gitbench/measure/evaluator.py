"""From a case to its result: the one module that knows the whole chain."""

from __future__ import annotations

import contextlib
import copy
import datetime
import functools
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gitbench._version import __version__
from gitbench.attacker.attack import load_attack, settings
from gitbench.attacker.fit_cache import FitCache
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.rehearsal import rehearse
from gitbench.clients.client import gradients
from gitbench.clients.data import Data, load_dataset
from gitbench.clients.defense import Defense, fresh, load_defense
from gitbench.clients.model import load_model
from gitbench.clients.output import output_of
from gitbench.clients.procedure import load_client
from gitbench.clients.rounds import client_rounds
from gitbench.clients.task import data_for
from gitbench.core.deadline import Deadline, checked
from gitbench.core.errors import ConfigError, told
from gitbench.core.memory import peak_memory_mb, reset_peak
from gitbench.core.modality import Modality
from gitbench.core.progress import Progress, TimeUp, silent
from gitbench.core.random import make_generator
from gitbench.identity.case import Case
from gitbench.judge.flags import own_flags
from gitbench.measure.certificate import certified
from gitbench.measure.conformance import check_conformance
from gitbench.measure.fingerprint import fingerprint
from gitbench.measure.remembered import Remembered, Setting, setting_of
from gitbench.measure.scene import Scene, victims_of
from gitbench.measure.scoring import measures_of
from gitbench.measure.told import told_of
from gitbench.measure.training_cost import measure_training
from gitbench.measure.utility import measure_utility
from gitbench.store.folder import Store
from gitbench.store.result import NOT_JUDGED, TIMED_OUT, Cost, Environment, Result, Training, failed

EVERY_MODEL = "models"
"""The lock around the loading of any model."""


@dataclass(frozen=True)
class _Character:
    """Of a defense: whether it draws random numbers, and how it misleads."""

    random: bool
    flags: frozenset[str]

    @property
    def exact(self) -> bool:
        """Whether what it sends follows from its argument, and changes whenever that does."""
        return not self.random and "no-slope" not in self.flags


class Evaluator:
    """Runs cases, sharing loaded data and models between them.

    Args:
        store: where trained models and pictures are kept; None keeps none.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: told what is going on.
        fresh_since: take no attack's training that began before this time (seconds since 1970).
        timeout: seconds that a case may take once its data and model are there; None for no limit.
    """

    def __init__(
        self,
        *,
        store: Store | None = None,
        device: str = "auto",
        progress: Progress = silent,
        fresh_since: float | None = None,
        timeout: float | None = None,
    ) -> None:
        self.store = store
        self.device = resolve_device(device)
        self.progress = progress
        self.timeout = checked(timeout)
        self._data: dict[str, Data] = {}
        self._models: dict[tuple[str, str, int], nn.Module] = {}
        self._conforming: dict[Setting, _Character] = {}
        self._too_slow: set[Setting] = set()  # to be trained under, in the time of a case
        self._remembered = Remembered()
        self._fits = FitCache(store, fresh_since=fresh_since)

    def run(self, case: Case, defense: Defense | None = None) -> Result:
        """Measure one case, not judged yet. What a defense or attack raises ends up in the result.

        A case that runs out of time gets the flag ``timed-out``, and what it had by then.

        Args:
            case: what to measure.
            defense: the defense itself, when no SPEC can rebuild it.
        """
        try:
            with Deadline(self.timeout, self.progress) as deadline:
                return self._measured(case, defense, deadline)
        except TimeUp:
            return Result(flags=(TIMED_OUT,), timeout=self.timeout, **self._unjudged(case))
        except Exception as error:  # noqa: BLE001 - a user's code may raise anything; the run goes on
            return Result(**{**self._unjudged(case), **failed(told(error))})

    def observe(self, case: Case, defense: Defense | None = None) -> Observation:
        """What the attacker of a case gets to see, to the last bit: the update, and what its threat model grants.

        Args:
            case: its attack does not matter.
            defense: the defense itself, when no SPEC can rebuild it.

        Raises:
            GitbenchError: a part of the case cannot be built.
        """
        scene = self._scene(case, defense)
        return observed(scene, scene.shared_model())

    def modality(self, case: Case) -> Modality:
        """What kind of data a case is about.

        Raises:
            DataError: the dataset cannot be used.
        """
        return self._load_data(case.dataset).modality

    def truth(self, case: Case) -> torch.Tensor:
        """The private inputs of a case's victims ``(V, B, *shape)``.

        Raises:
            DataError: the dataset cannot be used, or is too small.
        """
        data = self._load_data(case.dataset)
        inputs, _ = victims_of(case, data, load_client(case.client))
        return inputs.to(self.device)

    def score(self, case: Case, reconstruction: torch.Tensor) -> Result:
        """The result of reconstructions that were made elsewhere, not judged yet.

        Args:
            case: whose victims they are of. Its model and defense are named and not built.
            reconstruction: ``(V, B, *shape)``; of images ``(V, B, C, H, W)`` in [0, 1].

        Raises:
            DataError: the dataset cannot be used, or is too small.
            AttackError: the shape is another one.
        """
        inputs, found = self.truth(case), reconstruction.to(self.device)
        measures, baselines, flags = measures_of(found, inputs, self._load_data(case.dataset))
        if self.store:
            self.store.save_picture(case.case_id, self.modality(case).picture(inputs, found))
        return self._flagged(Result(metrics=measures, baselines=baselines, flags=tuple(flags), **self._unjudged(case)))

    def training(self, case: Case, defense: Defense | None = None) -> Training | None:
        """What the defense of a case costs: one training for all attacks on it, and one without a defense.

        Args:
            case: its attack, its victims and the rounds that leak do not matter.
            defense: the defense itself, when no SPEC can rebuild it.

        Returns:
            None where its time is up (the case's timeout): what is done by then is kept, and the next run goes on with it.

        Raises:
            GitbenchError: a part of the case cannot be built, or the defense raised.
        """
        scene, plain = self._scene(case, defense), self._scene(case.control(), None)
        key = setting_of(case, scene.defense)
        if key in self._too_slow:
            return None
        try:
            with Deadline(self.timeout, self.progress) as deadline:
                deadline.begin()
                return measure_training(scene, plain, fits=self._fits, progress=deadline)
        except TimeUp:
            self._too_slow.add(key)
            return None

    def _unjudged(self, case: Case) -> dict[str, Any]:
        """What every measurement says alike."""
        return {
            "case": case,
            "case_id": case.case_id,
            "status": "done",
            "verdict": "inconclusive",
            "verdict_reason": NOT_JUDGED,
            "environment": self.environment(),
            "finished_at": _now(),
        }

    @staticmethod
    def _flagged(result: Result, *, still_improving: bool = False) -> Result:
        flags = {*result.flags, *own_flags(result, still_improving=still_improving)}
        return result.model_copy(update={"flags": tuple(sorted(flags))})

    def _scene(self, case: Case, defense: Defense | None) -> Scene:
        data = self._load_data(case.dataset)
        defense = load_defense(case.defense) if defense is None else fresh(defense)
        original = copy.deepcopy(self._load_model(case, data))  # other cells share it
        client = load_client(case.client)
        data = data_for(original, data)
        inputs, labels = (tensor.to(self.device) for tensor in victims_of(case, data, client))
        return Scene(case, data, data.public.to(self.device), original, client, defense, inputs, labels)

    def _measured(self, case: Case, defense: Defense | None, deadline: Deadline) -> Result:
        reset_peak(self.device)
        scene = self._scene(case, defense)
        attack = load_attack(case.attack, profile=case.profile)
        data, inputs, labels = scene.data, scene.inputs, scene.labels
        if deadline.seconds is not None:
            warm_up()
        deadline.begin()
        model = scene.shared_model()
        character = None if case.is_control else self._conforms(case, scene, model)
        local: list[tuple[float, ...]] = []
        observation = observed(scene, model, show=lambda drifted: local.append(fingerprint(model, drifted)))
        observation = self._remembered.by(observation, setting_of(case, scene.defense))
        random = make_generator(case.seed, "attack", case.attack)
        found = attack(observation, generator=random, progress=deadline, fits=self._fits.of(case))
        deadline.end()
        self.progress("score", 0, 1)
        sent = observation.rounds[0]  # the same however many follow: what the attacker makes of them teaches the model nothing
        utility = None if character is None else measure_utility(model, inputs, labels, sent, random=character.random)
        measures, baselines, flags = measures_of(found.inputs, inputs, data)
        output = output_of(scene.original)
        if character is not None:
            flags += character.flags
        flags += [*found.flags, *data.modality.flags(model)]
        if output is not None and output.probabilities:
            flags.append("softmax-twice")
        if self.store:
            self.store.save_picture(case.case_id, data.modality.picture(inputs, found.inputs))
        if deadline.over:
            flags.append(TIMED_OUT)
        result = Result(
            metrics=measures,
            baselines=baselines,
            flags=tuple(flags),
            utility=utility,
            local_model=local[0] if local else (),
            cost=Cost(
                fit_seconds=round(found.fit_seconds, 4),
                attack_seconds=round(found.attack_seconds, 4),
                peak_memory_mb=peak_memory_mb(self.device),
            ),
            certified=certified(attack, observation, found.inputs, exact=character is None or character.exact),
            settings={**settings(attack), **data.modality.told(), **told_of(model)},
            timeout=deadline.seconds if deadline.over else None,
            **self._unjudged(case),
        )
        return self._flagged(result, still_improving=found.still_improving)

    def _conforms(self, case: Case, scene: Scene, model: nn.Module) -> _Character:
        """What the defense is like on public images; checked once for all attacks on it."""
        defense, public = scene.defense, scene.public
        key = setting_of(case, defense)
        if key not in self._conforming:
            random = check_conformance(defense, model, public, batch_size=case.batch_size)
            known = self._remembered.by(scene.rehearsed(model), key)
            rehearsal = rehearse(known, generator=make_generator(case.seed, "rehearsal"))
            self._conforming[key] = _Character(random, rehearsal.flags)
        return self._conforming[key]

    def _load_data(self, dataset: str) -> Data:
        if dataset not in self._data:
            self._data[dataset] = load_dataset(dataset)
        return self._data[dataset]

    def _load_model(self, case: Case, data: Data) -> nn.Module:
        key = (case.dataset, case.model, case.seed)
        if key not in self._models:
            lock = self.store.lock(EVERY_MODEL) if self.store else contextlib.nullcontext()
            with lock:
                self._models[key] = load_model(case.model, data, seed=case.seed, cache=self.store.models if self.store else None)
        return self._models[key].to(self.device)

    def environment(self) -> Environment:
        """Versions, device and threads behind a measurement of this evaluator."""
        import torchvision

        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        return Environment(
            gitbench=__version__,
            torch=torch.__version__,
            torchvision=torchvision.__version__,
            python=platform.python_version(),
            platform=f"{platform.system()} {platform.machine()}",
            device=device,
            threads=torch.get_num_threads(),
        )


def resolve_device(device: str) -> torch.device:
    """``auto`` takes the GPU where there is one.

    Raises:
        ConfigError: unknown, or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"Expected the device to be auto, cpu or cuda, got {device!r}.")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("The device cuda was asked for, but torch finds no GPU. Use --gitbench-device auto or cpu.")
    return torch.device(device)


def observed(scene: Scene, model: nn.Module, *, show: Callable[[nn.Module], None] | None = None) -> Observation:
    """What the clients of a scene send, and what the attacker knows; ``show`` is given the model of a client that changed it first."""
    case = scene.case
    update = client_rounds(
        model,
        scene.inputs,
        scene.labels,
        rounds=case.rounds,
        client=scene.client,
        defense=scene.defense,
        generator=make_generator(case.seed, "defense", case.defense),
        public=scene.public,
        show=show,
    )
    return scene.observation(update, model)


@functools.cache
def warm_up() -> None:
    """Have torch import what it imports at first use (seconds): no case's time, and no place for an alarm to ring."""
    gradients(nn.utils.skip_init(nn.Linear, 1, 2), torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.long))
    torch.optim.Adam([torch.zeros(1, requires_grad=True)])


def _now() -> str:
    return datetime.datetime.fromtimestamp(time.time(), tz=datetime.UTC).isoformat(timespec="milliseconds")
