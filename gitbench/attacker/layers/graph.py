"""The steps of GIT's recursion, read off the model's graph instead of written down for each model.

GIT (arXiv 2505.20026) inverts back-propagation layer by layer. Which layers there are, and which layers each one's
output feeds (two where a skip starts), follows from a symbolic trace of the model; no values are needed, so the
architecture on the ``meta`` device is enough.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from gitbench.attacker.layers.chain import own_parameters
from gitbench.clients.normalize import Normalize
from gitbench.core.errors import AttackError

_STEPS: dict[type[nn.Module], str] = {nn.Linear: "linear", nn.Conv2d: "conv2d"}
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Sigmoid: "sigmoid",
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.ReLU6: "relu6",
    nn.Hardtanh: "hardtanh",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.Mish: "mish",
    nn.PReLU: "prelu",
}
_RESHAPING_METHODS = frozenset({"reshape", "view", "flatten", "unflatten", "transpose", "permute", "contiguous", "squeeze", "unsqueeze"})
_RESHAPING_FUNCTIONS = frozenset({torch.reshape, torch.flatten, torch.transpose, torch.permute, torch.squeeze, torch.unsqueeze})
_RESHAPING_MODULES = (nn.Flatten, nn.Unflatten, nn.Identity)
_ADDITIONS = frozenset({operator.add, operator.iadd, torch.add})
_OTHER_VARIANT = "Use git(variant='module'), which needs no graph, or lti."


@dataclass(frozen=True)
class Step:
    """One layer with a weight, as GIT's recursion sees it: ``G = sum of delta a^T`` over positions.

    Args:
        name: of the module.
        kind: ``linear`` or ``conv2d``.
        weight: name of its weight.
        bias: name of its bias, or None.
        others: names of parameters that act on its output before the next step: of norms, of what is added.
        input_shape: of one example, without the batch.
        output_shape: of one example.
        feeds: names of the steps that read its output, through activations, norms, pools and sums, in the order
            in which they run; more than one where a skip starts. Empty for the last layer.
        activation: the first on the way to those, such as ``relu``; None where there is none.
        observed_delta: name of a parameter whose gradient is this layer's delta at every position: one that is
            added to the whole output, such as a positional embedding (APRIL, arXiv 2112.14087). None without.
        delta_index: where each entry of the output ``output_shape`` lies in that parameter, flattened.
        reads_image: its input is the image, at most normalised and flattened.
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    others: tuple[str, ...]
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    feeds: tuple[str, ...]
    activation: str | None
    observed_delta: str | None
    delta_index: torch.Tensor | None = field(default=None, compare=False, repr=False)
    reads_image: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters whose gradients belong to this step."""
        return (self.weight, *(() if self.bias is None else (self.bias,)), *self.others)


def steps(architecture: nn.Module, input_shape: tuple[int, ...]) -> tuple[Step, ...]:
    """The layers with a weight in back-propagation order: the last layer first.

    Args:
        architecture: on the ``meta`` device (:attr:`gitbench.attacker.observation.Observation.architecture`).
        input_shape: ``(C, H, W)``.

    Raises:
        AttackError: it cannot be traced, or it has a layer whose gradient is no ``delta a^T``.
    """
    return _Graph(architecture, input_shape).steps()


class _Tracer(fx.Tracer):
    """Takes every module of torch as one node, and looks into all others."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, Normalize) or (type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential))


class _Values(fx.Interpreter):
    """Runs a graph and keeps every node's value."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        found = self.values[n] = super().run_node(n)
        return found


class _Graph:
    def __init__(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        self._modules = dict(model.named_modules())
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._own = own_parameters(model)
        try:
            graph = _Tracer().trace(model)
            run = _Values(fx.GraphModule(model, graph))
            with torch.no_grad():
                run.run(torch.zeros(1, *input_shape, device="meta"))
        except Exception as error:  # whatever a user's forward raises when it meets no numbers
            raise AttackError(
                f"Expected a model whose graph torch.fx can trace, but {type(model).__name__} raised "
                f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'nothing said'}. {_OTHER_VARIANT}"
            ) from error
        self._nodes = list(graph.nodes)
        self._values = run.values
        self._layers = {node: str(node.target) for node in self._nodes if self._kind(node) is not None}

    def steps(self) -> tuple[Step, ...]:
        others = self._others()
        found = [self._step(node, name, others.get(name, ())) for node, name in self._layers.items()]
        if not found:
            raise AttackError(f"Expected a model with torch.nn.Linear or torch.nn.Conv2d layers, found none. {_OTHER_VARIANT}")
        return tuple(reversed(found))

    def _step(self, node: fx.Node, name: str, others: tuple[str, ...]) -> Step:
        layer = self._modules[name]
        parameter, index = self._observed(node)
        reached = self._reached(node)
        passed = (self._activation(other) for other in reached)
        return Step(
            name=name,
            kind=_STEPS[type(layer)],
            weight=f"{name}.weight",
            bias=f"{name}.bias" if f"{name}.bias" in self._parameters else None,
            others=others,
            input_shape=tuple(self._values[node.all_input_nodes[0]].shape[1:]),
            output_shape=tuple(self._values[node].shape[1:]),
            feeds=tuple(self._layers[other] for other in self._nodes if other in self._layers and other in reached),
            activation=next((activation for activation in passed if activation), None),
            observed_delta=parameter,
            delta_index=index,
            reads_image=self._reads_image(node),
        )

    def _reads_image(self, node: fx.Node) -> bool:
        node = node.all_input_nodes[0]
        while node.op == "call_module" and isinstance(self._modules[str(node.target)], (Normalize, nn.Flatten, nn.Identity, nn.Dropout)):
            node = node.all_input_nodes[0]
        return node.op == "placeholder"

    def _kind(self, node: fx.Node) -> str | None:
        """``linear`` or ``conv2d`` for a layer; None for what has no weights, or those of a norm."""
        if node.op != "call_module":
            return None
        name = str(node.target)
        module = self._modules[name]
        if type(module) in _STEPS:
            if sum(other.op == "call_module" and other.target == node.target for other in self._nodes) > 1:
                raise _unsupported(name, module, "runs more than once, so that its gradient is a sum")
            if f"{name}.weight" not in self._own:
                raise _unsupported(
                    name,
                    module,
                    "shares, computes or freezes its weight, so that its gradient is another or none",
                )
            return _STEPS[type(module)]
        if any(parameter.requires_grad for parameter in module.parameters()) and not isinstance(module, (*_NORMS, nn.PReLU)):
            raise _unsupported(name, module, "has a gradient that is no delta a^T of the kind that GIT inverts")
        return None

    def _others(self) -> dict[str, tuple[str, ...]]:
        """Parameters of norms and of sums, each with the step that ran last before it (or the first of all)."""
        found: dict[str, list[str]] = {}
        current = next(iter(self._layers.values()), "")
        for node in self._nodes:
            current = self._layers.get(node, current)
            names: list[str] = []
            if node.op == "call_module" and node not in self._layers:
                prefix = str(node.target)
                names = [f"{prefix}.{name}" for name, _ in self._modules[prefix].named_parameters()]
                names = [name for name in names if name in self._parameters]
            elif node.op == "get_attr" and str(node.target) in self._parameters:
                self._check_bare(node)
                names = [str(node.target)]
            found.setdefault(current, []).extend(name for name in names if name not in found.get(current, ()))
        return {name: tuple(names) for name, names in found.items()}

    def _check_bare(self, node: fx.Node) -> None:
        if all(user.op == "call_function" and user.target in _ADDITIONS for user in node.users):
            return
        name = str(node.target)
        user = next(user for user in node.users if user.target not in _ADDITIONS)
        how = getattr(user.target, "__name__", str(user.target))
        raise _unsupported(name, self._parameters[name], f"is used in {how}, expected in a sum")

    def _reached(self, start: fx.Node) -> dict[fx.Node, None]:
        """Nodes that carry a layer's output, up to the next layers and with them, nearest first."""
        found: dict[fx.Node, None] = {}
        queue = list(start.users)
        while queue:
            node = queue.pop(0)
            if node in found or not _is_tensors(self._values.get(node)):
                continue
            found[node] = None
            if node not in self._layers:
                queue.extend(node.users)
        return found

    def _activation(self, node: fx.Node) -> str | None:
        if node.op == "call_module":
            return _ACTIVATIONS.get(type(self._modules[str(node.target)]))
        name = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        return name if node.op in ("call_function", "call_method") and name in _ACTIVATIONS.values() else None

    def _observed(self, layer: fx.Node) -> tuple[str | None, torch.Tensor | None]:
        """The parameter added to all of a layer's output, and where each of its entries lies in it."""
        node = layer
        index = torch.arange(self._values[layer].numel()).reshape(self._values[layer].shape)
        while len(node.users) == 1:
            user = next(iter(node.users))
            if user.op == "call_function" and user.target in _ADDITIONS:
                return self._added(user, node, index)
            if not self._reshapes(user):
                break
            index = self._applied(user, node, index)
            node = user
        return None, None

    def _added(self, addition: fx.Node, node: fx.Node, index: torch.Tensor) -> tuple[str | None, torch.Tensor | None]:
        other = next((found for found in addition.all_input_nodes if found is not node), None)
        if other is None or other.op != "get_attr" or str(other.target) not in self._parameters or len(other.users) != 1:
            return None, None
        shape = self._parameters[str(other.target)].shape
        same = tuple(shape) in (tuple(index.shape), tuple(index.shape[1:]))
        if addition.kwargs or not same:  # a scaled sum, or one that adds the same to several positions
            return None, None
        return str(other.target), index.flatten().argsort().reshape(tuple(self._values[self._start(node)].shape[1:]))

    def _start(self, node: fx.Node) -> fx.Node:
        while node not in self._layers:
            node = node.all_input_nodes[0]
        return node

    def _reshapes(self, node: fx.Node) -> bool:
        if node.op == "call_method":
            return str(node.target) in _RESHAPING_METHODS
        if node.op == "call_module":
            return isinstance(self._modules[str(node.target)], _RESHAPING_MODULES)
        return node.op == "call_function" and node.target in _RESHAPING_FUNCTIONS

    def _applied(self, node: fx.Node, before: fx.Node, index: torch.Tensor) -> torch.Tensor:
        """What a reshaping makes of ``index``; the sizes it was given are those of the trace."""

        def value(argument: fx.Node) -> Any:
            return index if argument is before else self._values[argument]

        arguments = fx.map_arg(node.args, value)
        options = fx.map_arg(node.kwargs, value)
        if node.op == "call_method":
            found = getattr(arguments[0], str(node.target))(*arguments[1:], **options)
        elif node.op == "call_module":
            found = self._modules[str(node.target)](*arguments, **options)
        else:
            function: Callable[..., Any] = node.target  # type: ignore[assignment]
            found = function(*arguments, **options)
        assert isinstance(found, torch.Tensor)
        return found


def _is_tensors(value: object) -> bool:
    if isinstance(value, tuple | list):
        return any(_is_tensors(part) for part in value)
    return isinstance(value, torch.Tensor)


def _unsupported(name: str, what: object, why: str) -> AttackError:
    kinds = ", ".join(f"torch.nn.{kind.__name__}" for kind in _STEPS)
    return AttackError(
        f"The layer {name!r} ({type(what).__name__}) {why}: expected {kinds}, norms, and layers without parameters. {_OTHER_VARIANT}"
    )
