"""Where the coarse chain starts: a closed-form estimate of the image.

It is a ridge regression from the inputs that the gradient shows:

- of the last layer, exact for one example (:func:`gitbench.attacker.tools.features.last_features`);
- of the layers whose delta it shows (:mod:`gitbench.attacker.attacks.git.coarse_inputs`), under one penalty;
- of the layers right before the last one: their delta is ``W^T delta`` of the last layer, and ``W`` follows from
  public pairs, whose gradients show both the last layer's input and its probabilities.

Where the update shows the image itself, three estimates under different penalties join the regression's. Each principal
component of the image is a weighted sum of theirs, so that of a noise-free update nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from gitbench.attacker.attacks.git.coarse_reader import Reader, Seen
from gitbench.attacker.tools.regression import LinearMap, fit_linear

_CLIP = 8.0  # standard deviations of a layer's input
_FOLDS = 4
_TINY = 1e-20


@dataclass(frozen=True)
class Start:
    """The closed-form estimate of the image.

    Args:
        ridge: from the inputs that the gradient shows to pixels.
        variant: which inputs, of :func:`_variants`.
        columns: mean and scale ``(2, D)`` of the inputs beyond the last layer's.
        mean: ``(P,)`` of public images.
        basis: their principal components ``(P, K)``.
        weights: ``(K, 1 + L + 1)`` of the ridge regression, of each direct estimate and of one, by component.
        rest: the same ``(1 + L,)`` for what the components leave out.
        inverse: of the activation that the last layer reads.
    """

    ridge: LinearMap
    variant: int
    columns: torch.Tensor
    mean: torch.Tensor
    basis: torch.Tensor
    weights: torch.Tensor
    rest: torch.Tensor
    inverse: Callable[[torch.Tensor], torch.Tensor] | None

    @property
    def components(self) -> int:
        """How many principal components there are."""
        return self.basis.shape[1]

    @classmethod
    def fit(cls, reader: Reader, seen: Seen, images: torch.Tensor, *, held: int, components: int, generator: torch.Generator) -> Start:
        """From what was read off all public batches, and their images ``(N, B, P)``; the last ``held`` rows are held out."""
        batch = images.shape[1]
        pixels = images.flatten(0, 1)
        out = torch.arange(len(pixels), device=pixels.device) >= len(pixels) - held * batch
        train = seen.inputs[: len(seen.inputs) - held]
        columns = train.new_zeros(2, train.shape[1])
        if train.shape[1]:
            deviation = train.std(0)
            # Not scaled to unit variance: entries that hardly vary are mostly noise.
            columns = torch.stack([train.mean(0), deviation + deviation.mean() + _TINY])
        found = _variants(seen, columns, reader.inverse)
        fitted = [fit_linear(inputs, pixels, held=out, bounds=(0, 1)) for inputs in found]
        # Cut to [0, 1] as in use, so that a few wild pixels do not decide.
        errors = [float((fit(inputs[out]).clamp(0, 1) - pixels[out]).square().mean()) for fit, inputs in zip(fitted, found, strict=True)]
        variant = errors.index(min(errors))
        mean = pixels[~out].mean(0)
        basis = _principal(pixels[~out] - mean, components, generator)
        levels = seen.direct.shape[1]
        first = pixels.new_zeros(1 + levels)
        first[0] = 1
        start = cls(
            ridge=fitted[variant],
            variant=variant,
            columns=columns,
            mean=mean,
            basis=basis,
            weights=functional.pad(first, (0, 1)).repeat(basis.shape[1], 1),
            rest=first,
            inverse=reader.inverse,
        )
        return start._weighed(seen.part(slice(len(images) - held, None)), pixels[out]) if levels else start

    @classmethod
    def stored(cls, state: Mapping[str, torch.Tensor], reader: Reader) -> Start:
        """The inverse of :meth:`tensors`."""
        ridge = LinearMap.stored(state, "start.ridge")
        names = ("columns", "mean", "basis", "weights", "rest")
        columns, mean, basis, weights, rest = (state[f"start.{name}"] for name in names)
        return cls(ridge, int(state["start.variant"]), columns, mean, basis, weights, rest, reader.inverse)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was fitted, to store."""
        names = ("columns", "mean", "basis", "weights", "rest")
        own = {f"start.{name}": getattr(self, name) for name in names}
        return {**self.ridge.tensors("start.ridge"), **own, "start.variant": torch.tensor(self.variant)}

    def __call__(self, seen: Seen) -> torch.Tensor:
        """Images ``(V * B, P)``."""
        parts, inside = self._parts(seen)
        first = parts[:, 0] - self.mean
        if parts.shape[1] == 1:
            return first + self.mean
        changed = (inside * self.weights[:, :-1].T).sum(1) + self.weights[:, -1]
        outside = torch.einsum("nlp,l->np", parts - self.mean, self.rest) - torch.einsum("nlk,l->nk", inside, self.rest) @ self.basis.T
        return changed @ self.basis.T + outside + self.mean

    def inputs(self, seen: Seen) -> torch.Tensor:
        """What the ridge regression reads, ``(V * B, F)``."""
        return _variants(seen, self.columns, self.inverse)[self.variant]

    def coefficients(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, P)`` to ``(N, K)``."""
        return (images - self.mean) @ self.basis

    def _parts(self, seen: Seen) -> tuple[torch.Tensor, torch.Tensor]:
        """The ridge regression's image and the direct ones ``(V * B, 1 + L, P)``, and their components."""
        first = self.ridge(self.inputs(seen))
        batch = seen.labels.shape[1]
        others = seen.direct.repeat_interleave(batch, dim=0)
        parts = torch.cat([first[:, None], others], dim=1)
        return parts, (parts - self.mean) @ self.basis

    def _weighed(self, seen: Seen, pixels: torch.Tensor) -> Start:
        """With weights fitted by least squares on rows that the ridge regression was not fitted on, where it looks too good."""
        parts, inside = self._parts(seen)
        wanted = self.coefficients(pixels)
        ones = torch.ones_like(inside[:, :1])
        weights = _regressed(torch.cat([inside, ones], dim=1).permute(2, 0, 1), wanted.T)
        rest = (parts - self.mean) - inside @ self.basis.T
        left = (pixels - self.mean) - wanted @ self.basis.T
        return replace(self, weights=weights, rest=_regressed(rest.transpose(1, 2).flatten(0, 1)[None], left.flatten()[None])[0])


class Beginnings:
    """Where the chain starts on public batches: from a map that was not fitted on them, as it does on victims.

    A regression fits its own rows too well, and a chain that starts from it there learns to add too little. So each
    fold of the rows starts from a map fitted on the other folds. Direct estimates are not fitted, and are used as they are.

    Args:
        start: for rows beyond the folds.
        maps: from the same inputs to components, one for each fold.
        rows: in all folds together.
    """

    def __init__(self, start: Start, maps: Sequence[LinearMap], rows: int) -> None:
        self._start = start
        self._maps = maps
        self._rows = rows

    @classmethod
    def fit(cls, start: Start, seen: Seen, wanted: torch.Tensor) -> Beginnings:
        """From what was read off the training rows, and the components ``(N, B, K)`` of their images."""
        rows, batch = wanted.shape[:2]
        if start.rest.shape[0] > 1 or rows < 8 * _FOLDS:
            return cls(start, (), 0)
        inputs, targets = start.inputs(seen), wanted.flatten(0, 1)
        fold = torch.arange(rows, device=wanted.device).repeat_interleave(batch) * _FOLDS // rows
        return cls(start, [fit_linear(inputs, targets, held=fold == index) for index in range(_FOLDS)], rows)

    def __call__(self, seen: Seen, rows: torch.Tensor) -> torch.Tensor:
        """Components ``(n, B, K)`` for what was read off the public batches ``rows (n,)``."""
        pieces = []
        for chunk in torch.arange(len(rows), device=rows.device).split(512):
            part = seen.part(chunk)
            found = self._start.coefficients(self._start(part)).reshape(*part.labels.shape, -1)
            inputs = self._start.inputs(part)
            for index, fitted in enumerate(self._maps):
                inside = (rows[chunk] < self._rows) & (rows[chunk] * _FOLDS // self._rows == index)
                found = torch.where(inside[:, None, None], fitted(inputs).reshape(found.shape), found)
            pieces.append(found)
        return torch.cat(pieces)


def _variants(seen: Seen, columns: torch.Tensor, inverse: Callable[[torch.Tensor], torch.Tensor] | None) -> list[torch.Tensor]:
    """Alternative inputs of the ridge regression ``(V * B, F)``: with and without an inverse, and further layers' inputs."""
    last = seen.last.flatten(0, 1)
    found = [last] if inverse is None else [last, inverse(last)]
    if seen.inputs.shape[1]:
        # At the scale of the last layer's inputs, so that one penalty fits both. Outliers of a noisy solution are cut.
        further = ((seen.inputs - columns[0]) / columns[1]).clamp(-_CLIP, _CLIP).repeat_interleave(seen.labels.shape[1], dim=0)
        found += [torch.cat([inputs, further * 0.1], dim=1) for inputs in found]
    return found


def _principal(centred: torch.Tensor, components: int, generator: torch.Generator) -> torch.Tensor:
    """Principal components ``(P, K)`` by subspace iteration on at most 4,096 rows ``(N, P)``."""
    rows = centred[:4096]
    count = min(components, len(rows), rows.shape[1])
    wide = min(count + 16, len(rows), rows.shape[1])
    basis = torch.randn(rows.shape[1], wide, generator=generator).to(rows.device)
    for _ in range(3):
        basis, _ = torch.linalg.qr(rows.T @ (rows @ basis))
    _, vectors = torch.linalg.eigh(basis.T @ (rows.T @ (rows @ basis)))
    found: torch.Tensor = basis @ vectors.flip(1)[:, :count]
    return found.contiguous()


def _regressed(inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Least squares ``(K, M)`` from ``(K, N, M)`` to ``(K, N)``, in float64 and with next to no penalty."""
    inputs, targets = inputs.double(), targets.double()
    scale = inputs.square().mean(1).sqrt().clamp_min(_TINY)
    inputs = inputs / scale[:, None]
    gram = inputs.transpose(1, 2) @ inputs / inputs.shape[1]
    cross = (inputs.transpose(1, 2) @ targets[..., None])[..., 0] / inputs.shape[1]
    eye = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    found: torch.Tensor = torch.linalg.solve(gram + 1e-8 * eye, cross)
    return (found / scale).float()
