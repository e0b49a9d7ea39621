"""The modality: what kind of data an input is. The built-in ones are in :mod:`gitbench.clients.modalities`, one file each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from gitbench.core.component import Component

if TYPE_CHECKING:
    import torch
    from torch import nn


class Modality(Component):
    """Base of all modalities: what an input is, how it enters a model, what guessing gives, how it is compared and shown.

    Data say which is theirs (:attr:`gitbench.Data.modality`), and so does the class of a dataset, by name. The attributes are read where
    nothing is measured: import torch inside the methods, not beside the class.
    """

    noun: ClassVar[str]
    """What one input is called, in messages: ``image``."""
    axes: ClassVar[str]
    """The dimensions of one input, in messages: ``C, H, W``."""
    dtype: ClassVar[str] = "float32"
    """Of inputs, as torch calls it."""
    gate: ClassVar[Mapping[str, float]]
    """What is judged by default: metric to threshold. Each metric says what it gains over the blind guess."""
    profiles: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Of each profile what is another than for images, by the fields of :class:`gitbench.run.profiles.Profile`."""

    # ---------------------------------------------------------------- what an input is

    def problem(self, inputs: torch.Tensor) -> str:
        """What is wrong with the values of some inputs ``(..., *shape)``, what was expected and what to do; empty where nothing is."""
        raise TypeError(f"The modality {self!r} must define problem(self, inputs).")

    def noise(self, shape: tuple[int, ...], *, generator: torch.Generator) -> torch.Tensor:
        """Inputs at random, of which nothing is known."""
        raise TypeError(f"The modality {self!r} must define noise(self, shape, *, generator).")

    # ---------------------------------------------------------------- how it enters a model

    def adapt(self, network: nn.Module) -> None:
        """Let a network take what :meth:`enter` returns, where it does not yet."""

    def enter(self, network: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
        """The continuous form of inputs, which a network takes in their place: what an attack may optimise. Themselves by default."""
        return inputs

    def inner_shape(self, network: nn.Module, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the continuous form of one input of this shape; the same by default."""
        return shape

    def start(self, network: nn.Module, shape: tuple[int, ...], *, init: str, generator: torch.Generator) -> torch.Tensor:
        """Continuous inputs at random ``(..., *inner_shape)`` for a search to begin at.

        Args:
            network: that is attacked.
            shape: of what is returned.
            init: the name of a distribution, for a modality that knows several.
            generator: draws it.
        """
        raise TypeError(f"The modality {self!r} must define start(self, network, shape, *, init, generator).")

    def leave(self, network: nn.Module, points: torch.Tensor) -> torch.Tensor:
        """The inputs that are nearest to continuous ones."""
        raise TypeError(f"The modality {self!r} must define leave(self, network, points).")

    def bypassed(self, network: nn.Module) -> frozenset[str]:
        """Names of the parameters that a continuous input goes past, so that its gradient says nothing of theirs."""
        return frozenset()

    def neighbours(self, inputs: torch.Tensor, *, count: int, generator: torch.Generator) -> torch.Tensor | None:
        """Of a batch ``(B, *shape)`` others ``(count, B, *shape)`` that are close to it, where inputs are discrete; None where not."""
        return None

    # ---------------------------------------------------------------- how a reconstruction is scored

    def blind(self, public: torch.Tensor) -> torch.Tensor:
        """The best reconstruction without any gradient ``(*shape)``, given public inputs ``(N, *shape)``."""
        raise TypeError(f"The modality {self!r} must define blind(self, public).")

    def distances(self, found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
        """How far each true input of a victim is from each reconstruction, ``(V, B, B)``: by that a batch's order is found.

        Args:
            found: ``(V, B, *shape)``, not finite where an attack failed.
            truth: the same shape.
        """
        raise TypeError(f"The modality {self!r} must define distances(self, found, truth).")

    # ---------------------------------------------------------------- how it is shown

    def picture(self, truth: torch.Tensor, found: torch.Tensor) -> bytes:
        """PNG of a case: some victims' truths in one row, and below each what the attack made of it, in cells of one size.

        Its text ``victims`` says how many.

        Args:
            truth: ``(V, B, *shape)``.
            found: the same shape.
        """
        raise TypeError(f"The modality {self!r} must define picture(self, truth, found).")

    def told(self) -> Mapping[str, str]:
        """What is to stand beside every figure of such data, by names; nothing by default."""
        return {}

    def flags(self, network: nn.Module) -> frozenset[str]:
        """Names in :data:`gitbench.judge.flags.FLAGS` that a model of such data raises whatever is sent."""
        return frozenset()
