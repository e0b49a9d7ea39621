"""A small suite for tests, as text and read."""

from __future__ import annotations

from pathlib import Path

from gitbench.run.suite import Suite, read_suite
from helpers import write

TINY = """
schema = 1
title = "noise on a small network"
profile = "quick"
notes = ["Network: theirs is wider."]
contradictions = ["RIDGE is 0.010 here and 0.020 in Table 2."]

[source]
paper = "A paper"
arxiv = "2501.00001"
table = "Table 1"
budget = "96 images to learn from."

[budgets]
quick = { victims = 8 }
paper = { victims = 12, seeds = 2 }

[[data]]
name = "tiny"
what = "tiny images"
give = "npz(path='tiny.npz')"
shape = [3, 8, 8]
classes = 4
public = 100

[[settings]]
title = "tiny, MLP"
data = "tiny"
model = "mlp(hidden=(24,))"
rows = "std"
lines = [
  { paper = "RIDGE", attack = "ridge", row = "0", published = { mse = 0.010, psnr = 20.50 } },
  { paper = "RIDGE", attack = "ridge", row = "1", defense = "gaussian_noise(std=1.0)", published = { mse = 0.05 } },
  { paper = "RIDGE", attack = "ridge(limit=97)", row = "97 images", published = { mse = 0.02 }, public = 97 },
  { paper = "ORACLE", row = "0", published = { mse = 0.001 }, unavailable = "there is no such attack" },
]
"""


def write_suite(folder: Path, text: str = TINY, name: str = "tiny") -> Path:
    return write(folder / f"{name}.toml", text)


def tiny_suite(folder: Path, *changes: tuple[str, str]) -> Suite:
    """The small suite with some of its text replaced."""
    text = TINY
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    return read_suite(write_suite(folder, text))
