"""How a client makes its update, and what a server sees of it: the axis ``client`` of the matrix."""

from __future__ import annotations

import torch
from torch import nn

from gitbench.clients.update import Update
from gitbench.core.component import Component
from gitbench.identity.case import PLAIN_CLIENT
from gitbench.identity.loading import build_part, checked_spec


class Client(Component):
    """Base of all clients: a subclass defines :meth:`local_update`.

    Within gitbench updates are *in gradients*: divided by :attr:`unit` and averaged over :attr:`clients`, so that to
    first order each is the gradient of the mean loss of all images behind it. A defense protects what one client sends, in the
    client's own unit.
    """

    clients: int = 1
    """How many clients' updates are summed before the server sees them."""
    unit: float = 1.0
    """What one client sends, in gradients."""

    def local_update(
        self, model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, generator: torch.Generator, per_example: bool = False
    ) -> Update:
        """What each of a stack of clients computes before its defense, in gradients; differentiable in ``inputs``.

        Args:
            model: as the clients received it; left as it is.
            inputs: ``(N, B, C, H, W)``, of one client a row.
            labels: class indices ``(N, B)``, or probabilities ``(N, B, classes)``, which are differentiable too.
            generator: for what a client draws, the order of its images say.
            per_example: also keep every example's own gradient.
        """
        raise TypeError(f"The client {self!r} must define local_update(self, model, inputs, labels, *, generator, per_example).")

    @property
    def plain(self) -> bool:
        """Whether what a server sees is one client's update, in gradients."""
        return self.clients == 1 and self.unit == 1

    def images(self, batch_size: int) -> int:
        """How many images an update that the server sees depends on, ``batch_size`` of each client."""
        return self.clients * batch_size

    def rows(self, tensor: torch.Tensor) -> torch.Tensor:
        """One client a row ``(V * clients, B, ...)`` in place of all images of a victim ``(V, clients * B, ...)``."""
        return tensor if self.clients == 1 else tensor.unflatten(1, (self.clients, -1)).flatten(0, 1)

    def gathered(self, update: Update) -> Update:
        """The mean of a victim's clients, from one row a client. What each computed is kept in the place of examples."""
        if self.clients == 1:
            return update
        batch = None if update.batch is None else update.batch.map(lambda tensor: tensor.unflatten(0, (-1, self.clients)).flatten(1, 2))
        every = update.per_example or {name: tensor[:, None] for name, tensor in update.tensors.items()}
        every = {name: tensor.unflatten(0, (-1, self.clients)).flatten(1, 2) for name, tensor in every.items()}
        return Update({name: tensor.mean(1) for name, tensor in every.items()}, every, batch)

    def each(self, update: Update) -> Update:
        """What the defense of each client gets, one row a client, in the client's unit.

        Args:
            update: of ``V`` victims, in gradients. Where it does not tell its clients apart, all of them are taken as alike.
        """
        if self.plain:
            return update
        tensors = {name: tensor.repeat_interleave(self.clients, 0) for name, tensor in update.tensors.items()}
        every = update.per_example
        if every is not None:
            every = {name: self.rows(tensor) for name, tensor in every.items()}
            tensors = {name: tensor.mean(1) for name, tensor in every.items()}
        batch = None if update.batch is None else update.batch.map(self.rows)
        return Update(tensors, every, batch).map_all(lambda tensor: tensor * self.unit)

    def together(self, update: Update) -> Update:
        """The inverse of :meth:`each`, once each client is protected: the mean over the clients of a victim, in gradients."""
        if self.plain:
            return update
        return update.map(lambda _name, tensor: tensor.unflatten(0, (-1, self.clients)).mean(1) / self.unit)

    def sent(self, update: Update) -> Update:
        """What the server gets of an update in gradients: the sum over the clients, in their unit."""
        return update if self.plain else update.map(lambda _name, tensor: tensor * (self.unit * self.clients))

    def in_gradients(self, update: Update) -> Update:
        """The inverse of :meth:`sent`."""
        return update if self.plain else update.map(lambda _name, tensor: tensor / (self.unit * self.clients))


def load_client(client: str | Client | None) -> Client:
    """Build a client from its SPEC; an instance is returned as it is, and None is one that sends its gradient.

    Raises:
        SpecError: unknown name or option, or a value that the client refuses.
    """
    if isinstance(client, Client):
        return client
    built: Client = build_part("client", checked_spec("client", client or PLAIN_CLIENT).parts[0], Client)
    return built
