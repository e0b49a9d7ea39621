"""What a defended update is still good for: a defense that leaves nothing to learn from is no success."""

from __future__ import annotations

import math

import torch
from torch import nn

from gitbench.clients.called import called_with
from gitbench.clients.client import gradients
from gitbench.clients.loss import mean_loss
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Update
from gitbench.judge.statistics import interval
from gitbench.store.result import Measure, Utility

_LOSS_VICTIMS = 64
_LENGTHS = tuple(2.0**power for power in range(-8, 3))  # of a step, in units of the raw gradient's norm
_ENTRIES = 2**26  # of the raw gradients that are held at once


def measure_utility(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, update: Update, *, random: bool) -> Utility:
    """Compare what was sent with the raw gradients of the same batches.

    Args:
        model: that the server and the clients share.
        inputs: the private batches ``(V, B, C, H, W)``.
        labels: ``(V, B)``.
        update: what the defense made of them.
        random: whether the defense draws random numbers.
    """
    names = list(update.tensors)
    size = sum(tensor[0].numel() for tensor in update.tensors.values())
    dots, raws, sents, same = [], [], [], []
    raw_sum: dict[str, torch.Tensor] = {}
    for rows in torch.arange(len(inputs)).split(max(1, _ENTRIES // size)):
        raw = gradients(model, inputs[rows], labels[rows]).tensors
        pairs = [(raw[name].flatten(1).detach(), update.tensors[name][rows].flatten(1)) for name in names]
        dots.append(sum((mine * theirs).sum(1) for mine, theirs in pairs))
        raws.append(sum(mine.square().sum(1) for mine, _ in pairs))
        sents.append(sum(theirs.square().sum(1) for _, theirs in pairs))
        same.append(torch.stack([(mine == theirs).all(1) for mine, theirs in pairs]).all(0))
        for name in names:
            raw_sum[name] = raw_sum.get(name, torch.zeros(())).to(raw[name]) + raw[name].detach().sum(0)
    dot, raw_square, sent_square = (torch.cat([torch.as_tensor(part) for part in parts]).double() for parts in (dots, raws, sents))
    mean_raw = {name: tensor / len(inputs) for name, tensor in raw_sum.items()}
    mean_sent = {name: tensor.mean(0) for name, tensor in update.tensors.items()}
    told = raw_square > 0
    shares = (dot / raw_square.clamp_min(1e-300)).tolist()
    alignment = [share if known else None for share, known in zip(shares, told.tolist(), strict=True)]
    bounds = interval([alignment])
    raw_norm, sent_norm = _norm(mean_raw), _norm(mean_sent)
    product = float(sum((mean_raw[name] * mean_sent[name]).sum() for name in names))
    return Utility(
        alignment=Measure(mean=bounds.mean, low=bounds.low, high=bounds.high, values=tuple(alignment)),
        cosine=product / (raw_norm * sent_norm) if raw_norm > 0 and sent_norm > 0 else None,
        descent=_descent(model, inputs[:_LOSS_VICTIMS], labels[:_LOSS_VICTIMS], mean_raw, mean_sent),
        norm_ratio=float((sent_square[told] / raw_square[told]).sqrt().median()) if bool(told.any()) else None,
        equal=float(torch.cat(same).double().mean()),
        random=random,
    )


def _norm(tensors: dict[str, torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors.values()))


def _descent(
    model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, raw: dict[str, torch.Tensor], sent: dict[str, torch.Tensor]
) -> float | None:
    """The largest fall of the loss along the one direction over that along the other; None where neither is to be had."""
    parameters = {name: parameter.detach() for name, parameter in trained_parameters(model).items()}
    buffers = dict(model.named_buffers())
    images, targets = inputs.flatten(0, 1), labels.flatten(0, 1)
    raw_norm, sent_norm = _norm(raw), _norm(sent)
    if raw_norm == 0:
        return None
    if sent_norm == 0:
        return 0.0

    def loss(direction: dict[str, torch.Tensor], length: float) -> float:
        moved = {name: parameter - length * direction[name] for name, parameter in parameters.items()}
        was = model.training
        model.eval()
        try:
            with torch.no_grad():
                return float(mean_loss(called_with(model, {**moved, **buffers}, images), targets))
        finally:
            model.train(was)

    start = loss(raw, 0.0)
    best = start - min(loss(raw, length) for length in _LENGTHS)
    found = start - min(loss(sent, length * raw_norm / sent_norm) for length in _LENGTHS)
    return found / best if best > 0 else None
