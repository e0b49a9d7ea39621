"""The model under attack: built from a SPEC, initialised or trained deterministically."""

from __future__ import annotations

import copy
import hashlib
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.nn.parameter import is_lazy

from gitbench.clients.data import Data
from gitbench.clients.differentiation import stacked_gradients
from gitbench.clients.normalize import Normalize  # noqa: F401 (models of others import it from here)
from gitbench.clients.output import output_of, read_output, take_logits
from gitbench.clients.task import data_for
from gitbench.clients.trained import freeze, trained_parameters
from gitbench.clients.training import train
from gitbench.core.component import Component
from gitbench.core.errors import GitbenchError, ModelError, SpecError
from gitbench.core.random import make_generator, seeded
from gitbench.core.spec import Part, canonical_json
from gitbench.identity.loading import build_part, checked_spec, load_part
from gitbench.identity.signatures import FILLED_IN
from gitbench.identity.sources import digest_of_module, part_digest
from gitbench.store.folder import write_atomic

MODES = ("eval", "train")

_SIZES = (64, 96, 128, 224, 299)  # of images that published models are made for


class ModelFactory(Component):
    """Base of the built-in models: options in the constructor, the network in :meth:`build`."""

    modality: ClassVar[str] = "image"
    """Name of the kind of data (:class:`gitbench.Modality`) that the network takes."""

    def build(self, data: Data) -> nn.Module:
        """The network for this data: inputs ``(N, *data.input_shape)`` to logits ``(N, classes)``.

        The global random state is seeded while this runs.
        """
        raise TypeError(f"The model {self!r} must define build(self, data) -> torch.nn.Module.")


def load_model(model: str, data: Data, *, seed: int = 0, cache: Path | None = None) -> nn.Module:
    """Build a model from its SPEC for a dataset.

    Three options belong to every model: ``frozen=("conv1", "*.bias")`` names modules and parameters that do not train,
    ``trained_epochs=N`` trains the others on the public data first, and ``mode="eval"|"train"`` says how BatchNorm and
    dropout behave when the client takes its gradient. What a factory froze stays frozen.

    Args:
        model: a SPEC.
        data: gives input shape, classes, normalisation and the public images to train on.
        seed: of initialisation and training.
        cache: folder for trained parameters; None trains anew.

    Raises:
        SpecError: unknown model or option.
        ModelError: the factory failed, nothing trains, or the network does not map images to logits.
    """
    part = checked_spec("model", model).parts[0]
    options = dict(part.arguments)
    epochs, mode, frozen = options.pop("trained_epochs", 0), options.pop("mode", "eval"), options.pop("frozen", ())
    if not isinstance(epochs, int) or epochs < 0:
        raise SpecError(f"Expected trained_epochs of {model!r} to be an integer >= 0, got {epochs!r}.")
    if mode not in MODES:
        raise SpecError(f"Expected mode of {model!r} to be one of {', '.join(MODES)}, got {mode!r}.")
    with seeded(make_generator(seed, "model")):
        network = _build(Part(part.target, tuple(options.items())), data)
    data.modality.adapt(network)
    data = data_for(network, data)
    freeze(network, frozen, model=model)
    trained_parameters(network)
    take_logits(network, data.classes, name=model)
    if epochs:
        _train_cached(network, data, model=model, epochs=epochs, seed=seed, cache=cache)
    network.train(mode == "train")
    if mode == "train":
        # Batch statistics are used and running ones left alone: a client's gradient has no side effect.
        torch.func.replace_all_batch_norm_modules_(network)
    _check(network, data, model)
    return network


def classes_of(model: nn.Module) -> int:
    """How many classes a model tells apart.

    Raises:
        ModelError: gitbench did not load it, and it has no linear layer.
    """
    output = output_of(model)
    return last_linear(model)[1].out_features if output is None else output.classes


def last_layer(model: nn.Module) -> tuple[str, nn.Linear | nn.Conv2d]:
    """Name and module of the classifier: the layer whose outputs are the logits, or else the last linear one.

    Raises:
        ModelError: the model has none.
    """
    output = output_of(model)
    found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    linear = (name for name, module in reversed(found.items()) if isinstance(module, nn.Linear))
    name = next(linear, None) if output is None else output.classifier
    if name is None:
        raise ModelError(
            f"No layer of {type(model).__name__} has an output for each class, so that labels cannot be read off its update. "
            "Use lti, dlg(labels='joint') or, where labels are granted, ig(labels='known')."
        )
    return name, found[name]


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The same of a linear layer, whose input can be read off its gradient.

    Raises:
        ModelError: the model has none.
    """
    name, layer = last_layer(model)
    if not isinstance(layer, nn.Linear):
        raise ModelError(
            f"The logits of {type(model).__name__} come from {name!r} ({type(layer).__name__}), not from a torch.nn.Linear, so that "
            "the input of its last layer cannot be read off the update. Use lti, ig or dlg."
        )
    return name, layer


def _build(part: Part, data: Data) -> nn.Module:
    found = load_part("model", part)
    if isinstance(found, nn.Module):
        if part.arguments:
            raise SpecError(f"The model {part.target!r} is built already and takes no options, got {part.label}. Name what builds it.")
        return copy.deepcopy(found)  # a mode, or training, must not reach the next cell
    if not callable(found):
        raise SpecError(f"Expected {part.target!r} to be a factory of a torch.nn.Module, got {found!r}.")
    filled = _filled_in(found, data)
    if isinstance(found, type) and issubclass(found, ModelFactory):
        if found.modality != data.modality.name:
            raise ModelError(f"The model {part.label!r} takes {found.modality} data, and the dataset is one of {data.modality.name} data.")
        factory: ModelFactory = build_part("model", part, ModelFactory, **filled)
        return _made(f"build() of the model {part.label!r}", "build(self, data) -> torch.nn.Module", lambda: factory.build(data))
    signature = f"a function or class that takes the options of the SPEC; {', '.join(FILLED_IN['model'])} are given if it names them"
    return _made(f"the model factory {part.label!r}", signature, lambda: found(**{**filled, **dict(part.arguments)}))


def _filled_in(found: Callable[..., object], data: Data) -> dict[str, object]:
    """What a function or class that makes a model is given without asking, of that which it names: a check leaves it out likewise."""
    try:
        taken = inspect.signature(found).parameters
    except (TypeError, ValueError):  # compiled code need not tell
        return {}
    return {name: getattr(data, name) for name in FILLED_IN["model"] if name in taken}


def _made(what: str, signature: str, make: Callable[[], object]) -> nn.Module:
    """The network that somebody's code makes.

    Raises:
        ModelError: it raised, or made something else.
    """
    try:
        network = make()
    except GitbenchError:
        raise
    except Exception as error:
        hint = f". Expected {signature}." if isinstance(error, TypeError) else ""
        raise ModelError(f"Making a network failed: {what} raised {type(error).__name__}: {str(error).rstrip('.')}{hint}") from error
    if not isinstance(network, nn.Module):
        raise ModelError(f"Expected {what} to return a torch.nn.Module, got {type(network).__name__}.")
    lazy = [name for name, parameter in network.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ModelError(
            f"Expected {what} to return a network with parameters, but those of {lazy[0].rpartition('.')[0]} have no shape yet. "
            "Call the network once on zeros of (1, *input_shape) before you return it."
        )
    return network


def _check(network: nn.Module, data: Data, model: str) -> None:
    """That it can be run, differentiated and copied, and what its logits are."""
    inputs, labels = data.public.inputs[:2], data.public.labels[:2]
    try:
        read_output(network, data.modality.enter(network, inputs), data.classes)
    except ModelError:
        raise
    except Exception as error:
        said = f"{str(error).rstrip('.! ')}{_other_channels(network, data) or _other_sizes(network, data.input_shape)}"
        raise ModelError(f"The model {model!r} cannot take {data.modality.noun}s of shape {data.input_shape}: {said}") from error
    try:
        copy.deepcopy(network)
        parameters = {name: parameter.detach() for name, parameter in trained_parameters(network).items()}
        stacked_gradients(network, parameters, inputs[None], labels[None], per_example=False)
    except Exception as error:
        raise ModelError(f"The model {model!r} cannot be copied and differentiated: {error}{_of_former_norm(network)}") from error


def _other_sizes(network: nn.Module, shape: tuple[int, ...]) -> str:
    """What to do where a network takes images of another size; empty where it takes none of those that are tried."""
    size = next((side for side in _SIZES if _takes(network, (shape[0], side, side))), None) if len(shape) == 3 else None
    if size is None:
        return ""
    return (
        f". It takes {size}x{size} images. Enlarge them inside of the model, for example by a factory:\n"
        "def enlarged(input_shape, classes):\n"
        f"    upsample = torch.nn.Upsample(size={size}, mode='bilinear')\n"
        "    return torch.nn.Sequential(upsample, YourModel(classes))"
    )


def _of_former_norm(network: nn.Module) -> str:
    found = [name for name, module in network.named_modules() if hasattr(module, "weight_g")]
    return f" Use torch.nn.utils.parametrizations.weight_norm for {', '.join(found)}." if found else ""


def _takes(network: nn.Module, shape: tuple[int, ...]) -> bool:
    try:
        with torch.no_grad():
            network(next(network.parameters()).new_zeros(2, *shape))
    except Exception:  # noqa: BLE001 - whatever a user's forward raises: it does not take them
        return False
    return True


def _other_channels(network: nn.Module, data: Data) -> str:
    """What to do where the first layer wants another number of channels than the images have; empty where it does not."""
    if len(data.input_shape) != 3:
        return ""
    channels, height, width = data.input_shape
    layers = (module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear))
    first = next(layers, None)
    if first is None:
        return ""
    wanted = first.in_channels if isinstance(first, nn.Conv2d) else first.in_features / (height * width)
    if wanted == channels or wanted not in (1, 3, 4):
        return ""
    repeat = ", or repeat the channel: channels=3 in the SPEC of the dataset" if (channels, wanted) == (1, 3) else ""
    return (
        f". Its first layer takes {wanted:g} channels and the images have {channels}: build it for {channels} (an option channels= of the "
        f"model, or a factory that names input_shape and is given it){repeat}."
    )


def trained_name(model: str, data: Data, *, seed: int) -> str | None:
    """Under which name the trained parameters of a model are kept; None of one that :func:`load_model` does not train."""
    part = checked_spec("model", model).parts[0]
    if not dict(part.arguments).get("trained_epochs"):
        return None
    code = part_digest("model", part) + digest_of_module("gitbench.clients.training")
    # The same name may lead to other images some day.
    images = hashlib.sha256(data.public.inputs.cpu().contiguous().numpy().data).hexdigest()
    return hashlib.sha256(canonical_json([data.name, images, model, seed, code]).encode()).hexdigest()[:20]


def _train_cached(network: nn.Module, data: Data, *, model: str, epochs: int, seed: int, cache: Path | None) -> None:
    path = cache / f"{trained_name(model, data, seed=seed)}.safetensors" if cache else None
    if path and path.is_file():
        try:
            network.load_state_dict(load_tensors(path.read_bytes()))
            return
        except (SafetensorError, RuntimeError) as error:
            warnings.warn(f"{path} is damaged ({error}): the model is trained again.", stacklevel=2)
    train(network, data.public, epochs=epochs, lr=1e-3, batch_size=64, generator=make_generator(seed, "training"), optimizer="adam")
    if path:
        # Cloned, because safetensors refuses tensors that layers share.
        kept = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in network.state_dict().items()}
        write_atomic(path, save_tensors(kept))


def without_values(model: nn.Module) -> nn.Module:
    """A copy on the ``meta`` device: the layers, names and shapes alone, and which layers share a parameter."""
    empty: dict[int, object] = {id(buffer): buffer.to("meta") for buffer in model.buffers()}
    for parameter in model.parameters():
        empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, empty)


def digest_of_values(model: nn.Module) -> str:
    """Names a model's values, and which of them are frozen (20 hex digits)."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    for name, parameter in model.named_parameters():
        digest.update(b"" if parameter.requires_grad else f"frozen {name}".encode())
    return digest.hexdigest()[:20]
