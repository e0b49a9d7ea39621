"""What a defense costs: the accuracy of a model that is trained with defended updates, beside one trained with raw ones.

Clients draw their batches from most of the public images, and the rest is the test. The server averages what the clients of a round
send, and takes a step of Adam (FedAdam without local steps, Reddi et al., arXiv 2003.00295), which does not mind at which scale
updates are sent. Both models start from the same weights, see the same batches in the same order, and are tested on the same images: the
accuracy lost is a paired difference. It is relative to this size of data, this budget and this optimizer.
"""

from __future__ import annotations

import copy
import functools
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from gitbench.attacker.attack import State
from gitbench.attacker.fit_cache import FitCache
from gitbench.attacker.learning import Checkpoint
from gitbench.clients.client import after_earlier_rounds, local_gradients, protect
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, fresh
from gitbench.clients.procedure import Client
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Update
from gitbench.core.progress import Progress
from gitbench.core.random import make_generator
from gitbench.core.spec import canonical_json
from gitbench.measure.scene import Scene
from gitbench.measure.utility import measure_utility
from gitbench.store.result import Training, Utility

_TEST = 0.2  # share of the public images
_MOST_TESTED = 2000
_LR = 2e-3
_SAVED_EVERY = 50  # rounds
_SAVED_AFTER = 30.0  # seconds, where rounds take long
_DELTA = 1e-5
_COMPRESSED = 4  # updates whose size is measured

Tensors = dict[str, torch.Tensor]


ROUNDS: Mapping[str, int] = {"quick": 200, "standard": 1000, "paper": 5000}
"""Steps of the server, by profile."""

IMAGES: Mapping[str, int] = {"quick": 32, "standard": 64, "paper": 64}
"""Of all clients of a round together, by profile."""


@dataclass(frozen=True)
class Course:
    """How a model is trained.

    Args:
        public: what the clients' batches and the test images are drawn from.
        client: how an update is made.
        batch_size: images of each update.
        rounds: steps of the server.
        seed: of the split, the batches and the defense's randomness.
        images: of all clients of a round together.
    """

    public: Split
    client: Client
    batch_size: int
    rounds: int
    seed: int
    images: int = IMAGES["standard"]

    @property
    def clients(self) -> int:
        """Updates of a round."""
        return max(1, self.images // self.batch_size)

    @functools.cached_property
    def split(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Indices of the public images that train, and of those that test."""
        order = torch.randperm(len(self.public), generator=make_generator(self.seed, "training split"))
        tested = min(_MOST_TESTED, max(1, round(_TEST * len(order))))
        return order[tested:], order[:tested]

    def batches(self, round_: int) -> torch.Tensor:
        """Indices ``(clients, batch_size)`` of the images of a round."""
        train, _ = self.split
        generator = make_generator(self.seed, f"training round {round_}")
        return train[torch.randint(len(train), (self.clients, self.batch_size), generator=generator)]


def measure_training(scene: Scene, plain: Scene, *, fits: FitCache, progress: Progress) -> Training:
    """What a scene's defense costs: one training under it for all attacks, and one without for all defenses.

    Args:
        scene: with the defense.
        plain: the same without.
        fits: keeps both trainings.
        progress: told after every round.

    Raises:
        DefenseError: the defense raised.
        StoreError: the results folder cannot be used.
    """
    case = scene.case
    course = Course(scene.public, scene.client, scene.labels.shape[1], ROUNDS[case.profile], case.seed, IMAGES[case.profile])

    def trained(one: Scene) -> State:
        def learn(checkpoint: Checkpoint) -> Tensors:
            return train_defended(one.shared_model(), course, defense=one.defense, progress=progress, checkpoint=checkpoint)

        return fits.kept(_made_from(one, course), learn, device=torch.device("cpu")).state

    undefended, defended = trained(plain), trained(scene)
    first = first_updates(scene.shared_model(), course, defense=scene.defense, victims=case.victims)
    return training_of(defended, undefended, course, defense=scene.defense, first=first)


def _made_from(scene: Scene, course: Course) -> str:
    """Everything that shapes a training, as canonical JSON. Attack, victims and rounds that leak do not."""
    case = scene.case
    return canonical_json(
        {
            "training": course.rounds,
            "images": course.images,
            "dataset": case.dataset,
            "public": len(course.public),
            "model": case.model,
            "defense": case.defense,
            "client": repr(course.client),
            "batch_size": course.batch_size,
            "seed": case.seed,
            "device": course.public.inputs.device.type,
            "code": {kind: digest for kind, digest in case.code.items() if kind not in ("attack", "metrics")},
        }
    )


def train_defended(model: nn.Module, course: Course, *, defense: Defense, progress: Progress, checkpoint: Checkpoint) -> Tensors:
    """Which test images a model classifies right after its training, ``right (N,)``; the seconds of a client's update, and its bytes.

    Args:
        model: as server and clients share it before the first round; left as it is.
        course: how it is trained.
        defense: of every client, all rounds long: what it keeps from round to round it keeps here too.
        progress: told after every round.
        checkpoint: takes up a training that was cut off; not that of a defense that keeps something from round to round.
    """
    model = copy.deepcopy(model)
    defense, public = fresh(defense), course.public
    parameters = trained_parameters(model)
    optimizer = torch.optim.Adam(list(parameters.values()), lr=_LR)
    first = _resumed(model, optimizer, checkpoint) if defense.age == 1 else 0
    spent, last, saved = 0.0, Update({}), time.perf_counter()
    for round_ in range(first, course.rounds):
        chosen = course.batches(round_).to(public.inputs.device)
        start = time.perf_counter()
        last = _sent(model, public.inputs[chosen], public.labels[chosen], course, defense, round_)
        spent += time.perf_counter() - start
        for name, parameter in parameters.items():
            parameter.grad = last.tensors[name].detach().mean(0)
        optimizer.step()
        due = (round_ + 1) % _SAVED_EVERY == 0 or time.perf_counter() - saved > _SAVED_AFTER
        if defense.age == 1 and due and round_ + 1 < course.rounds:  # one round at least is left to do
            checkpoint.save(_saved(model, optimizer, round_ + 1))
            saved = time.perf_counter()
        progress("training under the defense", round_ + 1, course.rounds)
    done = (course.rounds - first) * course.clients
    told = {"seconds": spent / done, "bytes": _bytes_sent(last)}
    return {"right": _right(model, course), **{name: torch.tensor(value, dtype=torch.float64) for name, value in told.items()}}


def first_updates(model: nn.Module, course: Course, *, defense: Defense, victims: int) -> Utility:
    """What the defense makes of the first clients' updates: to compare with what it made of the victims', under an attack.

    Args:
        model: as server and clients share it.
        course: whose first round it is.
        defense: left as it is.
        victims: how many clients at most.
    """
    public = course.public
    chosen = course.batches(0).to(public.inputs.device)
    inputs, labels = public.inputs[chosen], public.labels[chosen]
    # Of all of them: a defense that asks how many finds a training. And of clients that are as old as the victims.
    older = after_earlier_rounds(
        defense, model, client=course.client, victims=course.clients, batch_size=course.batch_size,
        generator=make_generator(course.seed, "training defense"), public=public,
    )  # fmt: skip
    sent = _sent(model, inputs, labels, course, older, 0)
    rows = slice(victims)
    return measure_utility(model, inputs[rows], labels[rows], sent[rows], random=False)


def training_of(defended: State, undefended: State, course: Course, *, defense: Defense, first: Utility) -> Training:
    """What :func:`train_defended` found for a defense beside what it found for none, and :func:`first_updates`."""
    right, before = (found["right"].bool() for found in (defended, undefended))
    train, test = course.split
    guessed = int(course.public.labels[test.to(course.public.labels.device)].flatten().bincount().max())
    sample_rate = min(1.0, course.clients * course.batch_size / max(1, len(train)))
    # The server sees every client's update, so that no other client's noise counts.
    epsilon = defense.privacy_spent(sample_rate=sample_rate, steps=course.rounds, delta=_DELTA)
    return Training(
        images=len(right), right=int(right.sum()), lost=int((before & ~right).sum()), gained=int((right & ~before).sum()),
        guessed=guessed, cosine=first.cosine, equal=first.equal,
        rounds=course.rounds, clients=course.clients, batch_size=course.batch_size,
        bytes_sent=float(defended["bytes"]), seconds=float(defended["seconds"]),
        epsilon=epsilon, delta=None if epsilon is None else _DELTA,
    )  # fmt: skip


def _bytes_sent(update: Update) -> float:
    """Of one update as float32, after lossless compression: what is zero, or one of few values, costs little."""
    rows = update.flatten()[:_COMPRESSED].detach().float().cpu().numpy()
    return sum(len(zlib.compress(row.tobytes(), level=6)) for row in rows) / len(rows)


def _sent(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, course: Course, defense: Defense, round_: int) -> Update:
    generator = make_generator(course.seed, f"training defense {round_}")
    raw = local_gradients(model, inputs, labels, client=course.client, defense=defense, generator=generator, public=course.public)
    return protect(raw, client=course.client, defense=defense, generator=generator)


def _saved(model: nn.Module, optimizer: torch.optim.Optimizer, round_: int) -> Tensors:
    """Of plain tensors alone, as a checkpoint takes them."""
    found = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        found |= {f"adam.{index}.{name}": torch.as_tensor(value) for name, value in state.items()}
    return found | {"round": torch.tensor(round_)}


def _resumed(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> int:
    """Take up a training; the round to go on with."""
    found = checkpoint.load()
    if found is None:
        return 0
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in found.items() if name.startswith("model.")})
    states: dict[int, Tensors] = {}
    for name, tensor in found.items():
        if name.startswith("adam."):
            _, index, entry = name.split(".")
            states.setdefault(int(index), {})[entry] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
    return int(found["round"])


@torch.no_grad()
def _right(model: nn.Module, course: Course) -> torch.Tensor:
    _, test = course.split
    model.eval()
    rows = test.to(course.public.inputs.device)
    found = [model(course.public.inputs[part]).argmax(-1) == course.public.labels[part] for part in rows.split(64)]
    return torch.cat(found).flatten().to(torch.uint8).cpu()
