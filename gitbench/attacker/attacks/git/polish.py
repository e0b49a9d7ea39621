"""Against noise: the image that explains all layers' gradients at once, from where the walk ended."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn import functional

from gitbench.attacker.layers.chain import Chain, Weights
from gitbench.attacker.layers.passes import simulate
from gitbench.attacker.tools.lbfgs import descend
from gitbench.clients.client import blaming
from gitbench.clients.defense import Expectation
from gitbench.clients.update import Update
from gitbench.core.progress import Progress

Tensors = dict[str, torch.Tensor]

_COMPONENTS = 512
_PIXELS = 4096  # of an image whose covariance is still decomposed
_POINTS = 64  # public images at which the gradient's Jacobian is taken, shared among the labels
_LABELS = 32  # with more classes, all labels share one information matrix
_STEP = 0.02  # of a central difference, in standard deviations of a component
_MODEL_ERROR = 0.01  # relative error granted to the solved weights
_DAMPING = 5.0  # of the information, which is that of public images and not the victim's own
_ROWS = 64  # images at once: more of them do not fit into the cache


class Polish:
    """Maximum a posteriori estimate under a Gaussian prior of public images, by preconditioned L-BFGS.

    It minimises ``Σ_l |G_l(x) - Ĝ_l|² / (2 σ_l²) + |c|² / 2`` over the coordinates ``c`` of ``x`` in the principal
    components of public images, in units of their deviations. ``G(x)`` is what the solved weights give,
    sent through the defense's deterministic part. The preconditioner is the average Fisher information
    of public images of the victim's label. A step that makes it worse is not taken.

    Args:
        chain: the model's layers.
        weights: from :func:`gitbench.attacker.attacks.git.weights.solve_weights`.
        tensors: what :func:`fit_polish` learned.
        expectation: what the defense makes of gradients on average.
    """

    def __init__(
        self, chain: Chain, weights: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor], expectation: Expectation
    ) -> None:
        self.chain = chain
        self.tensors = tensors
        self._expectation = expectation
        self._weights = weights
        self._deviation = {name.removeprefix("deviation."): tensor for name, tensor in tensors.items() if name.startswith("deviation.")}

    def __call__(self, update: Mapping[str, torch.Tensor], start: torch.Tensor, labels: torch.Tensor, *, iterations: int) -> torch.Tensor:
        """Coordinates ``(N, K)`` of the images, in the images' own units, and the labels one-hot ``(N, classes)``.

        Args:
            update: ``{name: (N, *shape)}`` as it was sent.
            start: images ``(N, P)`` as the first layer sees them.
            labels: ``(N,)``.
            iterations: each one gradient of the objective.
        """
        mean, components, deviation = (self.tensors[name] for name in ("mean", "components", "deviations"))
        found = []
        for rows in torch.arange(len(start), device=start.device).split(_ROWS):
            part = {name: tensor[rows] for name, tensor in update.items()}
            centred = start[rows] - mean
            coordinates = centred @ components / deviation
            beyond = mean + centred - (coordinates * deviation) @ components.T
            found.append(self._minimised(coordinates, beyond, part, labels[rows], iterations) * deviation)
        classes = self.chain.layers[-1].output_shape[0]
        return torch.cat([torch.cat(found), functional.one_hot(labels, classes).to(start.dtype)], dim=1)

    def _minimised(
        self, start: torch.Tensor, beyond: torch.Tensor, update: Mapping[str, torch.Tensor], labels: torch.Tensor, iterations: int
    ) -> torch.Tensor:
        observed = Update(dict(update))
        aim = self._flat(observed)

        def objective(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with torch.enable_grad():
                inputs = (beyond + (points * self.tensors["deviations"]) @ self.tensors["components"].T).detach().requires_grad_()
                values = (self._sent(inputs, labels, observed) - aim).square().sum(1) / 2
                (slope,) = torch.autograd.grad(values.sum(), inputs)
            gradient = slope @ self.tensors["components"] * self.tensors["deviations"] + points
            return values.detach() + points.square().sum(1) / 2, gradient

        def precondition(vectors: torch.Tensor) -> torch.Tensor:
            return self._precondition(vectors, labels)

        return descend(start, objective, precondition, iterations)

    def _precondition(self, vectors: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        information, directions = self.tensors["information"], self.tensors["directions"]
        group = labels if len(information) > 1 else torch.zeros_like(labels)
        found = torch.empty_like(vectors)
        for label in group.unique():
            rows = group == label
            basis = directions[label]
            found[rows] = (vectors[rows] @ basis) / (1 + _DAMPING * information[label]) @ basis.T
        return found

    def _sent(self, inputs: torch.Tensor, labels: torch.Tensor, observed: Update | None) -> torch.Tensor:
        """What the defense sends on average for these inputs, in deviations of its noise: ``(N, D)``."""
        tensors = simulate(self.chain, self._weights, inputs.reshape(-1, *self.chain.layers[0].input_shape), labels)
        each = {name: tensor[:, None] for name, tensor in tensors.items()} if self._expectation.defense.needs_per_example else None
        raw = Update(tensors, each)
        with blaming(self._expectation.defense):
            sent = self._expectation(raw, observed=observed or raw.detach())
        return self._flat(sent)

    def _flat(self, update: Update) -> torch.Tensor:
        return torch.cat([update.tensors[name].flatten(1) / deviation for name, deviation in self._deviation.items()], dim=1)


def fit_polish(
    chain: Chain,
    weights: Weights,
    variance: Mapping[str, float],
    expectation: Expectation,
    *,
    raw: Mapping[str, torch.Tensor],
    inputs: torch.Tensor,
    labels: torch.Tensor,
    progress: Progress,
) -> Polish | None:
    """With a prior and the Fisher information of public images; None where the solved weights do not give the whole gradient.

    Args:
        chain: the model's layers.
        weights: from :func:`gitbench.attacker.attacks.git.weights.solve_weights`.
        variance: of the defense's randomness in each tensor.
        expectation: what the defense makes of gradients on average.
        raw: undefended gradients of some public examples.
        inputs: ``(N, C, H, W)`` as the first layer sees them.
        labels: ``(N,)``.
        progress: told what is going on.
    """
    pixels = inputs[0].numel()
    if any(f"{layer.name}.weight" not in weights for layer in chain.layers) or pixels > _PIXELS:
        return None
    flat = inputs.flatten(1)
    mean = flat.mean(0)
    spread, components = torch.linalg.eigh(torch.cov(flat.T).double())
    spread, components = spread[-_COMPONENTS:].float().clamp_min(1e-8), components[:, -_COMPONENTS:].float()
    tensors: Tensors = {"mean": mean, "components": components, "deviations": spread.sqrt()}
    for name, tensor in raw.items():
        doubt = variance[name] + _MODEL_ERROR**2 * float(tensor.square().mean())
        tensors[f"deviation.{name}"] = torch.tensor(doubt, device=flat.device).sqrt().clamp_min(1e-12)
    polish = Polish(chain, weights, tensors, expectation)
    classes = chain.layers[-1].output_shape[0]
    groups = [(labels == label).nonzero().flatten() for label in range(classes)] if classes <= _LABELS else [torch.arange(len(labels))]
    found = []
    for done, rows in enumerate(groups):
        chosen = rows[: max(1, _POINTS // len(groups))]
        found.append(_information(polish, tensors, flat[chosen], labels[chosen]))
        progress("git: information of the gradients", done + 1, len(groups))
    values, directions = torch.linalg.eigh(torch.stack(found))
    return Polish(chain, weights, {**tensors, "information": values.clamp_min(0), "directions": directions}, expectation)


def _information(polish: Polish, tensors: Tensors, points: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``JᵀJ`` in units of the prior and the noise, averaged over points: ``(K, K)``."""
    sides = _STEP * tensors["components"].T * tensors["deviations"][:, None]
    total = sides.new_zeros(len(sides), len(sides))
    for point, label in zip(points, labels, strict=True):
        columns = []
        for part in sides.split(_ROWS):
            same = label.expand(len(part))
            columns.append(polish._sent(point + part, same, None) - polish._sent(point - part, same, None))
        jacobian = torch.cat(columns) / (2 * _STEP)
        total += jacobian @ jacobian.T
    return total / max(1, len(points))
