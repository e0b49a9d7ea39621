"""Soteria: the features that tell most of the image are left out of one layer's gradient."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.defense import Defense
from gitbench.clients.differentiation import slope_norms
from gitbench.clients.largest import largest
from gitbench.clients.model import last_linear
from gitbench.clients.update import Batch, Update
from gitbench.core.errors import DefenseError

_OFFSET = 0.1  # the authors' own, beside the feature
_CHUNK = 64  # images whose activations are held at once


class Soteria(Defense):
    """Leaves features out of the gradient of one fully connected layer's weight (Sun et al., CVPR 2021, arXiv 2012.06043).

    Zeroed are the columns of the features ``r_i`` that the layer reads for which ``|sum over the batch of ||dr_i/dx|| / (r_i + 0.1)|`` is
    smallest. The criterion is that of the authors' code for their experiments with Geiping's attack (``reconstruct_image.py``), which sums
    over the batch and takes the absolute value after that; their notebook for DLG leaves the 0.1 out, and others put 1e-10. All
    other tensors are sent as they are, the layer's bias too. The authors zero what is below a percentile of the scores; here as many
    columns are zeroed as ``rate`` says, which is the same but for rounding and ties.

    It takes a backward pass for each feature: 0.07 s of one core for an image on ``lenet`` (768 features), 0.8 s on ``resnet`` (1,024).

    What an attacker knows: the columns that are zeroed are seen in what is sent, and :meth:`expected` leaves them out of the match.
    Known breaks: an attacker who leaves the layer out of the match altogether sees an undefended gradient of all others (Balunović et
    al., ICLR 2022, arXiv 2111.04706).

    Args:
        rate: share of the features whose columns are zeroed, in [0, 1]. The authors give it in percent.
        layer: name of the :class:`torch.nn.Linear` that is defended; None is the last one, the classifier.
    """

    name = "soteria"
    modalities = ("image",)
    needs_batch = True

    def __init__(self, *, rate: float, layer: str | None = None) -> None:
        if not 0 <= rate <= 1:
            raise ValueError(f"expected rate in [0, 1], got {rate}")
        if layer is not None and not isinstance(layer, str):
            raise ValueError(f"expected layer to be the name of a linear layer or None, got {layer!r}")
        self.rate = rate
        self.layer = layer

    def protect(self, update: Update, *, generator: torch.Generator) -> Update:
        batch = update.batch
        if batch is None:
            raise DefenseError(f"{self!r} needs the client's model and images, and got an update without its batch.")
        name, layer = self._defended(batch.model)
        weight = f"{name}.weight"
        if weight not in update.tensors:
            raise DefenseError(f"The update holds no gradient of {weight!r}, which {self!r} defends: it is frozen. Choose another layer=.")
        scores = self.scores(batch)
        mask = 1 - largest(-scores, round(self.rate * layer.in_features))
        return update.map(lambda name, tensor: tensor * mask[:, None] if name == weight else tensor)

    def expected(self, update: Update, *, observed: Update) -> Update:
        # Which columns were zeroed is visible in what was sent.
        weight = None if update.batch is None else f"{self._defended(update.batch.model)[0]}.weight"

        def masked(name: str, tensor: torch.Tensor) -> torch.Tensor:
            if tensor.ndim != 3 or name != (weight or name):
                return tensor
            return tensor * (observed.tensors[name] != 0).any(1, keepdim=True)

        return update.map(masked)

    def scores(self, batch: Batch) -> torch.Tensor:
        """Of each feature, ``(V, features)``: the smallest are left out."""
        victims, size = batch.inputs.shape[:2]
        # In train mode examples of a batch may depend on each other, and those of different victims must not.
        groups = [*batch.inputs] if batch.model.training else batch.inputs.flatten(0, 1).split(_CHUNK)
        parts = [self._ratios(batch.model, images) for images in groups]
        return torch.cat(parts).reshape(victims, size, -1).sum(1).abs()

    def _ratios(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """``||dr_i/dx|| / (r_i + 0.1)`` of images ``(N, C, H, W)``: ``(N, features)``."""
        _, layer = self._defended(model)
        seen: list[torch.Tensor] = []
        handle = layer.register_forward_pre_hook(lambda _module, arguments: seen.append(arguments[0]))
        try:
            with torch.enable_grad():
                # Channels last: slopes of convolutions are nearly all of the work, and take a sixth to more than a third less.
                images = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
                model(images)
        finally:
            handle.remove()
        if len(seen) != 1 or seen[0].ndim != 2:
            found = f"{len(seen)} times" if len(seen) != 1 else f"features of shape {tuple(seen[0].shape)}"
            raise DefenseError(f"{self!r} defends a layer that reads one vector of features for each image, once. It reads {found}.")
        features = seen[0]
        # Images do not depend on each other, or belong to one victim.
        return (slope_norms(features, images) / (features.detach() + _OFFSET)).nan_to_num(0.0)

    def _defended(self, model: nn.Module) -> tuple[str, nn.Linear]:
        if self.layer is None:
            return last_linear(model)
        layer = dict(model.named_modules()).get(self.layer)
        if not isinstance(layer, nn.Linear):
            linear = ", ".join(name for name, module in model.named_modules() if isinstance(module, nn.Linear))
            kind = "no module" if layer is None else type(layer).__name__
            raise DefenseError(f"Expected layer={self.layer!r} of {self!r} to name a torch.nn.Linear, found {kind}. There are: {linear}.")
        return self.layer, layer
