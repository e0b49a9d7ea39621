"""What the signs of a gradient say: on which side of nothing each of its entries lies."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.lbfgs import descend
from gitbench.attacker.tools.priors import Gaussian, Whitened
from gitbench.clients.client import own_update
from gitbench.clients.update import Update

# Chosen on held-out public images (benchmarks/signs_of_gradients.py).
DOUBTS = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01)
"""Error that is granted to an entry, in units of its tensor's root mean square; one after the other."""
_ERROR = 0.3  # of a pixel, for the curvature that the search begins with
_HISTORY = 20
_SAME = 1e-5  # relative: sizes that are one


def sends_signs(update: Update) -> bool:
    """Whether the entries of each victim's tensor differ in their sign alone; some of them, not most, may be zero."""
    sizes = [tensor.flatten(1).abs() for tensor in update.tensors.values()]
    alike = all(bool(((one >= (1 - _SAME) * one.amax(1, keepdim=True)) | (one == 0)).all()) for one in sizes)
    return alike and 2 * sum(int((one > 0).sum()) for one in sizes) > sum(one.numel() for one in sizes)


def from_signs(
    observation: Observation, labels: torch.Tensor, prior: Gaussian, *, iterations: int, tell: Callable[[int, int], None]
) -> torch.Tensor:
    """The likeliest images given the signs of their gradients, ``(V, B, *shape)`` in [0, 1].

    The likelihood of a sign is a probit: ``Φ(sign · g(x) / (doubt · rms))``. With a large doubt its logarithm is nearly linear in the
    gradient, which leads near; it falls step by step, as in graduated optimisation. Sizes are free: the root mean square is that of the
    candidate's own tensor.

    Args:
        observation: with an update of signs; needs ``parameters``.
        labels: ``(V, B)``.
        prior: of one image.
        iterations: at each doubt; one gradient each.
        tell: told how many iterations are done, of how many.
    """
    whitened, shape = Whitened(prior), (*labels.shape[:2], *observation.input_shape)
    signs = {name: tensor.sign() for name, tensor in observation.update.tensors.items()}

    def objective(doubt: float, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = whitened.images(points, shape).detach().requires_grad_()
        with torch.enable_grad():
            update = own_update(observation.model, images, labels, client=observation.client, defense=None)
            likelihood = torch.stack([_likelihood(tensor, signs[name], doubt) for name, tensor in update.tensors.items()]).sum(0)
            (slope,) = torch.autograd.grad(-likelihood.sum(), images)
        gradient = whitened.slope(slope) + points
        return points.square().sum(1) / 2 - likelihood.detach(), gradient.nan_to_num(0.0, 0.0, 0.0)

    points = torch.zeros(shape[0], shape[1] * prior.mean.numel(), device=labels.device)
    inverse = whitened.inverse_curvature(_ERROR).repeat(shape[1])
    for turn, doubt in enumerate(DOUBTS):

        def told(done: int, before: int = turn * iterations) -> None:
            tell(before + done, len(DOUBTS) * iterations)

        precondition = functools.partial(torch.mul, inverse)
        points = descend(points, functools.partial(objective, doubt), precondition, iterations, history=_HISTORY, tell=told)
    return whitened.images(points, shape).clamp(0, 1)


def _likelihood(tensor: torch.Tensor, signs: torch.Tensor, doubt: float) -> torch.Tensor:
    """The logarithm, of each victim ``(V,)``."""
    flat, sides = tensor.flatten(1), signs.flatten(1)
    size = flat.square().mean(1, keepdim=True).sqrt().clamp_min(torch.finfo(flat.dtype).tiny)
    told: torch.Tensor = torch.special.log_ndtr(sides * flat / (doubt * size)) * (sides != 0)
    return told.sum(1)
