"""The functions of ``gitbench.registry`` in 0.1, for whoever imports them by that name. Within gitbench nobody does."""

from gitbench.identity.loading import build_part as build
from gitbench.identity.loading import check_spec as check
from gitbench.identity.loading import load_part as load
from gitbench.identity.names import GROUPS, Target, entry_points, locate, register
from gitbench.identity.sources import digest_of_module, part_digest, source_digest, with_files

__all__ = (
    "GROUPS",
    "Target",
    "build",
    "check",
    "digest_of_module",
    "entry_points",
    "load",
    "locate",
    "part_digest",
    "register",
    "source_digest",
    "with_files",
)
