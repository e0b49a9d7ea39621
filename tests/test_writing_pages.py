"""The pages on writing models and attacks: their examples run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import gitbench
from gitbench import Data
from helpers import write_npz

DOCS = Path(__file__).parent.parent / "docs"


def examples(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(
    ("page", "number", "options"),
    [
        ("models.md", 0, {"model": "{file}:Small(width=2)", "attack": "ridge"}),
        ("models.md", 1, {"model": "{file}:Linear(bias=False)", "attack": "ridge"}),
        ("writing-attacks.md", 0, {"model": "mlp(hidden=(8,))", "attack": "{file}:Nearest(limit=20)"}),
        ("writing-attacks.md", 0, {"model": "mlp(hidden=(8,))", "attack": "{file}:Nearest(adapt=False)"}),
    ],
)
def test_an_example_runs_as_it_stands(page: str, number: int, options: dict[str, str], data: Data, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(examples(page)[number])
    spec = {key: value.replace("{file}", str(file)) for key, value in options.items()}
    dataset = f"npz(path={str(write_npz(tmp_path / 'tiny.npz', data))!r})"
    found = gitbench.evaluate(dataset=dataset, defense="gaussian_noise(std=0.01)", victims=8, device="cpu", **spec)
    assert found.status == "done", found.error
    assert found.metrics["psnr"].mean is not None
