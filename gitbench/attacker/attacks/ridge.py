"""Ridge: the closed-form baseline that every learned attack must beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from gitbench.attacker.attack import Attack, State
from gitbench.attacker.learning import Checkpoint
from gitbench.attacker.observation import Observation
from gitbench.attacker.tools.features import last_features
from gitbench.attacker.tools.labels import infer_labels
from gitbench.clients.activation import inverse_before
from gitbench.clients.model import last_linear
from gitbench.core.progress import Progress


class Ridge(Attack):
    """The last linear layer's input in closed form, and a ridge regression from it to pixels.

    With the last layer's weight gradient ``W_k = b_k a`` and bias gradient ``b_k``, its input is
    ``a = sum_k b_k W_k / sum_k b_k²``, exact for one example. A ridge regression fitted on public pairs
    (passed through the defense) maps it to the image. The penalty is chosen on held-out public pairs.
    For a batch, the row of each example's class is read: ``W_y / b_y``. After a sigmoid or tanh the
    regression may start from the activation's input instead, which is closer to linear in the pixels;
    the held-out pairs decide that too.
    """

    name = "ridge"
    requires = frozenset({"architecture", "public"})
    uses = frozenset({"defense"})
    profiles = {"quick": {"limit": 2048}}

    Options = PublicOptions
    options: PublicOptions

    def fit(self, observation: Observation, *, generator: torch.Generator, progress: Progress, checkpoint: Checkpoint) -> State:
        public, batch = observation.public, observation.batch_size
        count = min(self.options.limit, len(public)) // batch * batch
        order = torch.randperm(len(public), generator=generator)[:count].reshape(-1, batch)
        # Sorted by class, because the inferred labels that order a victim's features are sorted.
        order = order.gather(1, public.labels.cpu()[order].argsort(dim=1, stable=True))
        features = []
        chunks = order.split(observation.chunk)
        for done, chunk in enumerate(chunks):
            update = observation.public_updates(chunk, generator=generator)
            features.append(last_features(observation, update, public.labels[chunk.to(public.labels.device)]))
            progress("ridge: public updates", done + 1, len(chunks))
        pixels = public.inputs[order.flatten().to(public.inputs.device)].flatten(1)
        found = torch.cat(features).flatten(0, 1).double()
        inverse = _inverse(observation)
        return fit_ridge([found] if inverse is None else [found, inverse(found)], pixels, holdout=self.options.holdout)

    def run(self, observation: Observation, state: State, *, generator: torch.Generator, progress: Progress) -> torch.Tensor:
        features = last_features(observation, observation.update, infer_labels(observation)).double()
        inverse = _inverse(observation)
        if inverse is not None and bool(state["map"]):
            features = inverse(features)
        pixels = (features - state["feature_mean"]) @ state["weight"] + state["pixel_mean"]
        shape = (*features.shape[:2], *observation.input_shape)
        return pixels.float().clamp(0, 1).reshape(shape)


def _inverse(observation: Observation) -> Callable[[torch.Tensor], torch.Tensor] | None:
    model = observation.architecture
    _, linear = last_linear(model)
    return inverse_before(model, linear) if linear.bias is not None else None


def fit_ridge(maps: Sequence[torch.Tensor], pixels: torch.Tensor, *, holdout: float) -> dict[str, torch.Tensor]:
    """Ridge regression in float64; the features and the penalty are chosen on the last ``holdout`` share.

    Args:
        maps: alternative features of the same images, each ``(N, F)``.
        pixels: ``(N, P)``.

    Returns:
        ``feature_mean (F,)``, ``pixel_mean (P,)`` and ``weight (F, P)``, refitted on all pairs, and the
        index of the chosen features, ``map``.
    """
    pixels = pixels.double()
    held = max(1, round(holdout * len(pixels)))
    train, test = slice(0, len(pixels) - held), slice(len(pixels) - held, None)
    errors: dict[tuple[int, float], float] = {}
    for index, features in enumerate(maps):
        solver = _Solver(features[train].double(), pixels[train])
        seen = solver.turned(features[test].double())
        for power in range(-10, 4):
            guess = solver(seen, 10.0**power)
            errors[index, 10.0**power] = float((guess.clamp(0, 1) - pixels[test]).square().mean())
    chosen, penalty = min(errors, key=lambda key: errors[key])
    final = _Solver(maps[chosen].double(), pixels)
    return {
        "feature_mean": final.feature_mean,
        "pixel_mean": final.pixel_mean,
        "weight": final.weight(penalty),
        "map": torch.tensor(chosen),
    }


class _Solver:
    """One eigendecomposition of the features' covariance, then any penalty at the price of a product."""

    def __init__(self, features: torch.Tensor, pixels: torch.Tensor) -> None:
        self.feature_mean, self.pixel_mean = features.mean(0), pixels.mean(0)
        centred = features - self.feature_mean
        self._values: torch.Tensor
        self._vectors: torch.Tensor
        self._values, self._vectors = torch.linalg.eigh(centred.T @ centred / len(features))
        self._cross: torch.Tensor = self._vectors.T @ (centred.T @ (pixels - self.pixel_mean) / len(features))
        self._scale = self._values.clamp_min(0).mean().clamp_min(1e-30)

    def turned(self, features: torch.Tensor) -> torch.Tensor:
        """Features along the eigenvectors, once for all penalties: :meth:`__call__` then needs no weight."""
        return (features - self.feature_mean) @ self._vectors

    def __call__(self, turned: torch.Tensor, penalty: float) -> torch.Tensor:
        """Pixels of :meth:`turned` features."""
        return turned @ self._shrunk(penalty) + self.pixel_mean

    def weight(self, penalty: float) -> torch.Tensor:
        """Weights for a penalty in units of the features' mean variance."""
        return self._vectors @ self._shrunk(penalty)

    def _shrunk(self, penalty: float) -> torch.Tensor:
        return self._cross / (self._values.clamp_min(0) + penalty * self._scale)[:, None]
