"""Several rounds of the same batches and weights: what is sent in each, and what it comes to."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import nn

from gitbench.clients.client import after_earlier_rounds, blaming, check_update, local_gradients, protect
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, changes_batch, load_defense, parts_of
from gitbench.clients.procedure import Client, load_client
from gitbench.clients.update import Update
from gitbench.core.errors import ConfigError
from gitbench.core.random import make_generator


def client_rounds(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    rounds: int,
    defense: Defense | str | None = None,
    client: Client | str | None = None,
    generator: torch.Generator | None = None,
    public: Split | None = None,
    show: Callable[[nn.Module], None] | None = None,
) -> tuple[Update, ...]:
    """What a server gets from the same victims in several rounds, oldest first; the other arguments are those of :func:`client_update`.

    Batches and weights stay as they are. Whatever is random is drawn afresh in each round, and a defense keeps what it keeps.

    Args:
        rounds: how many. Where nothing is drawn and nothing is kept, all of them are one object.

    Raises:
        ConfigError: rounds is no positive number.
        DefenseError: the defense raised, or returned something malformed; the message names it.
        ModelError: shapes do not fit.
    """
    if not isinstance(rounds, int) or rounds < 1:
        raise ConfigError(f"Expected rounds >= 1, got {rounds!r}.")
    generator, client = generator or make_generator(0, "defense"), load_client(client)
    if defense is not None:
        victims, batch_size = labels.shape[:2]
        defense = after_earlier_rounds(
            load_defense(defense), model, client=client, victims=victims, batch_size=batch_size, generator=generator, public=public
        )
    raw = functools.partial(
        local_gradients, model, inputs, labels, client=client, defense=defense, generator=generator, public=public, show=show
    )
    return for_each(client.sent, tuple(sent_rounds(raw, rounds=rounds, client=client, defense=defense, generator=generator)))


def sent_rounds(
    raw: Callable[[], Update], *, rounds: int, client: Client, defense: Defense | None, generator: torch.Generator
) -> Iterator[Update]:
    """What clients send in each of several rounds of the same batches and weights, in gradients, oldest first.

    Args:
        raw: computes the gradients as :func:`local_gradients` does, with ``generator``. It is asked again where they may change.
        rounds: how many. Where nothing is drawn and nothing is kept, all of them are one object.
        defense: the clients' own copy.
    """
    own: Update | None = None
    first: Update | None = None
    calm = True  # nothing was drawn yet
    for done in range(rounds):
        before = generator.get_state()
        if own is None:
            own = raw()
            again = not torch.equal(before, generator.get_state()) or (defense is not None and changes_before(defense))
        update = own if defense is None else protect(own, client=client, defense=defense, generator=generator)
        calm = calm and torch.equal(before, generator.get_state())
        if first is not None and calm and (defense is None or defense.age == 1) and alike(update, first):
            yield from itertools.repeat(first, rounds - done)
            return
        first = update if first is None else first
        yield update
        own = None if again else own


def changes_before(defense: Defense) -> bool:
    """Whether a defense has a say before the gradient is taken: then the next round's may be another."""
    return changes_batch(defense) or any(type(part).local_model is not Defense.local_model for part in parts_of(defense))


def combined(updates: Iterable[Update], *, defense: Defense | None) -> Update:
    """Several rounds of the same batches and weights as one update: the mean where the defense is not known.

    Raises:
        DefenseError: the defense raised, or returned something malformed; the message names it.
    """
    if defense is None:
        return Update.mean(updates)
    one_by_one = iter(updates)
    first = next(one_by_one)
    with blaming(defense):
        found = defense.combined(itertools.chain([first], one_by_one))
    check_update(found, first, defense)
    return found


def for_each(function: Callable[[Update], Update], updates: Sequence[Update]) -> tuple[Update, ...]:
    """``function`` of each update, asked once for those that are one object."""
    if all(update is updates[0] for update in updates):
        return (function(updates[0]),) * len(updates) if updates else ()
    return tuple(map(function, updates))


def alike(one: Update, other: Update) -> bool:
    """Whether two updates are the same to the bit."""
    return all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
