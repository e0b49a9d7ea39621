"""The metric: how much of each image leaks. The built-in ones are in :mod:`gitbench.measure.metrics`, one file each."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from gitbench.core.component import Component

if TYPE_CHECKING:
    import torch


class Metric(Component):
    """Base of all metrics: subclasses set these attributes and define :meth:`score`.

    The attributes are read where nothing is measured: import torch inside :meth:`score`, not beside the class.
    """

    modality: ClassVar[str] = "image"
    """Name of the kind of data (:class:`gitbench.Modality`) that it is a metric of."""
    unit: ClassVar[str] = ""
    """Its unit, or an empty string. Tables take their digits from it."""
    higher_leaks: ClassVar[bool]
    """True when a larger value means more leakage."""
    low: ClassVar[float | None] = None
    """Smallest possible value (None: unbounded)."""
    high: ClassVar[float | None] = None
    """Largest possible value (None: unbounded)."""
    tolerance: ClassVar[float]
    """How much more of it a later run may leak before it counts as worse, where 0.5 dB of ``psnr_gain`` are accepted."""
    summary: ClassVar[str]
    """What it is, in a few words."""
    heading: ClassVar[str] = ""
    """What stands above its column, where that is not the name."""

    def score(self, found: torch.Tensor, truth: torch.Tensor, *args: Any, **given: Any) -> torch.Tensor:
        """The value of each image. Neither argument is written to.

        Args:
            found: reconstructions ``(N, C, H, W)`` in [0, 1], finite.
            truth: their true images, the same shape.
            args: nothing; a subclass names ``found``, ``truth`` and keywords.
            given: what a subclass names of ``blind``, the blind guess ``(C, H, W)``, and ``private``, all private
                images ``(M, C, H, W)``. Where that is not there the metric is left out.

        Returns:
            ``(N,)``, of each image alone.
        """
        raise TypeError(f"The metric {self!r} must define score(self, found, truth).")

    @property
    def needs(self) -> tuple[str, ...]:
        """The keywords that :meth:`score` names."""
        return tuple(name for name, one in inspect.signature(self.score).parameters.items() if one.kind is one.KEYWORD_ONLY)

    @property
    def sign(self) -> int:
        """1 where a larger value means more leakage, otherwise -1."""
        return 1 if self.higher_leaks else -1
