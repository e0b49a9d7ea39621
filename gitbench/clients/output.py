"""What a model returns, made logits: what is taken from a tuple, a dict or an object, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gitbench.clients.task import own_targets
from gitbench.core.errors import ModelError

LOGITS = "logits"
_ONE_LOGIT = "one logit z, read as (0, z)"
_ATTRIBUTE = "gitbench_output"
_CLOSE = 1e-4
_RESHAPED = ("View", "Unsafe", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "Alias", "Clone")
_WRAP = """Return the logits alone, for example by a subclass, which keeps the names of all parameters:
class Mine(YourModel):
    def forward(self, inputs):
        return super().forward(inputs)[0]  # whichever are the logits"""


@dataclass(frozen=True)
class Output:
    """How a model's logits are found.

    Args:
        taken: what they are of what the model returns; ``logits`` for a tensor that is taken as it is.
        classes: how many.
        classifier: name of the linear layer whose outputs they are, or else of the last layer with one output for each class;
            None where there is none.
        probabilities: they are probabilities already, so that the loss applies softmax a second time.
        sloped: they change with the images: attacks that match gradients can follow them.
    """

    taken: str
    classes: int
    classifier: str | None
    probabilities: bool
    sloped: bool

    def __str__(self) -> str:
        return f"{self.taken}, which are probabilities" if self.probabilities else self.taken


def take_logits(network: nn.Module, classes: int, *, name: str) -> None:
    """Let a network return logits ``(N, classes)`` from now on, by a hook: its modules and their names stay as they are.

    Args:
        network: whose output is changed.
        classes: of the data.
        name: the model's, for errors.
    """
    for key in [key for key, hook in network._forward_hooks.items() if isinstance(hook, _LogitsHook)]:
        del network._forward_hooks[key]  # of a factory that returns the same network again
    network.register_forward_hook(_LogitsHook(classes, name, positions=own_targets(network) is not None), with_kwargs=True)


def read_output(network: nn.Module, inputs: torch.Tensor, classes: int) -> Output:
    """Look at what a network returns, and keep the answer with it for :func:`output_of`.

    Args:
        network: in the mode in which it is attacked, after :func:`take_logits`.
        inputs: some inputs ``(N, ...)`` in their continuous form.
        classes: of the data.

    Raises:
        ModelError: it is not plain what the logits are.
    """
    hook = next(hook for hook in network._forward_hooks.values() if isinstance(hook, _LogitsHook))
    seen: dict[str, torch.Tensor] = {}

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(lambda _module, _inputs, output: seen.update({name: output}))

    handles = [watch(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    try:
        with torch.enable_grad():
            images = inputs.clone().requires_grad_()
            logits = network(images)
            sloped = logits.requires_grad and torch.autograd.grad(logits.sum(), images, allow_unused=True)[0] is not None
    finally:
        for handle in handles:
            handle.remove()
    if hook.taken.endswith(_ONE_LOGIT) and _is_sigmoid(logits.grad_fn.next_functions[1][0] if logits.grad_fn else None):
        raise ModelError(
            f"The model {hook.name!r} returns one probability for each image, expected {classes} logits or one. "
            "Return what goes into the sigmoid."
        )
    probabilities = _are_probabilities(logits) or _is_sigmoid(logits.grad_fn)
    found = Output(hook.taken, classes, _classifier(network, seen, logits.detach()), probabilities, sloped)
    setattr(network, _ATTRIBUTE, found)
    return found


def output_of(model: nn.Module) -> Output | None:
    """What :func:`read_output` found, also of a copy; None of a model that gitbench did not load."""
    found = getattr(model, _ATTRIBUTE, None)
    return found if isinstance(found, Output) else None


def returned_as_is(network: nn.Module) -> bool:
    """Whether nothing but :func:`take_logits` stands between what a network computes and what it returns, and that changes nothing."""
    hooks = network._forward_hooks.values()
    return all(isinstance(hook, _LogitsHook) and hook.taken == LOGITS for hook in hooks) and not network._forward_pre_hooks


def rename_classifier(model: nn.Module, name: str) -> None:
    """Keep what :func:`read_output` found of a model whose classifier has got another name; nothing of one that gitbench did not load."""
    found = output_of(model)
    if found is not None:
        setattr(model, _ATTRIBUTE, replace(found, classifier=name))


class _LogitsHook:
    """A forward hook. Remembers what it took last, and no tensor."""

    def __init__(self, classes: int, name: str, *, positions: bool) -> None:
        self._classes = classes
        self._positions = positions  # one prediction at each of them, (N, positions, classes)
        self.name = name
        self.taken = LOGITS

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: object) -> torch.Tensor:
        rows = len(next(iter((*inputs, *named.values()))))
        named_logits = getattr(output, LOGITS, None)
        at_positions = output if named_logits is None else named_logits
        if self._positions and isinstance(at_positions, torch.Tensor) and at_positions.ndim == 3:
            self.taken = LOGITS if named_logits is None else f"the attribute {LOGITS}"
            return at_positions
        logits, self.taken = _taken(output, rows, self._classes, repr(self.name))
        return logits


def _taken(output: object, rows: int, classes: int, who: str) -> tuple[torch.Tensor, str]:
    """The logits, and what they are of the output."""
    if isinstance(output, torch.Tensor):
        if output.shape == (rows, classes):
            return output, LOGITS
        if classes == 2 and output.shape in ((rows, 1), (rows,)):
            logit = output.reshape(rows, 1)
            return torch.cat([torch.zeros_like(logit), logit], dim=1), _ONE_LOGIT
        raise ModelError(f"Expected logits {(rows, classes)} from the model {who}, got {tuple(output.shape)}.{_advice(output, classes)}")
    named = output.get(LOGITS) if isinstance(output, Mapping) else getattr(output, LOGITS, None)
    if isinstance(named, torch.Tensor):
        logits, how = _taken(named, rows, classes, who)
        where = f"the key {LOGITS!r}" if isinstance(output, Mapping) else f"the attribute {LOGITS}"
        return logits, where if how == LOGITS else f"{where}: {how}"
    parts = dict(output) if isinstance(output, Mapping) else dict(enumerate(output)) if isinstance(output, tuple | list) else {}
    fitting = {key: part for key, part in parts.items() if isinstance(part, torch.Tensor) and part.shape == (rows, classes)}
    if len(fitting) != 1:
        raise ModelError(
            f"Expected logits {(rows, classes)} from the model {who}, got {_described(output, parts)}: taken are a tensor, an attribute or "
            f"key {LOGITS!r}, or the only tensor of that shape. {_WRAP}"
        )
    ((key, part),) = fitting.items()
    return part, f"the key {key!r}" if isinstance(output, Mapping) else f"element {key} of a {type(output).__name__}"


def _advice(output: torch.Tensor, classes: int) -> str:
    if output.ndim == 4 and output.shape[1] == classes:
        return " Average over the positions, for example by torch.nn.AdaptiveAvgPool2d(1) and torch.nn.Flatten()."
    return f" Let its last layer have {classes} outputs: a factory that takes classes is told how many." if output.ndim == 2 else ""


def _described(output: object, parts: Mapping[Any, object]) -> str:
    shapes = ", ".join(f"{key}: {_shape(part)}" for key, part in parts.items())
    return f"{type(output).__name__} ({shapes})" if parts else type(output).__name__


def _shape(part: object) -> str:
    return str(tuple(part.shape)) if isinstance(part, torch.Tensor) else type(part).__name__


def _are_probabilities(logits: torch.Tensor) -> bool:
    return bool((logits >= 0).all()) and bool(((logits.sum(-1) - 1).abs() < _CLOSE).all())


def _is_sigmoid(node: torch.autograd.graph.Node | None) -> bool:
    """Whether a tensor is a sigmoid's result, reshaped or not."""
    while node is not None and node.name().startswith(_RESHAPED):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("SigmoidBackward")


def _classifier(network: nn.Module, seen: Mapping[str, object], logits: torch.Tensor) -> str | None:
    """The linear layer that returned the logits, up to a number for each row; or else the last layer of as many outputs."""
    widths = (logits.shape[-1], 1) if logits.shape[-1] == 2 else (logits.shape[-1],)
    named = [*network.named_modules()]
    linear = [name for name, module in named if isinstance(module, nn.Linear) and module.out_features in widths]
    same = [name for name in linear if _same(seen.get(name), logits)]
    convolutions = [name for name, module in named if isinstance(module, nn.Conv2d) and module.out_channels in widths]
    return next(reversed(same or linear or convolutions), None)


def _same(output: object, logits: torch.Tensor) -> bool:
    if not isinstance(output, torch.Tensor) or output.numel() not in (logits.numel(), len(logits)):
        return False
    logits = logits.flatten(1)
    flat = output.reshape(len(logits), -1)
    flat = torch.cat([torch.zeros_like(flat), flat], dim=1) if flat.shape[1] < logits.shape[1] else flat
    return torch.allclose(functional.log_softmax(flat, 1), functional.log_softmax(logits, 1), atol=_CLOSE)
