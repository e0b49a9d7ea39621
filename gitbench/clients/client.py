"""The client: from a stack of private batches to the update that it sends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import nn
from torch.func import vmap

from gitbench.clients.called import called_with
from gitbench.clients.data import Split
from gitbench.clients.defense import Defense, Expectation, fresh, load_defense
from gitbench.clients.differentiation import CHUNK, Aims, stacked_gradients, stacked_products
from gitbench.clients.output import output_of
from gitbench.clients.procedure import Client, load_client
from gitbench.clients.stochastic import drawing
from gitbench.clients.trained import trained_parameters
from gitbench.clients.update import Batch, Update
from gitbench.core.errors import DefenseError, GitbenchError, ModelError
from gitbench.core.random import make_generator


def client_update(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    defense: Defense | str | None = None,
    client: Client | str | None = None,
    generator: torch.Generator | None = None,
    public: Split | None = None,
    show: Callable[[nn.Module], None] | None = None,
) -> Update:
    """What a server gets from a stack of victims: the gradients of one batch each, unless ``client`` says otherwise.

    Args:
        model: as the client received it.
        inputs: ``(V, B, C, H, W)`` in [0, 1]; the images of several clients are side by side in B.
        labels: ``(V, B)``.
        client: how a client makes its update, or its SPEC; None is ``fedsgd``.
        defense: what the client does before sending, or its SPEC; None sends the raw gradient. It is copied.
        generator: for the defense's randomness; a fixed one when None.
        public: the data a condition such as parameter drift trains on, and that earlier rounds are about.
        show: is shown the model that the client differentiates, where it is a copy of its own.

    Raises:
        DefenseError: the defense raised, or returned something malformed; the message names it.
        ModelError: shapes do not fit.
    """
    generator, client = generator or make_generator(0, "defense"), load_client(client)
    if defense is not None:
        victims, batch_size = labels.shape[:2]
        defense = after_earlier_rounds(
            load_defense(defense), model, client=client, victims=victims, batch_size=batch_size, generator=generator, public=public
        )
    raw = local_gradients(model, inputs, labels, client=client, defense=defense, generator=generator, public=public, show=show)
    return client.sent(raw if defense is None else protect(raw, client=client, defense=defense, generator=generator))


def after_earlier_rounds(
    defense: Defense, model: nn.Module, *, client: Client, victims: int, batch_size: int, generator: torch.Generator, public: Split | None
) -> Defense:
    """A copy of a defense that has lived through all rounds before those that leak: one fewer than its ``age``.

    Their batches are drawn from the public split, as a stand-in for the clients' other data, and their
    updates are forgotten: what is left is what the defense keeps of them.

    Raises:
        DefenseError: it cannot be copied, raised, or wants rounds without public images to fill them.
    """
    copied = fresh(defense)
    if not isinstance(copied.age, int) or copied.age < 1:
        raise DefenseError(f"Expected {defense!r} to have age >= 1, got {copied.age!r}.")
    for _ in range(copied.age - 1):
        if public is None or not len(public):
            raise DefenseError(f"{defense!r} lives through {copied.age} rounds and needs public images for the earlier ones. Pass public=.")
        chosen = torch.randint(len(public), (victims, batch_size), generator=generator).to(public.inputs.device)
        inputs, labels = public.inputs[chosen], public.labels[chosen]
        raw = local_gradients(model, inputs, labels, client=client, defense=copied, generator=generator, public=public)
        protect(raw, client=client, defense=copied, generator=generator)
    return copied


def local_gradients(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    client: Client,
    defense: Defense | None,
    generator: torch.Generator,
    public: Split | None,
    show: Callable[[nn.Module], None] | None = None,
) -> Update:
    """What the clients compute, before :func:`protect`: with the defense's batch and local model, unprotected, in gradients."""
    if inputs.ndim < 3 or labels.shape[:2] != inputs.shape[:2]:
        raise ModelError(f"Expected inputs (V, B, *shape) and labels (V, B), got {tuple(inputs.shape)} and {tuple(labels.shape)}.")
    if labels.shape[1] % client.clients:
        raise ModelError(f"Expected images for each of {client.clients} clients alike, got {labels.shape[1]} of each victim.")
    inputs, labels = client.rows(inputs), client.rows(labels)
    if defense is None:
        return client.gathered(client.local_update(drawing(model, generator), inputs, labels, generator=generator))
    with blaming(defense):
        local = defense.local_model(model, public=public, generator=generator)
        if show is not None and local is not model:
            show(local)
        if list(trained_parameters(local)) != list(trained_parameters(model)):
            raise DefenseError(
                f"The local_model() of {defense!r} trains other parameters than the shared model, expected the same. "
                "Freeze in modify_model(), which server and clients share."
            )
        inputs, labels = defense.prepare_batch(Batch(local, inputs, labels), public=public, generator=generator)
        local = drawing(local, generator)
        found = client.local_update(local, inputs, labels, generator=generator, per_example=defense.needs_per_example)
        found = found.of(Batch(local, inputs, labels)) if defense.needs_batch else found
    return client.gathered(found)


def protect(raw: Update, *, defense: Defense, generator: torch.Generator, client: Client | None = None) -> Update:
    """Pass gradients through a defense, and check what it returns.

    Args:
        raw: of a stack of victims, in gradients.
        client: where it does more than to send its gradient: each of a victim's clients is protected in its own unit.

    Raises:
        DefenseError: the defense raised, or returned something malformed; the message names it.
    """
    own = raw if client is None else client.each(raw)
    with blaming(defense):
        protected = defense.protect(own, generator=generator)
    check_update(protected, own, defense)
    return protected if client is None else client.together(protected)


@contextlib.contextmanager
def blaming(defense: Defense) -> Iterator[None]:
    """Whatever a defense raises becomes a :class:`DefenseError` that names it."""
    try:
        yield
    except GitbenchError:
        raise
    except Exception as error:
        raise DefenseError(f"The defense {defense!r} raised {type(error).__name__}: {error}") from error


def gradients(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, per_example: bool = False) -> Update:
    """Gradients of the mean cross-entropy of each victim's batch by the parameters that train, all victims at once.

    Differentiable in ``inputs`` and in soft ``labels``, so attacks match gradients with it too.

    Args:
        model: its own mode (train or eval) is used.
        inputs: ``(V, B, C, H, W)``.
        labels: class indices ``(V, B)``, or probabilities ``(V, B, classes)``.
        per_example: also keep every example's gradient.
    """
    if per_example and model.training and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
        raise ModelError("Per-example gradients do not exist with BatchNorm in train mode. Use mode='eval' in the model's SPEC.")
    stacked = stacked_gradients(model, _values(model), inputs, labels, per_example=per_example)
    if not per_example:
        return Update(stacked)
    one = inputs.shape[1] == 1
    return Update({name: tensor[:, 0] if one else tensor.mean(1) for name, tensor in stacked.items()}, per_example=stacked)


def gradient_products(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, aims: Aims) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products of :func:`gradients` with what was observed, and with themselves: each ``(tensors, V)``; differentiable.

    Args:
        model: as for :func:`gradients`, and so are ``inputs`` and ``labels``.
        inputs: ``(V, B, C, H, W)``.
        labels: class indices ``(V, B)``, or probabilities ``(V, B, classes)``.
        aims: of the same victims.

    Raises:
        ModelError: the gradient does not change with the images.
    """
    check_sloped(model)
    return stacked_products(model, _values(model), inputs, labels, aims)


def _values(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: parameter.detach() for name, parameter in trained_parameters(model).items()}


def own_update(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, *, client: Client, defense: Defense | None = None) -> Update:
    """What an attacker computes for candidates as their clients would, in gradients; differentiable in them.

    Args:
        model: the attacker's.
        inputs: ``(V, B, C, H, W)``; images that a client takes in turn are taken in an order that is drawn once and for all.
        labels: as for :func:`gradients`.
        client: which is played.
        defense: that is to protect it, and may ask for more than the gradients.
    """
    inputs, labels, per_example = client.rows(inputs), client.rows(labels), defense is not None and defense.needs_per_example
    found = client.local_update(model, inputs, labels, generator=make_generator(0, "order"), per_example=per_example)
    return client.gathered(found.of(Batch(model, inputs, labels)) if defense is not None and defense.needs_batch else found)


def expected_update(
    model: nn.Module,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    *,
    expectation: Expectation | None,
    observed: Update,
    client: Client | None = None,
) -> Update:
    """What an attacker expects candidates to send: their gradients through the defense's deterministic part.

    Args:
        model: the attacker's.
        inputs: ``(V, B, C, H, W)``; differentiable.
        labels: as for :func:`gradients`.
        expectation: of the defense; None for an attacker who does not know it, or does not adapt.
        observed: what was sent, of the same victims.
        client: which sent it; None is ``fedsgd``.

    Raises:
        DefenseError: the defense raised; the message names it.
        ModelError: the gradient does not change with the images.
    """
    check_sloped(model)
    client = load_client(client)
    if expectation is None:
        return own_update(model, inputs, labels, client=client)
    with blaming(expectation.defense):
        return expectation(own_update(model, inputs, labels, client=client, defense=expectation.defense), observed=observed)


def check_sloped(model: nn.Module) -> None:
    """That attacks which match gradients can follow a model's.

    Raises:
        ModelError: the gradient does not change with the images.
    """
    output = output_of(model)
    if output is not None and not output.sloped:
        rounding = [f"{name!r} ({type(module).__name__})" for name, module in model.named_modules() if isinstance(module, nn.Embedding)]
        raise ModelError(
            f"The gradient of {type(model).__name__} has no slope in the images{': they are rounded for ' if rounding else ''}"
            f"{', '.join(rounding)}. No attack that matches gradients can follow it: use ridge, git(variant='module') or lti."
        )


def check_update(update: object, raw: Update, defense: Defense) -> None:
    """Check that a defense returned an update like the raw one.

    Raises:
        DefenseError: naming the defense, the parameter, what was expected and what was found.
    """
    who = f"The defense {defense!r}"
    if not isinstance(update, Update):
        raise DefenseError(f"{who} returned {type(update).__name__}, expected a gitbench.Update. Return update.map(...).")
    for name, tensor in raw.tensors.items():
        found = update.tensors.get(name)
        if found is None:
            raise DefenseError(f"{who} left out the parameter {name!r}. Return a tensor for each; zeros hide one.")
        if not isinstance(found, torch.Tensor) or found.shape != tensor.shape:
            shape = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
            raise DefenseError(f"{who} returned {shape} for {name!r}, expected {tuple(tensor.shape)}: victims come first.")
        if found.dtype != tensor.dtype or found.device != tensor.device:
            raise DefenseError(f"{who} returned {found.dtype} on {found.device} for {name!r}, expected {tensor.dtype} on {tensor.device}.")
        # Any NaN or infinity is in the sum too, and a sum needs no memory; so does an overflow, hence the second look.
        if not torch.isfinite(found.sum()) and not torch.isfinite(found).all():
            bad = int((~torch.isfinite(found)).sum())
            raise DefenseError(f"{who} returned {bad} NaN or infinite values in {name!r}, expected finite numbers.")
    extra = sorted(set(update.tensors) - set(raw.tensors))
    if extra:
        raise DefenseError(f"{who} added {extra[0]!r}, which is no parameter of the model that trains.")


def batchnorm_statistics(model: nn.Module, inputs: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """What each BatchNorm layer sees of the private batches: mean and variance, each ``(V, channels)``; differentiable.

    Args:
        model: the client's model.
        inputs: ``(V, B, C, H, W)``.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)}
    if not layers:
        return {}
    values = {name: tensor.detach() for name, tensor in (*model.named_parameters(), *model.named_buffers())}

    def of_batch(batch: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

        def watch(name: str) -> Callable[[nn.Module, tuple[torch.Tensor, ...]], None]:
            def hook(_module: nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
                seen = arguments[0].transpose(0, 1).flatten(1)
                found[name] = seen.mean(1), seen.var(1, unbiased=False)

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in layers.items()]
        try:
            called_with(model, values, batch)
        finally:
            for handle in handles:
                handle.remove()
        return found

    def of_stack(batches: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        try:
            return vmap(of_batch, randomness="different")(batches)
        except RuntimeError:  # a model that cannot be batched
            rows = [of_batch(batch) for batch in batches]
            return {name: (torch.stack([row[name][0] for row in rows]), torch.stack([row[name][1] for row in rows])) for name in layers}

    pieces = [of_stack(piece) for piece in inputs.split(CHUNK)]
    return {name: (torch.cat([piece[name][0] for piece in pieces]), torch.cat([piece[name][1] for piece in pieces])) for name in layers}
