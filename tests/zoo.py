"""Tiny models of the kinds that people have, for images of 8x8 pixels. One file, so that a SPEC can name each."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torchvision import ops
from torchvision.models import GoogLeNetOutputs


class Patches(nn.Module):
    """Four tokens of width 8, some layer on them, their mean, one linear layer."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, 8, 4, stride=4)
        self.head = nn.Linear(8, classes)

    def mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.mixed(self.project(inputs).flatten(2).transpose(1, 2)).mean(1))


class MultiheadAttention(Patches):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]


class TransformerEncoder(Patches):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

    def mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.encoder(tokens)


class Recurrent(Patches):
    """The order of registration is not that of computation: the classifier is not the last linear layer."""

    def __init__(self, classes: int, kind: type[nn.RNNBase]) -> None:
        super().__init__(classes)
        self.recurrent = kind(8, 8, batch_first=True)
        self.before = nn.Linear(8, 8)

    def mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.recurrent(torch.tanh(self.before(tokens)))[0]


class PositionEmbedding(Patches):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.position = nn.Embedding(4, 8)

    def mixed(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh(tokens + self.position(torch.arange(4, device=tokens.device)))


class PixelEmbedding(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 6)
        self.head = nn.Linear(6, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding((inputs.flatten(1) * 7).long()).mean(1))


class Tied(nn.Module):
    """Two layers of one weight, as an encoder and its decoder, or an embedding and its output layer, have it."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(192, 12)
        self.second, self.third = nn.Linear(12, 12), nn.Linear(12, 12)
        self.third.weight = self.second.weight
        self.head = nn.Linear(12, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.sigmoid(self.first(inputs.flatten(1)))
        return self.head(torch.sigmoid(self.third(torch.sigmoid(self.second(hidden)))))


class TiedHead(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(192, 12), nn.Linear(12, classes), nn.Linear(12, classes)
        self.head.weight = self.second.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.first(inputs.flatten(1)))
        return self.head(hidden + self.second(hidden) @ self.second.weight)


class Branching(nn.Module):
    """Looks at a value, which is what a stack of victims has many of."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(192, 12), nn.Linear(12, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = torch.tanh(self.hidden(inputs.flatten(1)))
        return self.head(found * 2 if float(inputs.detach().mean()) > 0.5 else found)


class BranchingNorm(Branching):
    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        self.norm = nn.BatchNorm1d(12)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        found = self.norm(self.hidden(inputs.flatten(1)))
        return self.head(found * 2 if float(inputs.detach().mean()) > 0.5 else found)


class Prototypes(nn.Module):
    """Its logits are distances to learned points: no layer has an output for each class."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.hidden, self.points = nn.Linear(192, 12), nn.Parameter(torch.randn(classes, 12))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return -(torch.tanh(self.hidden(inputs.flatten(1)))[:, None] - self.points).square().sum(2)


class Deformable(nn.Module):
    """A convolution of torchvision that can be differentiated once only."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.offsets = nn.Conv2d(3, 18, 3, padding=1)
        self.deformable = ops.DeformConv2d(3, 4, 3, padding=1)
        self.head = nn.Linear(256, classes)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.deformable(inputs, self.offsets(inputs))).flatten(1))


class Returning(nn.Module):
    """A network whose output is wrapped by a function."""

    def __init__(self, classes: int, wrap) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(192, 12), nn.Linear(12, classes)
        self.wrap = wrap

    def forward(self, inputs: torch.Tensor):
        hidden = torch.sigmoid(self.hidden(inputs.flatten(1)))
        return self.wrap(hidden, self.head(hidden))


class AuxiliaryOutput(Returning):
    """Like torchvision's GoogLeNet: a named tuple in train mode, a tensor in eval mode."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, None)
        self.auxiliary = nn.Linear(12, classes)

    def forward(self, inputs: torch.Tensor):
        hidden = torch.sigmoid(self.hidden(inputs.flatten(1)))
        logits = self.head(hidden)
        return GoogLeNetOutputs(logits, self.auxiliary(hidden), None) if self.training else logits


def convolutions(*layers: nn.Module, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, classes))


def dense(layer, classes: int, head=None) -> nn.Module:
    return nn.Sequential(nn.Flatten(), layer(nn.Linear(192, 12)), nn.Sigmoid(), (head or (lambda found: found))(nn.Linear(12, classes)))


KINDS = {
    "tied": "two layers share a weight",
    "tied_head": "the last layer shares its weight",
    "multihead_attention": "`nn.MultiheadAttention`",
    "transformer_encoder": "`nn.TransformerEncoder`",
    "lstm": "`nn.LSTM`",
    "gru": "`nn.GRU`",
    "position_embedding": "`nn.Embedding` of positions",
    "pixel_embedding": "`nn.Embedding` of rounded pixels",
    "spectral_norm": "`parametrizations.spectral_norm`",
    "weight_norm": "`parametrizations.weight_norm`, also of the last layer",
    "group_norm": "`nn.GroupNorm`",
    "layer_norm": "`nn.LayerNorm`",
    "batch_norm": "`nn.BatchNorm2d`",
    "batch_norm(mode='train')": "`nn.BatchNorm2d` in train mode",
    "dropout": "`nn.Dropout`",
    "dropout(mode='train')": "`nn.Dropout` in train mode",
    "grouped": "grouped convolutions",
    "hardsigmoid": "`nn.Hardsigmoid`",
    "no_linear": "no `nn.Linear`: the last layer is a convolution",
    "prototypes": "logits are distances to learned points",
    "branching": "branches on a value",
    "deformable": "`torchvision.ops.DeformConv2d`",
    "a_tuple": "returns a tuple",
    "a_dict": "returns a dict",
    "probabilities": "returns probabilities",
    "auxiliary(mode='train')": "auxiliary outputs, in train mode",
    "one_logit": "one logit, of two classes",
}
"""SPEC of a model in this file, and what it stands for."""


def tied(input_shape, classes):
    return Tied(classes)


def repeated(input_shape, classes):
    layer = nn.Linear(12, 12)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), layer, nn.Sigmoid(), layer, nn.Linear(12, classes))


def tied_head(input_shape, classes):
    return TiedHead(classes)


def multihead_attention(input_shape, classes):
    return MultiheadAttention(classes)


def transformer_encoder(input_shape, classes):
    return TransformerEncoder(classes)


def lstm(input_shape, classes):
    return Recurrent(classes, nn.LSTM)


def gru(input_shape, classes):
    return Recurrent(classes, nn.GRU)


def position_embedding(input_shape, classes):
    return PositionEmbedding(classes)


def pixel_embedding(input_shape, classes):
    return PixelEmbedding(classes)


def spectral_norm(input_shape, classes):
    return dense(parametrizations.spectral_norm, classes)


def weight_norm(input_shape, classes):
    return dense(parametrizations.weight_norm, classes, parametrizations.weight_norm)


def group_norm(input_shape, classes):
    return convolutions(nn.GroupNorm(2, 8), nn.ReLU(), classes=classes)


def layer_norm(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, classes))


def batch_norm(input_shape, classes):
    return convolutions(nn.BatchNorm2d(8), nn.ReLU(), classes=classes)


def dropout(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, classes))


def grouped(input_shape, classes):
    return convolutions(nn.ReLU6(), nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.ReLU6(), nn.Conv2d(8, 8, 1), classes=classes)


def hardsigmoid(input_shape, classes):
    return convolutions(nn.Hardsigmoid(inplace=True), nn.Conv2d(8, 8, 1), nn.Hardswish(), classes=classes)


def no_linear(input_shape, classes):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Sigmoid(), nn.Conv2d(8, classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def prototypes(input_shape, classes):
    return Prototypes(classes)


def branching(input_shape, classes):
    return Branching(classes)


def deformable(input_shape, classes):
    return Deformable(classes)


def a_tuple(input_shape, classes):
    return Returning(classes, lambda hidden, logits: (hidden, logits))


def a_dict(input_shape, classes):
    return Returning(classes, lambda hidden, logits: {"features": hidden, "logits": logits, "other": logits})


def probabilities(input_shape, classes):
    return Returning(classes, lambda hidden, logits: functional.softmax(logits, dim=1))


def auxiliary(input_shape, classes):
    return AuxiliaryOutput(classes)


def one_logit(input_shape, classes):
    return Returning(1, lambda hidden, logits: logits[:, 0])


def one_probability(input_shape, classes):
    return Returning(1, lambda hidden, logits: logits.sigmoid())


def two_candidates(input_shape, classes):
    return Returning(classes, lambda hidden, logits: (logits, functional.log_softmax(logits, dim=1)))


def positions(input_shape, classes):
    return nn.Conv2d(3, classes, 1)


def nothing(input_shape, classes):
    return Returning(classes, lambda hidden, logits: None)


def too_many(input_shape, classes):
    return Returning(classes + 1, lambda hidden, logits: logits)


def log_probabilities(input_shape, classes):
    return Returning(classes, lambda hidden, logits: functional.log_softmax(logits, dim=1))


def sigmoids(input_shape, classes):
    return Returning(classes, lambda hidden, logits: logits.sigmoid())


def one_logit_chain(input_shape, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Sigmoid(), nn.Linear(12, 1))


def old_weight_norm(input_shape, classes):
    return dense(nn.utils.weight_norm, classes)


def branching_norm(input_shape, classes):
    return BranchingNorm(classes)
