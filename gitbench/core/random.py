"""Randomness that is asked for by name and passed on, never taken from a global state.

Generators live on the CPU whatever the device: the same seed gives the same numbers everywhere.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch


def make_generator(seed: int, *purpose: str) -> torch.Generator:
    """A CPU generator for one purpose, independent of those for other purposes."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


def derived_seed(seed: int, *purpose: str) -> int:
    """A seed for one purpose."""
    digest = hashlib.sha256("/".join((str(seed), *purpose)).encode()).digest()
    return int.from_bytes(digest[:7], "big")


def randn_like(tensor: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Standard normal numbers of the tensor's shape, dtype and device, drawn from a CPU generator."""
    drawn = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype, device=generator.device)
    return drawn.to(tensor.device)


@contextlib.contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seed the global state from ``generator`` inside the block, and put it back afterwards.

    For library code (torchvision's constructors, dropout) that cannot be handed a generator.
    """
    with seeded_by(int(torch.randint(2**62, (), generator=generator))):
        yield


@contextlib.contextmanager
def seeded_by(seed: int) -> Iterator[None]:
    """The same from a seed: where no generator can be asked, inside of torch.func.vmap."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
