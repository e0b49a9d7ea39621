"""Labels read off the update of the last linear layer."""

from __future__ import annotations

import torch

from gitbench.model import last_linear
from gitbench.observation import Observation


def class_signal(observation: Observation) -> torch.Tensor:
    """One number per class, ``(V, classes)``, most negative for the classes in the batch.

    The gradient of the cross-entropy by a logit is softmax minus one-hot: negative for the true class
    alone. It is the bias's gradient; without a bias, the sum of the weight's row, which has its sign
    when the features are not negative (iDLG, arXiv 2001.02610).
    """
    name, _ = last_linear(observation.architecture)
    tensors = observation.update.tensors
    if f"{name}.bias" in tensors:
        return tensors[f"{name}.bias"]
    return tensors[f"{name}.weight"].sum(dim=2)


def infer_labels(observation: Observation) -> torch.Tensor:
    """Labels ``(V, B)``, sorted: iDLG for one example, its greedy extension for batches.

    The signal is ``scale * (mean probability - count / B)``: the most negative class is taken, raised
    by the share ``scale / B`` of one example, and the next is taken. The scale (one, unless a defense
    changed it) follows from the sum of the negative entries, probabilities taken as equal.
    """
    signal = class_signal(observation).clone()
    batch, classes = observation.batch_size, signal.shape[1]
    if batch == 1:
        return signal.argmin(dim=1, keepdim=True)
    present = (signal < 0).sum(dim=1)
    missing = (1 - present / classes).clamp_min(1 / classes)
    step = -signal.clamp_max(0).sum(dim=1) / missing / batch
    rows = torch.arange(len(signal), device=signal.device)
    chosen = []
    for _ in range(batch):
        label = signal.argmin(dim=1)
        signal[rows, label] += step
        chosen.append(label)
    return torch.stack(chosen, dim=1).sort(dim=1).values
