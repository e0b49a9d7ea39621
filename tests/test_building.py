"""Components are imported and built, and one that cannot be is named."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import gitbench
from gitbench.clients.data import Dataset
from gitbench.clients.defense import Defense
from gitbench.core.errors import SpecError
from gitbench.core.spec import Part, parse_spec
from gitbench.identity.loading import build_part, load_part
from helpers import SCALE, write


def test_a_component_in_a_file_is_loaded(tmp_path: Path) -> None:
    file = write(tmp_path / "mine.py", SCALE)
    text = f"{file}:Scale(factor=2.0)"
    defense = gitbench.load_defense(text)
    assert repr(defense) == text  # what was asked for rebuilds it
    update = gitbench.Update({"weight": torch.ones(2, 3)})
    assert torch.equal(defense.protect(update, generator=torch.Generator()).tensors["weight"], torch.full((2, 3), 2.0))


@pytest.mark.parametrize(
    ("body", "name", "message"),
    [
        (
            "import no_such_module_at_all\nclass Mine: ...\n",
            "Mine",
            r"Importing .*mine.py for the defense 'mine.py:Mine' failed: ModuleNotFoundError",
        ),
        ("raise SystemError('x')\nclass Mine: ...\n", "Mine", r"failed: SystemError\('x'\)"),
        ("class Mine: ...\n", "Mine", r"Expected '.*mine.py:Mine' to be a subclass of gitbench.Defense, got <class"),
        ("if False:\n    Mine = 1\nMined = 2\n", "Mine", r"mine.py has no 'Mine'\. Did you mean 'Mined'"),
        (
            SCALE.replace("self.factor = factor", "raise ValueError('expected factor > 0')"),
            "Scale(factor=-1)",
            "refuses its options: expected factor > 0",
        ),
    ],
)
def test_a_component_that_cannot_be_built_is_named(tmp_path: Path, body: str, name: str, message: str) -> None:
    spec = parse_spec("defense", f"{write(tmp_path / 'mine.py', body)}:{name}")
    with pytest.raises(SpecError, match=message):
        build_part("defense", spec.parts[0], Defense)


def test_a_component_of_another_kind_is_refused() -> None:
    with pytest.raises(SpecError, match=r"Expected 'gitbench_defenses.none:Undefended' to be a subclass of gitbench.Dataset"):
        build_part("dataset", Part("gitbench_defenses.none:Undefended"), Dataset)


def test_two_modules_of_one_name_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / which / "mine.py", f"from gitbench_test_core import X\nclass Mine: {which} = X\n") for which in "ab"]
    for number, which in enumerate("ab"):
        write(tmp_path / which / "gitbench_test_core.py", f"X = {number}\n")
    try:
        assert load_part("defense", Part(f"{files[0]}:Mine")).a == 0
        with pytest.raises(
            SpecError, match=r"imports gitbench_test_core, which is .*a.gitbench_test_core\.py in this process and not .* Rename"
        ):
            load_part("defense", Part(f"{files[1]}:Mine"))
    finally:
        sys.modules.pop("gitbench_test_core", None)
        sys.path[:] = [path for path in sys.path if not path.startswith(str(tmp_path))]
