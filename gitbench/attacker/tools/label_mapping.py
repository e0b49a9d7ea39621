"""Which class of a conditional generator stands for each image of a batch."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import forward_features, last_features
from gitbench.attacker.tools.generated import made, stages_of
from gitbench.clients.model import classes_of
from gitbench.core.random import make_generator

_SAMPLES = 16  # of each class, of the same codes: a code changes an image more than a class does
_DEVIATION = 1e-6


def classes_for(observation: Observation, network: nn.Module, labels: torch.Tensor, *, mapped: bool) -> tuple[torch.Tensor, ...]:
    """What a generator's first stage takes beside the codes: nothing, or the classes of the images as one-hot ``(V, B, classes)``.

    Where the generator has as many classes as the task, they are the task's. Otherwise an image gets the class whose samples have
    the last layer's input that is most like the one which the update shows for its label.

    Args:
        observation: needs ``parameters``.
        network: a :class:`gitbench.attacker.tools.generator.Staged`.
        labels: of the task, ``(V, B)``, as they were inferred.
        mapped: False numbers the generator's classes as the task's, over and over.
    """
    classes: int = getattr(network, "classes", 0)
    if not classes:
        return ()
    if mapped and classes != classes_of(observation.architecture):
        chosen = _nearest(observation, network, labels, classes)
    else:
        chosen = labels % classes
    return (functional.one_hot(chosen, classes).float(),)


def _nearest(observation: Observation, network: nn.Module, labels: torch.Tensor, classes: int) -> torch.Tensor:
    latent: int = network.latent  # type: ignore[assignment]
    codes = torch.randn(_SAMPLES, latent, generator=make_generator(0, "label mapping")).to(observation.device).expand(classes, -1, -1)
    every = torch.eye(classes, device=observation.device)[:, None].expand(-1, _SAMPLES, -1)
    with torch.no_grad():
        samples = made(stages_of(network), (codes, every))
    features = forward_features(observation.model, samples.flatten(0, 1))[0].unflatten(0, (classes, _SAMPLES)).mean(1)
    shown = last_features(observation, observation.update, labels).double()
    middle, deviation = features.mean(0), features.std(0, correction=0) + _DEVIATION
    theirs, ours = ((one - middle) / deviation for one in (shown, features))
    return (functional.normalize(theirs, dim=-1) @ functional.normalize(ours, dim=-1).T).argmax(-1)
